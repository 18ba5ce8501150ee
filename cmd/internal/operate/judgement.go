package operate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"packship/cmd/internal/app"
	"packship/schema"
)

// judgedAtOnce bounds how many packed events are held in memory.
const judgedAtOnce = 1000

// judge goes through what was found, oldest first, until the limit is reached.
func (s *selection) judge(ctx context.Context) error {
	s.countRows()
	s.meter.Begin("judging", int64(len(s.found)))
	defer s.meter.End()
	for rest := s.found; len(rest) > 0; {
		some := rest[:min(len(rest), judgedAtOnce)]
		rest = rest[len(some):]
		originals, err := s.originals(ctx, some)
		if err != nil {
			return err
		}
		for i := range some {
			if s.filter.Limit > 0 && s.plan.Selected >= s.filter.Limit {
				s.plan.Left = len(s.found) - s.plan.Selected - s.plan.Refused
				return nil
			}
			s.decide(&some[i], originals[placeOf(&some[i].result.Source)])
			s.meter.Add(1)
		}
	}
	return nil
}

// countRows counts how many parcels each row of the corrections is about, not
// counting failures that others have followed.
func (s *selection) countRows() {
	for i := range s.found {
		c := &s.found[i]
		if c.row != nil && s.follower(&c.result) == "" {
			c.row.used++
		}
	}
	if s.filter.Corrections == nil {
		return
	}
	for _, row := range s.filter.Corrections.rows {
		if row.used == 0 {
			s.plan.Unmatched = append(s.plan.Unmatched, UnmatchedLine{row.line, row.tid})
		}
	}
}

// place is where a record stands in the packed topic.
type place struct {
	partition int
	offset    int64
}

func placeOf(s *schema.Source) place { return place{s.Partition, s.Offset} }

// originals reads the packed events that led to failures.
func (s *selection) originals(ctx context.Context, some []candidate) (map[place]*schema.Record, error) {
	ranges, err := s.kafka.Ranges(ctx, s.settings.TopicPacked)
	if err != nil {
		return nil, err
	}
	found := map[place]*schema.Record{}
	for _, r := range ranges {
		var wanted []int64
		for i := range some {
			if src := &some[i].result.Source; src.Topic == s.settings.TopicPacked && src.Partition == r.Partition && src.Offset >= r.From && src.Offset < r.To {
				wanted = append(wanted, src.Offset)
			}
		}
		slices.Sort(wanted)
		for _, run := range runs(slices.Compact(wanted)) {
			err := s.kafka.Read(ctx, s.settings.TopicPacked, app.Range{Partition: r.Partition, From: run[0], To: run[len(run)-1] + 1}, func(rec *schema.Record) error {
				if _, ok := slices.BinarySearch(run, rec.Offset); ok {
					found[place{r.Partition, rec.Offset}] = rec
				}
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

// runs cuts sorted offsets where reading on would take longer than beginning
// anew.
func runs(offsets []int64) [][]int64 {
	const gap = 2000
	var all [][]int64
	begin := 0
	for i := range offsets {
		if i > 0 && offsets[i]-offsets[i-1] > gap {
			all = append(all, offsets[begin:i])
			begin = i
		}
	}
	if begin < len(offsets) {
		all = append(all, offsets[begin:])
	}
	return all
}

// decide selects or refuses one failed result.
func (s *selection) decide(c *candidate, original *schema.Record) {
	made, why, detail := s.event(c, original)
	listed := RedriveOrder{TID: c.result.TID, ShopID: c.result.ShopID, ResultID: c.result.ResultID, Reason: c.result.Reason, Refused: why, Detail: detail}
	if why == "" {
		listed.EventID = redriveID(c.result.ResultID)
		s.share(c)
		s.plan.Selected++
		s.plan.events = append(s.plan.events, redriven{c.result.TID, s.orders.Account(c.result.ShopID), made})
	} else {
		s.plan.Refused++
	}
	s.plan.Orders = append(s.plan.Orders, listed)
}

// ofOne are the fields whose value can be right for one parcel only.
var ofOne = []string{"out_sid", "sub_tid"}

// share notes what of a parcel is set to a value that others may get, too.
func (s *selection) share(c *candidate) {
	for _, set := range s.filter.Set {
		own := c.row != nil && slices.ContainsFunc(c.row.changes, func(x Change) bool { return x.Field == set.Field })
		if own || set.Value == nil || !slices.Contains(ofOne, set.Field) {
			continue
		}
		if s.alike[set.Field] == nil {
			s.alike[set.Field] = map[part]bool{}
		}
		s.alike[set.Field][partOf(&c.result)] = true
	}
}

// mayShare refuses to give several parcels what only one can have.
func (s *selection) mayShare(context.Context) error {
	for _, field := range ofOne {
		if n := len(s.alike[field]); n > 1 && !s.filter.Force {
			return &FilterError{fmt.Sprintf("redrive: --set %s would give %d parcels the same value; name one order with --tid, give each its own with --corrections (columns tid, result_id, %s), or insist with --force", field, n, field)}
		}
	}
	return nil
}

// event makes the packed event that a failed result is sent again as, or says
// why there is none, and more about that.
func (s *selection) event(c *candidate, original *schema.Record) (*schema.Record, Refused, string) {
	r, force := &c.result, s.filter.Force
	was := schema.Shipment{ShopID: r.ShopID, TID: r.TID, Split: fmt.Sprint(r.IsSplit), SubTID: r.SubTID, OutSID: r.OutSID, CompanyCode: r.CompanyCode}
	before, err := decodeOriginal(original, r)
	if err == nil {
		was = before.Shipment
	}
	switch {
	case s.memory.Shipped(&was):
		return nil, RefusedShipped, ""
	case s.follower(r) != "":
		return nil, RefusedSuperseded, "by result " + s.follower(r)
	case s.sent[r.ResultID]:
		return nil, RefusedSent, ""
	case slices.ContainsFunc(s.repacked[orderOf(r)], func(p schema.Shipment) bool { return overlap(&p, &was) }):
		return nil, RefusedSuperseded, "by a packed event that waits in " + s.settings.TopicPacked
	case c.row != nil && c.row.used > 1:
		return nil, RefusedAmbiguous, fmt.Sprintf("line %d", c.row.line)
	case err != nil:
		return nil, RefusedGone, err.Error()
	}
	changes := slices.Clone(s.filter.Set)
	if c.row != nil {
		changes = append(changes, c.row.changes...)
	}
	made, err := rebuild(original, r.ResultID, changes)
	if err != nil {
		return nil, RefusedUnchangeable, err.Error()
	}
	after, err := schema.DecodePacked(made)
	if err != nil || after.EventID != redriveID(r.ResultID) || after.TID != r.TID || after.ShopID != r.ShopID {
		return nil, RefusedUnchangeable, "it would not be read as it is written"
	}
	by, covered := s.covered(after)
	then, now := s.memory.Look(&was, after.EventID), s.memory.Look(&after.Shipment, after.EventID)
	_, again := original.Header(redriveMark)
	switch {
	case s.memory.Shipped(&after.Shipment):
		return nil, RefusedShipped, "as changed"
	case now.State == schema.StateSettled:
		return nil, RefusedSent, ""
	case then.State == schema.StateHeld || now.State == schema.StateHeld:
		return nil, RefusedUnderWay, ""
	case covered && !force:
		return nil, RefusedOrderShipped, "by " + by
	case (r.MaybeShipped || then.Doubt || now.Doubt) && !force:
		return nil, RefusedMaybeShipped, ""
	case again && len(changes) == 0 && !force:
		return nil, RefusedSentBefore, ""
	case !r.Redrivable && !force:
		return nil, RefusedNotRedrivable, r.Advice
	case !s.orders.Serves(after):
		return nil, RefusedNotServed, ""
	}
	if broken := s.orders.Validate(after); len(broken) > 0 {
		return nil, RefusedInvalid, rules(broken)
	}
	key := after.Shipment.Key()
	if s.chosen[key] {
		return nil, RefusedSuperseded, "the changes make it the same as another"
	}
	s.chosen[key] = true
	return made, "", ""
}

// decodeOriginal reads the packed event that led to a failure. Its error says
// why that is not there.
func decodeOriginal(original *schema.Record, r *schema.Result) (*schema.Packed, error) {
	where := fmt.Sprintf("offset %d of partition %d of %s", r.Source.Offset, r.Source.Partition, r.Source.Topic)
	if original == nil {
		return nil, errors.New("nothing is at " + where)
	}
	p, err := schema.DecodePacked(original)
	if err != nil || p.EventID != r.Source.EventID || p.TID != r.TID {
		return nil, errors.New("another record is at " + where)
	}
	return p, nil
}

// covered reports whether an order was shipped by an event that ships what this
// one would, in whole or in part, and by what.
func (s *selection) covered(p *schema.Packed) (by string, ok bool) {
	for _, r := range s.shipped[order{p.ShopID, p.TID}] {
		if of := itemsOf(&r); overlap(&of, &p.Shipment) {
			if r.ResultID == "" {
				return "event " + r.Source.EventID, true
			}
			return "result " + r.ResultID, true
		}
	}
	return "", false
}

// rules writes violations in one line.
func rules(broken []schema.Violation) string {
	texts := make([]string, len(broken))
	for i, v := range broken {
		texts[i] = strings.TrimSpace(v.Rule + " " + v.Message)
	}
	return strings.Join(texts, "; ")
}

// sum makes the counts.
func (s *selection) sum() {
	p := s.plan
	p.Found = len(s.found)
	reasons, refusals := map[string]*RedriveReason{}, map[Refused]int{}
	for i := range s.found {
		r := &s.found[i].result
		if reasons[r.Reason] == nil {
			reasons[r.Reason] = &RedriveReason{Reason: r.Reason, Class: r.Class}
		}
		reasons[r.Reason].Found++
	}
	for _, o := range p.Orders {
		if o.Refused == "" {
			reasons[o.Reason].Selected++
			continue
		}
		reasons[o.Reason].Refused++
		refusals[o.Refused]++
	}
	p.Reasons = []RedriveReason{}
	for _, r := range reasons {
		p.Reasons = append(p.Reasons, *r)
	}
	slices.SortFunc(p.Reasons, func(a, b RedriveReason) int {
		return cmp.Or(b.Found-a.Found, strings.Compare(a.Reason, b.Reason))
	})
	for why, n := range refusals {
		p.Refusals = append(p.Refusals, RedriveRefusal{why, n, why.Meaning()})
	}
	slices.SortFunc(p.Refusals, func(a, b RedriveRefusal) int {
		return cmp.Or(b.Count-a.Count, strings.Compare(string(a.Why), string(b.Why)))
	})
	calls := map[string]int64{}
	for _, e := range p.events {
		calls[e.account]++
	}
	var longest time.Duration
	for account, n := range calls {
		longest = max(longest, s.orders.Duration(account, n))
	}
	p.Calls = int64(len(p.events))
	p.Points = p.Calls * pointsPerCall
	if s.filter.PerSecond > 0 { // the first leaves at once
		longest = max(longest, time.Duration(float64(p.Calls-1)/s.filter.PerSecond*float64(time.Second)))
	}
	p.Seconds = seconds(longest)
}
