package operate

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"packship/cmd/internal/app"
	"packship/producer/ledger"
	"packship/schema"
)

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
	// told are the events whose failures were read.
	told map[schema.EventHash]bool
	// newest has, by order, the newest failure of everything that is to be
	// shipped, also of what the filter does not mean.
	newest map[order][]failure
	// shipped are the shipped results of the orders that were found.
	shipped map[order][]schema.Result
	// sent are the failed results whose event waits in the packed topic, and
	// repacked what waits there in any event, by order.
	sent     map[string]bool
	repacked map[order][]schema.Shipment
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

// itemsOf returns what of its order a result is about, under whatever waybill.
func itemsOf(r *schema.Result) schema.Shipment {
	return schema.Shipment{ShopID: r.ShopID, TID: r.TID, Split: fmt.Sprint(r.IsSplit), SubTID: r.SubTID}
}

// failure is the newest of a part.
type failure struct {
	part         part
	items        schema.Shipment
	resultID, at string
}

// follow notes a failure, if it is the newest of its part. Those of an order
// stay as they were read, which tells two of one millisecond apart.
func (s *selection) follow(r *schema.Result) {
	f := failure{partOf(r), itemsOf(r), r.ResultID, r.OccurredAt}
	of := s.newest[orderOf(r)]
	if i := slices.IndexFunc(of, func(x failure) bool { return x.part == f.part }); i >= 0 {
		if f.at < of[i].at {
			return
		}
		of = slices.Delete(of, i, i+1)
	}
	s.newest[orderOf(r)] = append(of, f)
}

// follower returns the result of a later failure of some of the same items, "" if
// there is none.
func (s *selection) follower(r *schema.Result) string {
	p, what, passed := partOf(r), itemsOf(r), false
	for _, f := range s.newest[orderOf(r)] {
		switch {
		case f.part == p && f.resultID != r.ResultID:
			return f.resultID
		case f.part == p:
			passed = true
		case overlap(&f.items, &what) && (f.at > r.OccurredAt || f.at == r.OccurredAt && passed):
			return f.resultID
		}
	}
	return ""
}

func partOf(r *schema.Result) part {
	s := itemsOf(r)
	return part(s.Key())
}

// overlap reports whether both ship some item of their order.
func overlap(a, b *schema.Shipment) bool {
	_, ok := a.Overlaps(b)
	return ok
}

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
		if event, ok := rec.Header("in_reply_to"); ok {
			s.told[eventOf(event, string(rec.Key))] = true
		}
		var r schema.Result
		if json.Unmarshal(rec.Value, &r) != nil || r.ResultID == "" || r.Failure == nil || seen[r.ResultID] {
			return nil //nolint:nilerr // not an event of packship's, or an old acquaintance
		}
		seen[r.ResultID] = true
		s.reasons[r.Reason], s.classes[r.Class] = true, true
		s.follow(&r)
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
		case st.State != schema.StateSettled, st.Verdict == schema.Failed && !s.told[eventOf(p.EventID, p.TID)]: // or has failed meanwhile
			s.repacked[of] = append(s.repacked[of], p.Shipment)
		case st.Verdict == schema.Shipped: // which perhaps nobody has been told yet
			s.shipped[of] = append(s.shipped[of], schema.Result{IsSplit: p.IsSplit, SubTID: p.SubTID, Source: schema.Source{EventID: p.EventID}})
		}
		// Any other event that is answered waits only to be answered again.
		return nil
	})
}
