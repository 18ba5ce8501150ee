package consumer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"packship/schema"
)

// part returns an event for a part of order 1, or for all of it if there are no
// sub-orders.
func part(t *testing.T, subs, waybill string) (*schema.Record, *schema.Packed) {
	t.Helper()
	split := 0
	if subs != "" {
		split = 1
	}
	rec := &schema.Record{Topic: "in", Time: time.Now(), Value: fmt.Appendf(nil,
		`{"event_id":"E-%s-%s","shop_id":"7","tid":"1","out_sid":%q,"company_code":"SF","is_split":%d,"sub_tid":%q}`, subs, waybill, waybill, split, subs)}
	p, err := schema.DecodePacked(rec)
	if err != nil {
		t.Fatal(err)
	}
	return rec, p
}

// knows has the ledger know of another shipment of the order.
func (l *memoryLedger) knows(t *testing.T, subs, waybill string, shipped bool) {
	t.Helper()
	_, p := part(t, subs, waybill)
	if shipped {
		l.parts = append(l.parts, p.Shipment)
	} else {
		l.doubtful = append(l.doubtful, p.Shipment)
	}
}

// decodeResult reads the event of an outcome.
func decodeResult(t *testing.T, o schema.Outcome) schema.Result {
	t.Helper()
	var r schema.Result
	if err := json.Unmarshal(o.Event, &r); err != nil {
		t.Fatalf("result %s: %v", o.Event, err)
	}
	return r
}

// TestShipperKnowsTheOtherParts sees what the other shipments of an order mean
// for one: what was shipped is not shipped again, and an answer that the order is
// shipped already is no success of a call with another waybill.
func TestShipperKnowsTheOtherParts(t *testing.T) {
	type other struct {
		subs, waybill string
		shipped       bool
	}
	shipped := func(subs, waybill string) other { return other{subs, waybill, true} }
	doubtful := func(subs, waybill string) other { return other{subs, waybill, false} }
	type others = []other
	for name, tt := range map[string]struct {
		others     others
		subs       string
		answer     schema.Answer
		calls      int
		reason     string // "" if it is shipped
		maybe      bool
		violations []string // the field and a word of the message
	}{
		"nothing else":                 {subs: "11", answer: yes, calls: 1},
		"other parts were shipped":     {others: others{shipped("12,13", "W1"), shipped("14", "W2")}, subs: "11", answer: yes, calls: 1},
		"the same part was shipped":    {others: others{shipped("11", "W1")}, subs: "11", reason: "local_validation", violations: []string{"sub_tid: 11"}},
		"some of it was shipped":       {others: others{shipped("11,12", "W1")}, subs: "12,13,11", reason: "local_validation", violations: []string{"sub_tid: 12,11"}},
		"two parts of it were shipped": {others: others{shipped("11", "W1"), shipped("12", "W2")}, subs: "11,12", reason: "local_validation", violations: []string{"sub_tid: 11", "sub_tid: 12"}},
		"a part was shipped, and now all": {
			others: others{shipped("11,12", "W1")}, reason: "local_validation", violations: []string{"is_split: 11,12"},
		},
		"a part may have been shipped":      {others: others{doubtful("11", "W1")}, subs: "11", answer: yes, calls: 1},
		"it was, with another waybill":      {others: others{doubtful("", "W1")}, answer: already, calls: 1, reason: "shipped_with_other_waybill_possible", maybe: true},
		"a part of it was":                  {others: others{doubtful("11,12", "W1")}, subs: "12", answer: already, calls: 1, reason: "shipped_with_other_waybill_possible", maybe: true},
		"all of it was":                     {others: others{doubtful("", "W1")}, subs: "12", answer: already, calls: 1, reason: "shipped_with_other_waybill_possible", maybe: true},
		"another part was":                  {others: others{doubtful("13", "W1")}, subs: "12", answer: already, calls: 1, reason: "order_status_wrong"},
		"nobody knows of another":           {answer: already, calls: 1, reason: "order_status_wrong"},
		"refused, which says nothing of it": {others: others{doubtful("", "W1")}, answer: no, calls: 1, reason: "waybill_already_used"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(nil, tt.answer)
				for _, o := range tt.others {
					b.ledger.knows(t, o.subs, o.waybill, o.shipped)
				}
				rec, p := part(t, tt.subs, "W9")
				if err := b.shipper.Handle(t.Context(), b.gate, rec, p, nil); err != nil {
					t.Fatal(err)
				}
				o := b.publisher.published[0].Outcome
				want := schema.Shipped
				if tt.reason != "" {
					want = schema.Failed
				}
				if b.upstream.calls != tt.calls || o.Verdict != want || o.Reason != tt.reason || o.MaybeShipped != tt.maybe {
					t.Errorf("%d calls, %s %s, maybe shipped %t; want %d, %s %s, %t", b.upstream.calls, o.Verdict, o.Reason, o.MaybeShipped, tt.calls, want, tt.reason, tt.maybe)
				}
				result := decodeResult(t, o)
				if result.Failure == nil {
					return
				}
				if tt.maybe && (result.Class != "needs_human" || !result.Redrivable || !strings.Contains(result.Advice, "W1")) {
					t.Errorf("got %+v, want that a person is told of waybill W1", result.Failure)
				}
				var got []string
				for _, v := range result.Violations {
					if v.Rule != "V26" {
						t.Errorf("rule %s", v.Rule)
					}
					_, list, _ := strings.Cut(v.Message, "sub-orders ")
					list, _, _ = strings.Cut(strings.ReplaceAll(list, ")", " "), " ")
					got = append(got, v.Field+": "+list)
				}
				if diff := cmp.Diff(tt.violations, got); diff != "" {
					t.Errorf("violations (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// TestShipperKnowsWhoseParcelItIs sees that a waybill number that was shipped for
// one group of orders is not sent for another (V07), also if that happened while
// the order waited for its turn.
func TestShipperKnowsWhoseParcelItIs(t *testing.T) {
	const north, south = `,"order_group":"north"`, `,"order_group":"south"`
	mark := func(group string) string { return (&schema.Packed{OrderGroup: group}).GroupMark() }
	for name, tt := range map[string]struct {
		group    string // of the event, as JSON
		parcel   string // the other order
		parcelOf string // its group
		late     bool   // it is shipped only when this one gets its turn
		refused  bool
	}{
		"nothing is known":             {group: south},
		"another group":                {group: south, parcel: "3", parcelOf: "north", refused: true},
		"the same group":               {group: north, parcel: "3", parcelOf: "north"},
		"the event names no group":     {parcel: "3", parcelOf: "north"},
		"another group, late":          {group: south, parcel: "3", parcelOf: "north", late: true, refused: true},
		"the same group, late":         {group: north, parcel: "3", parcelOf: "north", late: true},
		"no group, and another, late":  {parcel: "3", parcelOf: "north", late: true},
		"a group that is of no string": {group: `,"order_group":7`, parcel: "3", parcelOf: "north"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(nil, yes)
				know := func() {
					b.ledger.mu.Lock()
					defer b.ledger.mu.Unlock()
					b.ledger.parcel, b.ledger.parcelOf = tt.parcel, mark(tt.parcelOf)
				}
				if tt.late {
					b.upstream.onAdmit = know
				} else {
					know()
				}
				rec := packedRecord("E1", time.Now())
				rec.Value = []byte(strings.TrimSuffix(string(rec.Value), "}") + tt.group + "}")
				p, err := schema.DecodePacked(rec)
				if err != nil {
					t.Fatal(err)
				}
				if err := b.shipper.Handle(t.Context(), b.gate, rec, p, nil); err != nil {
					t.Fatal(err)
				}
				o := b.publisher.published[0].Outcome
				if !tt.refused {
					if o.Verdict != schema.Shipped || b.upstream.calls != 1 || b.ledger.group != p.GroupMark() {
						t.Errorf("%s %s, %d calls, kept for group %q; want it shipped and kept for %q", o.Verdict, o.Reason, b.upstream.calls, b.ledger.group, p.GroupMark())
					}
					return
				}
				if o.Reason != "local_validation" || o.MaybeShipped || b.upstream.calls != 0 || b.upstream.left != b.upstream.admitted {
					t.Errorf("%s %s, maybe shipped %t, %d calls, %d of %d turns left", o.Verdict, o.Reason, o.MaybeShipped, b.upstream.calls, b.upstream.left, b.upstream.admitted)
				}
				want := []schema.Violation{{
					Rule: "V07", Field: "out_sid",
					Message: "out_sid SF1234567890123 is the number of order 3, which is of another order_group: are two labels swapped?",
				}}
				if diff := cmp.Diff(want, decodeResult(t, o).Violations); diff != "" {
					t.Errorf("violations (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// TestShipperReportsAllRules sees that rules V07 and V26 stand among those that an
// event breaks by itself.
func TestShipperReportsAllRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(nil, yes)
		b.ledger.knows(t, "11", "W1", true)
		b.ledger.parcel, b.ledger.parcelOf = "3", "north"
		b.upstream.violations = []schema.Violation{{Rule: "V05", Field: "out_sid", Message: "no"}, {Rule: "V09", Field: "company_code", Message: "no"}}
		rec, p := part(t, "11", "W9")
		p.OrderGroup = "south"
		if err := b.shipper.Handle(t.Context(), b.gate, rec, p, nil); err != nil {
			t.Fatal(err)
		}
		var rules []string
		for _, v := range decodeResult(t, b.publisher.published[0].Outcome).Violations {
			rules = append(rules, v.Rule)
		}
		if diff := cmp.Diff([]string{"V05", "V07", "V09", "V26"}, rules); diff != "" || len(b.upstream.violations) != 2 {
			t.Errorf("rules (-want +got):\n%s", diff)
		}
	})
}

// TestShipperAfterALoss: what the ledger may have forgotten is not called for;
// what was packed after the loss is.
func TestShipperAfterALoss(t *testing.T) {
	for name, tt := range map[string]struct {
		lost  time.Duration // before the event was packed
		round int
		calls int
	}{
		"packed before it":                      {-time.Second, 1, 0},
		"packed after it":                       {time.Second, 1, 1},
		"packed before it, and something known": {0, 2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(nil, yes)
				b.ledger.standing.Round = tt.round
				if tt.lost != 0 {
					b.ledger.standing.LostBefore = time.Now().Add(-tt.lost)
				}
				if err := b.handle(t, t.Context(), "E1"); err != nil {
					t.Fatal(err)
				}
				o := b.publisher.published[0].Outcome
				if b.upstream.calls != tt.calls {
					t.Errorf("%d calls, want %d", b.upstream.calls, tt.calls)
				}
				if forgotten := tt.calls == 0; forgotten != (o.Reason == "outcome_unknown" && o.MaybeShipped && o.Class == "needs_human") {
					t.Errorf("got %s %s, maybe shipped %t", o.Verdict, o.Reason, o.MaybeShipped)
				}
			})
		})
	}
}

// TestShipperLooksAgain: an outcome that is gone by the time it is read is no
// outcome.
func TestShipperLooksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(nil, yes)
		b.ledger.storedErrs = []error{errors.New("gone")}
		begin := time.Now()
		if err := b.handle(t, t.Context(), "E1"); err != nil {
			t.Fatal(err)
		}
		if len(b.publisher.published) != 1 || b.upstream.calls != 1 || time.Since(begin) != mishapPause {
			t.Errorf("%d publications, %d calls after %s; want one each, after a pause", len(b.publisher.published), b.upstream.calls, time.Since(begin))
		}
	})
}
