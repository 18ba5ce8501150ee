package operate

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"packship/cmd/internal/app"
	"packship/producer/ledger"
	"packship/schema"
)

// RedriveFilter says which failed results are to be sent again, and how. The
// zero value means all of them, as they were.
type RedriveFilter struct {
	Reasons, Classes, Shops, Accounts, TIDs []string
	// Since and Until bound the time of the outcome.
	Since, Until time.Time
	// MaybeShipped means only those that may be shipped.
	MaybeShipped bool
	// Set and Corrections change the events. With corrections only the orders
	// that they name are meant.
	Set         []Change
	Corrections *Corrections
	// Limit bounds how many are sent, 0: no limit.
	Limit int
	// PerSecond is how many are sent a second at most, 0: no limit.
	PerSecond float64
	// Force also sends what may be shipped, and whatever else a person may
	// know better.
	Force bool
}

// FilterError is about a filter that can mean nothing.
type FilterError struct{ text string }

func (e *FilterError) Error() string { return e.text }

// Refused is why a failed result is not sent again.
type Refused string

// The refusals.
const (
	RefusedShipped       Refused = "shipped"
	RefusedOrderShipped  Refused = "order_shipped"
	RefusedMaybeShipped  Refused = "maybe_shipped"
	RefusedUnderWay      Refused = "under_way"
	RefusedSuperseded    Refused = "superseded"
	RefusedSent          Refused = "sent"
	RefusedSentBefore    Refused = "sent_before"
	RefusedNotRedrivable Refused = "not_redrivable"
	RefusedInvalid       Refused = "invalid"
	RefusedNotServed     Refused = "not_served"
	RefusedGone          Refused = "gone"
	RefusedUnchangeable  Refused = "unchangeable"
	RefusedAmbiguous     Refused = "ambiguous"
)

// Meaning explains a refusal to a person.
func (r Refused) Meaning() string {
	switch r {
	case RefusedShipped:
		return "the ledger knows it as shipped"
	case RefusedOrderShipped:
		return "the order was shipped by another event; --force sends it all the same"
	case RefusedMaybeShipped:
		return "it may be shipped: look it up at the platform; --force sends it all the same"
	case RefusedUnderWay:
		return "it is being called for now"
	case RefusedSuperseded:
		return "the order has failed again, or was packed again, since then"
	case RefusedSent:
		return "it was sent again already, and waits or is answered"
	case RefusedSentBefore:
		return "it was sent again and has failed again, and nothing is changed; --force sends it all the same"
	case RefusedNotRedrivable:
		return "sending it again does not help; --force sends it all the same"
	case RefusedInvalid:
		return "it still breaks a rule: correct it with --set or --corrections"
	case RefusedNotServed:
		return "its shop belongs to another deployment"
	case RefusedGone:
		return "its packed event is no longer in the topic: pack it again with packship pack"
	case RefusedUnchangeable:
		return "its packed event cannot be changed"
	case RefusedAmbiguous:
		return "a correction is about several parcels of the order: give it a result_id"
	default:
		return string(r)
	}
}

// Redrive is a selection of failed results and what is to become of them.
type Redrive struct {
	Executed bool `json:"executed"`
	// Found is how many results the filter means, each once; Selected of them
	// are sent again, Refused are not, and Left are beyond the limit.
	Found    int `json:"found"`
	Selected int `json:"selected"`
	Refused  int `json:"refused"`
	Left     int `json:"left"`
	Sent     int `json:"sent"`
	// Calls, Points and Seconds are as in a [Plan].
	Calls   int64   `json:"calls"`
	Points  int64   `json:"points"`
	Seconds float64 `json:"seconds"`

	Reasons  []RedriveReason  `json:"reasons"`
	Refusals []RedriveRefusal `json:"refusals"`
	Orders   []RedriveOrder   `json:"orders"`
	// Unmatched are the lines of the corrections that no failure was found for.
	Unmatched []UnmatchedLine `json:"unmatched"`
	// Damaged is as in a [Plan].
	Damaged string `json:"damaged,omitempty"`

	events    []redriven
	perSecond float64
}

// RedriveReason counts by the reason of the failure.
type RedriveReason struct {
	Reason   string `json:"reason"`
	Class    string `json:"class"`
	Found    int    `json:"found"`
	Selected int    `json:"selected"`
	Refused  int    `json:"refused"`
}

// RedriveRefusal counts by why it is not sent again.
type RedriveRefusal struct {
	Why     Refused `json:"why"`
	Count   int     `json:"count"`
	Meaning string  `json:"meaning"`
}

// RedriveOrder is one failed result.
type RedriveOrder struct {
	TID      string `json:"tid"`
	ShopID   string `json:"shop_id"`
	ResultID string `json:"result_id"`
	Reason   string `json:"reason"`
	// EventID is that of the packed event that is sent, "" if it is refused.
	EventID string  `json:"event_id,omitempty"`
	Refused Refused `json:"refused,omitempty"`
	Detail  string  `json:"detail,omitempty"` // of the refusal
}

// UnmatchedLine is a line of the corrections.
type UnmatchedLine struct {
	Line int    `json:"line"`
	TID  string `json:"tid"`
}

// redriven is a packed event that is to be sent.
type redriven struct {
	tid, account string
	record       *schema.Record
}

// candidate is a failed result that the filter means.
type candidate struct {
	result schema.Result
	row    *correction
}

// PlanRedrive selects failed results, and changes nothing.
func (o *Operator) PlanRedrive(ctx context.Context, f RedriveFilter) (*Redrive, error) {
	orders, err := o.settings.Orders()
	if err != nil {
		return nil, err
	}
	for _, account := range f.Accounts {
		if !slices.Contains(orders.Accounts(), account) {
			return nil, &FilterError{fmt.Sprintf("redrive: there is no account %q; there are %s", account, strings.Join(orders.Accounts(), ", "))}
		}
	}
	s := &selection{
		Operator: o, filter: f, orders: orders, plan: &Redrive{perSecond: f.PerSecond, Refusals: []RedriveRefusal{}, Orders: []RedriveOrder{}, Unmatched: []UnmatchedLine{}},
		reasons: map[string]bool{}, classes: map[string]bool{}, newest: map[part]newest{}, sent: map[string]bool{}, repacked: map[part]bool{}, chosen: map[schema.Key]bool{}, alike: map[string]map[part]bool{},
	}
	for _, step := range []func(context.Context) error{s.findPlace, s.findFailures, s.knowWords, s.findShipped, s.findStanding, s.findWaiting, s.judge, s.mayShare} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	s.sum()
	return s.plan, nil
}

// selection is the making of a plan.
type selection struct {
	*Operator
	filter RedriveFilter
	orders *app.Orders
	plan   *Redrive

	found []candidate
	// reasons and classes are those of all failures, also of what the filter
	// does not mean.
	reasons, classes map[string]bool
	// newest has the newest failure of everything that is to be shipped, also
	// of what the filter does not mean.
	newest map[part]newest
	// shipped are the shipped results of the orders that were found.
	shipped map[order][]schema.Result
	// sent are the failed results whose event waits in the packed topic, and
	// repacked what waits there in any event.
	sent     map[string]bool
	repacked map[part]bool
	place    []position // of the group when the planning began
	memory   *ledger.Reader
	chosen   map[schema.Key]bool
	// alike are the parcels that are to get the same value of a field.
	alike map[string]map[part]bool
}

// part is what is to be shipped, under whatever waybill.
type part [16]byte

// order is an order of a shop.
type order struct{ shop, tid string }

type newest struct{ resultID, at string }

func partOf(shop, tid string, split int, sub []string) part {
	s := schema.Shipment{ShopID: shop, TID: tid, Split: fmt.Sprint(split), SubTID: sub}
	return part(s.Key())
}

func partOfResult(r *schema.Result) part { return partOf(r.ShopID, r.TID, r.IsSplit, r.SubTID) }

func orderOf(r *schema.Result) order { return order{r.ShopID, r.TID} }

// findPlace notes where the group stands. It comes before all reading, so that
// what is handled meanwhile is found among the events that wait, if nowhere else.
func (s *selection) findPlace(ctx context.Context) (err error) {
	s.place, err = s.positions(ctx)
	return err
}

// findFailures reads the failed results. Those that were published more than
// once are taken once.
func (s *selection) findFailures(ctx context.Context) error {
	seen := map[string]bool{}
	err := s.readAll(ctx, s.settings.TopicFailed, func(rec *schema.Record) error {
		var r schema.Result
		if json.Unmarshal(rec.Value, &r) != nil || r.ResultID == "" || r.Failure == nil || seen[r.ResultID] {
			return nil //nolint:nilerr // not an event of packship's, or an old acquaintance
		}
		seen[r.ResultID] = true
		s.reasons[r.Reason], s.classes[r.Class] = true, true
		p := partOfResult(&r)
		if r.OccurredAt >= s.newest[p].at {
			s.newest[p] = newest{r.ResultID, r.OccurredAt}
		}
		if c, ok := s.meant(r); ok {
			s.found = append(s.found, c)
		}
		return nil
	})
	slices.SortStableFunc(s.found, func(a, b candidate) int {
		return cmp.Or(strings.Compare(a.result.OccurredAt, b.result.OccurredAt), strings.Compare(a.result.ResultID, b.result.ResultID))
	})
	return err
}

// knowWords refuses a filter with a reason or class that is misspelt. Another
// version may have had words that this one does not know, so that what stands in
// a failed event is always good.
func (s *selection) knowWords(context.Context) error {
	for _, words := range []struct {
		kind         string
		given, known []string
		seen         map[string]bool
	}{
		{"reason", s.filter.Reasons, schema.Reasons(), s.reasons},
		{"class", s.filter.Classes, schema.Classes(), s.classes},
	} {
		for _, word := range words.given {
			if words.seen[word] || slices.Contains(words.known, word) {
				continue
			}
			known := slices.AppendSeq(words.known, maps.Keys(words.seen))
			return &FilterError{fmt.Sprintf("redrive: there is no %s %q, and no failed event has it; the nearest are %s", words.kind, word, strings.Join(nearest(word, known, 3), ", "))}
		}
	}
	return nil
}

// meant reports whether the filter means a failed result.
func (s *selection) meant(r schema.Result) (candidate, bool) {
	f := &s.filter
	c := candidate{result: lean(r)}
	at, err := time.Parse(time.RFC3339, r.OccurredAt)
	switch in := func(list []string, value string) bool { return len(list) == 0 || slices.Contains(list, value) }; {
	case !in(f.Reasons, r.Reason), !in(f.Classes, r.Class), !in(f.Shops, r.ShopID), !in(f.TIDs, r.TID),
		len(f.Accounts) > 0 && !slices.Contains(f.Accounts, s.orders.Account(r.ShopID)),
		f.MaybeShipped && !r.MaybeShipped,
		!f.Since.IsZero() && (err != nil || at.Before(f.Since)),
		!f.Until.IsZero() && (err != nil || !at.Before(f.Until)):
		return c, false
	}
	if f.Corrections != nil {
		c.row = f.Corrections.of(&r)
		return c, c.row != nil
	}
	return c, true
}

// lean drops what of a result is not needed any more: there may be many.
func lean(r schema.Result) schema.Result {
	f := *r.Failure
	f.Violations = nil
	if f.Redrivable {
		f.Advice = ""
	}
	r.Failure, r.Upstream = &f, nil
	return r
}

// findShipped reads which of the orders were shipped. The ledger knows it by
// shipment, and for as long as its horizon; the results know it by order, and
// for as long as they are kept.
func (s *selection) findShipped(ctx context.Context) error {
	s.shipped = map[order][]schema.Result{}
	for i := range s.found {
		s.shipped[orderOf(&s.found[i].result)] = nil
	}
	if len(s.found) == 0 {
		return nil
	}
	return s.readAll(ctx, s.settings.TopicShipped, func(rec *schema.Record) error {
		var r schema.Result
		if json.Unmarshal(rec.Value, &r) != nil || r.Status != schema.Shipped {
			return nil //nolint:nilerr // not an event of packship's
		}
		if all, ok := s.shipped[orderOf(&r)]; ok && !slices.ContainsFunc(all, func(x schema.Result) bool { return x.ResultID == r.ResultID }) {
			s.shipped[orderOf(&r)] = append(all, r)
		}
		return nil
	})
}

// findStanding reads the ledger.
func (s *selection) findStanding(ctx context.Context) (err error) {
	s.memory, err = s.loadLedger(ctx)
	if err == nil {
		s.plan.Damaged = s.memory.Damaged()
	}
	return err
}

// findWaiting reads the packed events that the group has not passed: an order
// that was sent again, or packed again, waits there.
func (s *selection) findWaiting(ctx context.Context) error {
	if len(s.found) == 0 {
		return nil
	}
	ranges, err := s.kafka.Ranges(ctx, s.settings.TopicPacked)
	if err != nil {
		return err
	}
	for _, p := range s.place {
		for i := range ranges {
			if ranges[i].Partition == p.Partition {
				ranges[i].From = max(ranges[i].From, p.at)
			}
		}
	}
	s.meter.Begin("reading what waits in "+s.settings.TopicPacked, total(ranges))
	defer s.meter.End()
	return s.read(ctx, s.settings.TopicPacked, ranges, func(rec *schema.Record) error {
		p, err := schema.DecodePacked(rec)
		if err != nil {
			return nil //nolint:nilerr // a dead letter to be
		}
		if id, ok := rec.Header(redriveMark); ok {
			s.sent[id] = true
			return nil
		}
		of := order{p.ShopID, p.TID}
		if _, ok := s.shipped[of]; !ok {
			return nil
		}
		switch st := s.memory.Look(&p.Shipment, p.EventID); {
		case st.State != schema.StateSettled:
			s.repacked[partOf(p.ShopID, p.TID, p.IsSplit, p.SubTID)] = true
		case st.Verdict == schema.Shipped: // which perhaps nobody has been told yet
			s.shipped[of] = append(s.shipped[of], schema.Result{IsSplit: p.IsSplit, SubTID: p.SubTID, Source: schema.Source{EventID: p.EventID}})
		}
		// Any other event that is answered waits only to be answered again.
		return nil
	})
}

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
		if c.row != nil && s.newest[partOfResult(&c.result)].resultID == c.result.ResultID {
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
		s.alike[set.Field][partOfResult(&c.result)] = true
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
	case s.newest[partOfResult(r)].resultID != r.ResultID:
		return nil, RefusedSuperseded, "by result " + s.newest[partOfResult(r)].resultID
	case s.sent[r.ResultID]:
		return nil, RefusedSent, ""
	case s.repacked[partOfResult(r)]:
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
		if r.IsSplit == 0 || p.IsSplit == 0 || slices.ContainsFunc(r.SubTID, func(id string) bool { return slices.Contains(p.SubTID, id) }) {
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
