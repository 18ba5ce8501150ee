package operate

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"packship/cmd/internal/app"
	"packship/schema"
	"packship/upstream/upstreamtest"
)

// redrive plans, and carries out if asked for.
func (w *world) redrive(f RedriveFilter, execute bool) *Redrive {
	w.t.Helper()
	o := w.operator()
	p, err := o.PlanRedrive(w.t.Context(), f)
	if err != nil {
		w.t.Fatal(err)
	}
	if execute {
		if err := o.Redrive(w.t.Context(), p); err != nil {
			w.t.Fatal(err)
		}
	}
	return p
}

// why maps the orders of a plan to why they are refused, "" if they are not.
func (p *Redrive) why() map[string]Refused {
	m := map[string]Refused{}
	for _, o := range p.Orders {
		key := o.TID
		for m[key] != "" {
			key += "'"
		}
		m[key] = o.Refused
	}
	return m
}

// breaker breaks a work off after so many steps of its last part.
type breaker struct {
	silent

	stop  context.CancelFunc
	after int
	what  string
	done  atomic.Int64
}

func (b *breaker) Begin(what string, _ int64) { b.what = what }

func (b *breaker) Add(n int) {
	if b.what == "sending" && int(b.done.Add(int64(n))) == b.after {
		b.stop()
	}
}

// TestRedriveResumed breaks a redrive off half-way and runs it again, beside a
// running connector and without one: no order is called for more than once more.
func TestRedriveResumed(t *testing.T) {
	w := newWorld(t)
	const n = 20
	for tid := 1; tid <= n; tid++ {
		times := 1
		if tid > n-3 {
			times = 2 // these fail again
		}
		w.fault(upstreamtest.AnyRow(35), tid, times)
		w.produce(packedEvent(tid, fmt.Sprintf(`,"extra":{"n":%d}`, tid)))
	}
	w.settled()
	before := w.count()
	if before.calls != n || before.failed != n {
		t.Fatalf("%+v, want %d failures", before, n)
	}

	dry := w.redrive(RedriveFilter{}, false)
	if dry.Found != n || dry.Selected != n || dry.Refused != 0 || dry.Calls != n || dry.Points != n || dry.Seconds != 0.2 || dry.Executed || dry.Sent != 0 ||
		len(dry.Reasons) != 1 || dry.Reasons[0] != (RedriveReason{"waybill_already_used", "waybill_rejected", n, n, 0}) {
		t.Errorf("dry run: %+v", dry)
	}
	if w.count() != before {
		t.Fatal("a dry run has changed something")
	}

	// Broken off.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	broken := New(&w.settings, w.kafka, &breaker{stop: cancel, after: n / 2})
	plan, err := broken.PlanRedrive(ctx, RedriveFilter{PerSecond: 1000})
	if err != nil {
		t.Fatal(err)
	}
	err = broken.Redrive(ctx, plan)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("redrive: stopped after %d of %d events", plan.Sent, n)) || plan.Sent < n/2 || plan.Sent == n {
		t.Fatalf("broken off: %v, %d sent", err, plan.Sent)
	}
	sent := w.count().since(before).packed // one or two more may be there without a word
	if sent < plan.Sent || sent > n {
		t.Fatalf("%d events in the topic, and %d sent", sent, plan.Sent)
	}

	// Before a connector has seen them: what waits is left out.
	if p := w.redrive(RedriveFilter{}, false); p.Selected != n-sent || p.Refused != sent || p.Refusals[0].Why != RefusedSent {
		t.Errorf("what waits: %d selected, refusals %+v; want %d selected, %d sent", p.Selected, p.Refusals, n-sent, sent)
	}
	// With a connector that works on them.
	stop := w.start()
	if p := w.redrive(RedriveFilter{}, true); p.Selected > n-sent {
		t.Errorf("the second run has sent %d events, want at most %d", p.Selected, n-sent)
	}
	w.committed()
	stop()
	w.redrive(RedriveFilter{}, true)
	w.settled()

	calls := w.count().calls
	if got := w.count().since(before).packed; got != n {
		t.Errorf("%d packed events, want %d", got, n)
	}
	for tid := 1; tid <= n; tid++ {
		if got := w.callsOf(tid); got != 2 {
			t.Errorf("order %d was called for %d times, want 2", tid, got)
		}
	}
	if shipped := w.results(w.settings.TopicShipped); len(shipped) != n-3 {
		t.Errorf("%d orders are shipped, want %d", len(shipped), n-3)
	}

	// Once more: what is shipped stays so, and what has failed again is not
	// tried a third time unless somebody insists or changes something.
	p := w.redrive(RedriveFilter{}, true)
	got := map[Refused]int{}
	for _, r := range p.Refusals {
		got[r.Why] = r.Count
	}
	if diff := cmp.Diff(map[Refused]int{RefusedShipped: n - 3, RefusedSuperseded: 3, RefusedSentBefore: 3}, got); diff != "" || p.Selected != 0 || w.count().calls != calls {
		t.Errorf("once more: %d selected, %d calls; refusals (-want +got):\n%s", p.Selected, w.count().calls-calls, diff)
	}
	change, err := ParseChange("out_sid=SF9999999999999")
	if err != nil {
		t.Fatal(err)
	}
	if p := w.redrive(RedriveFilter{TIDs: []string{fmt.Sprint(n)}, Set: []Change{change}}, true); p.Sent != 1 {
		t.Errorf("with another waybill: %+v", p)
	}
	if p := w.redrive(RedriveFilter{TIDs: []string{fmt.Sprint(n - 1)}, Force: true}, true); p.Sent != 1 {
		t.Errorf("with force: %+v", p)
	}
	w.settled()
	shipped := w.results(w.settings.TopicShipped)
	if r := shipped[fmt.Sprint(n)]; len(r) != 1 || r[0].OutSID != "SF9999999999999" || len(shipped) != n-1 {
		t.Errorf("with another waybill: %+v", r)
	}
	w.verify()

	// The events that were sent are the original ones in all but name.
	for _, rec := range w.topic(w.settings.TopicPacked) {
		p, err := schema.DecodePacked(rec)
		if err != nil {
			t.Fatal(err)
		}
		id, marked := rec.Header("redrive_of")
		if !marked {
			continue
		}
		if p.EventID != "redrive-"+id || !strings.Contains(string(rec.Value), `"redrive_of":"`+id+`"`) ||
			!strings.Contains(string(rec.Value), fmt.Sprintf(`"extra":{"n":%s}`, p.TID)) || string(rec.Key) != p.TID {
			t.Errorf("sent again: %s with key %s", rec.Value, rec.Key)
		}
	}
}

// TestRedriveRefuses has orders in every state that must not be sent again.
func TestRedriveRefuses(t *testing.T) {
	w := newWorld(t, func(s *app.Settings) { s.UnknownPolicy = "park" })
	other := func(tid int, extra string) string { // the same order with another waybill, packed anew
		return strings.Replace(strings.Replace(packedEvent(tid, extra), "SF000", "SF777", 1), "evt-", "evt-b-", 1)
	}
	again := func(tid int, extra string) string {
		return strings.Replace(packedEvent(tid, extra), "evt-", "evt-c-", 1)
	}
	split := func(n int) string { return fmt.Sprintf(`,"is_split":1,"sub_tid":"%d"`, n) }
	for _, tid := range []int{1, 2, 3, 6, 7, 8, 9} {
		w.fault(upstreamtest.AnyRow(35), tid, 1)
	}
	w.fault(upstreamtest.AnyRow(59), 4, 1)                                    // the order is closed
	w.fault(upstreamtest.ApplyThenHang, 5, 1)                                 // nobody knows
	w.fault(upstreamtest.AnyRow(35), 10, 2)                                   // two parcels of one order
	w.fault(upstreamtest.AnyRow(35), 11, 2)                                   // twice
	w.produce(packedEvent(1, ""), again(1, ""))                               // fails, and is shipped by the second event
	w.produce(packedEvent(2, ""), other(2, ""))                               // and with another waybill
	w.produce(packedEvent(3, ""))                                             // to be sent
	w.produce(packedEvent(4, ""))                                             // closed
	w.produce(packedEvent(5, ""))                                             // perhaps shipped
	w.produce(strings.Replace(packedEvent(6, ""), "SF0000000000006", "!", 1)) // invalid
	w.produce(packedEvent(7, split(71)), other(7, split(72)))                 // one parcel of two fails
	w.produce(packedEvent(8, ""))                                             // packed again, below
	w.produce(packedEvent(9, ""))                                             // called for by somebody, below
	w.produce(packedEvent(10, split(101)), other(10, split(102)))
	w.produce(packedEvent(11, ""), again(11, ""))
	w.settled()
	w.produce(other(8, ""))
	w.claim(strings.Replace(packedEvent(9, ""), "evt-", "evt-d-", 1))

	before := w.count()
	p := w.redrive(RedriveFilter{}, false)
	want := map[string]Refused{
		"1": RefusedShipped, "2": RefusedOrderShipped, "3": "", "4": RefusedNotRedrivable, "5": RefusedMaybeShipped,
		"6": RefusedInvalid, "7": "", "8": RefusedSuperseded, "9": RefusedUnderWay, "10": "", "11": RefusedSuperseded, "11'": "",
	}
	got := p.why()
	// Two parcels of order 10 are both to be sent.
	if n := slices.IndexFunc(p.Orders, func(o RedriveOrder) bool { return o.TID == "10" }); n < 0 || p.Selected != 5 {
		t.Errorf("%d selected, want 5: orders 3, 7, 11 and both parcels of 10", p.Selected)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, o := range p.Orders {
		if o.Refused == RefusedInvalid && !strings.Contains(o.Detail, "V05") {
			t.Errorf("invalid: %q names no rule", o.Detail)
		}
	}

	// Nor is a waybill number for two.
	waybill, err := ParseChange("out_sid=SF7777777777777")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.operator().PlanRedrive(t.Context(), RedriveFilter{TIDs: []string{"10"}, Set: []Change{waybill}}); err == nil || !strings.Contains(err.Error(), "would give 2 parcels the same value") {
		t.Errorf("one waybill number for two parcels: %v", err)
	}

	// What is shipped is not sent under another waybill number either, whoever insists.
	p = w.redrive(RedriveFilter{TIDs: []string{"1"}, Set: []Change{waybill}, Force: true}, false)
	if diff := cmp.Diff(map[string]Refused{"1": RefusedShipped}, p.why()); diff != "" {
		t.Errorf("shipped, with another waybill number (-want +got):\n%s", diff)
	}

	// What may be shipped is so by its result, too, when the ledger has forgotten it.
	forgetful := w.settings
	forgetful.TopicLedger += "-new"
	k := app.NewKafka(&forgetful, nil, forgetful.Topics()...)
	defer k.Close()
	if _, err := k.CreateTopics(t.Context(), testPartitions, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another ledger", func() bool { return k.CheckTopics(t.Context(), app.RightsToRun) == nil })
	p, err = New(&forgetful, k, nil).PlanRedrive(t.Context(), RedriveFilter{TIDs: []string{"5"}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]Refused{"5": RefusedMaybeShipped}, p.why()); diff != "" {
		t.Errorf("forgotten by the ledger (-want +got):\n%s", diff)
	}

	// A correction that could be about two parcels is about none.
	table := func(text string) *Corrections {
		t.Helper()
		c, err := ParseCorrections([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	parcels := w.redrive(RedriveFilter{Corrections: table("tid,vvtype\n10,2\n")}, false)
	if diff := cmp.Diff(map[string]Refused{"10": RefusedAmbiguous, "10'": RefusedAmbiguous}, parcels.why()); diff != "" {
		t.Errorf("ambiguous (-want +got):\n%s", diff)
	}
	one := w.redrive(RedriveFilter{Corrections: table("tid,vvtype,result_id\n10,2," + parcels.Orders[0].ResultID + "\n")}, false)
	if one.Found != 1 || one.Selected != 1 || one.Orders[0].ResultID != parcels.Orders[0].ResultID {
		t.Errorf("by result_id: %+v", one)
	}

	p = w.redrive(RedriveFilter{Force: true}, false)
	for _, tid := range []string{"2", "4", "5"} {
		want[tid] = ""
	}
	if diff := cmp.Diff(want, p.why()); diff != "" {
		t.Errorf("with force (-want +got):\n%s", diff)
	}

	// Everything refused is no error, and says so.
	p = w.redrive(RedriveFilter{TIDs: []string{"1", "2"}}, true)
	if p.Found != 2 || p.Refused != 2 || p.Sent != 0 || w.count() != before {
		t.Errorf("all refused: %+v", p)
	}

	// What may be shipped is sent on purpose, and the API's answer is taken
	// for the proof that it was.
	p = w.redrive(RedriveFilter{MaybeShipped: true, Force: true}, true)
	if p.Sent != 1 {
		t.Fatalf("maybe shipped: %+v", p)
	}
	w.settled()
	if r := w.results(w.settings.TopicShipped)["5"]; len(r) != 1 || !r[0].Reconciled {
		t.Errorf("order 5: %+v, want one reconciled result", r)
	}
	if p := w.redrive(RedriveFilter{TIDs: []string{"5"}, Force: true}, true); p.Sent != 0 || p.Refusals[0].Why != RefusedShipped {
		t.Errorf("order 5 once more: %+v", p)
	}
}

// TestRedriveParts has orders fail that were then packed again in other parcels:
// what was packed last counts, be it the parts of an order or the whole.
func TestRedriveParts(t *testing.T) {
	w := newWorld(t)
	split := func(n int) string { return fmt.Sprintf(`,"is_split":1,"sub_tid":"%d"`, n) }
	later := func(tid int, event, extra string) string {
		return strings.Replace(strings.Replace(packedEvent(tid, extra), "SF000", "SF777", 1), "evt-", event, 1)
	}
	w.fault(upstreamtest.AnyRow(35), 1, 3)
	w.fault(upstreamtest.AnyRow(35), 2, 1)
	w.fault(upstreamtest.AnyRow(35), 3, 2)
	w.fault(upstreamtest.AnyRow(35), 4, 1)
	w.produce(packedEvent(1, ""), later(1, "b-", split(11)), later(1, "c-", split(12))) // the whole, then its parts
	w.produce(packedEvent(2, ""))                                                       // the whole, and a part waits, below
	w.produce(packedEvent(3, split(31)), later(3, "b-", ""))                            // a part, then the whole
	w.produce(packedEvent(4, split(41)))                                                // a part, and another waits, below
	w.settled()
	w.produce(later(2, "b-", split(21)), later(4, "b-", split(42)))

	p := w.redrive(RedriveFilter{}, true)
	want := map[string]Refused{"1": RefusedSuperseded, "1'": "", "2": RefusedSuperseded, "3": RefusedSuperseded, "3'": "", "4": ""}
	if diff := cmp.Diff(want, p.why()); diff != "" || p.Sent != 4 {
		t.Errorf("%d sent, want both parts of 1, the whole 3, and the part of 4 (-want +got):\n%s", p.Sent, diff)
	}
	w.settled()
	got := map[string][]string{}
	for tid, results := range w.results(w.settings.TopicShipped) {
		for _, r := range results {
			got[tid] = append(got[tid], strings.Join(r.SubTID, ",")+" "+r.OutSID)
		}
		slices.Sort(got[tid])
	}
	shipped := map[string][]string{
		"1": {"11 SF7770000000001", "12 SF7770000000001"}, "2": {"21 SF7770000000002"}, "3": {" SF7770000000003"},
		"4": {"41 SF0000000000004", "42 SF7770000000004"},
	}
	if diff := cmp.Diff(shipped, got); diff != "" {
		t.Errorf("shipped (-want +got):\n%s", diff)
	}
	w.verify()
}

// TestFollower tells which of two failures of some of the same items is later,
// also if both are of one millisecond, as those are that need no call.
func TestFollower(t *testing.T) {
	const early, late = "2026-11-24T12:00:00.000Z", "2026-11-24T12:00:00.001Z"
	failed := func(id, at string, sub ...string) schema.Result {
		r := schema.Result{ResultID: id, OccurredAt: at, ShopID: "1", TID: "2", SubTID: sub}
		if len(sub) > 0 {
			r.IsSplit = 1
		}
		return r
	}
	for name, tt := range map[string]struct {
		read []schema.Result
		want []string // the follower of each
	}{
		"a part later":           {[]schema.Result{failed("a", early), failed("b", late, "7")}, []string{"b", ""}},
		"read the other way":     {[]schema.Result{failed("a", late), failed("b", early, "7")}, []string{"", "a"}},
		"at the same time":       {[]schema.Result{failed("a", early), failed("b", early, "7")}, []string{"b", ""}},
		"others":                 {[]schema.Result{failed("a", early, "7"), failed("b", late, "8")}, []string{"", ""}},
		"the same, then another": {[]schema.Result{failed("a", early, "7"), failed("b", early, "7", "8"), failed("c", early, "7")}, []string{"c", "c", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			s := selection{newest: map[order][]failure{}}
			var got []string
			for i := range tt.read {
				s.follow(&tt.read[i])
			}
			for i := range tt.read {
				got = append(got, s.follower(&tt.read[i]))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// during does something when a part of a work begins.
type during struct {
	silent

	what string
	do   func()
}

func (d *during) Begin(what string, _ int64) {
	if strings.Contains(what, d.what) {
		d.do()
	}
}

// TestRedriveMeanwhile has an order packed again with another waybill number, and
// shipped or refused, while a redrive is planned: whenever that is, the first
// failure is not sent again.
func TestRedriveMeanwhile(t *testing.T) {
	for _, tt := range []struct {
		what  string // is read when the order is packed again
		fails int    // how many of the two events
	}{
		{"shipment-failed", 1},
		{"reading the ledger", 1},
		{"order.shipped", 1},
		{"shipment-failed", 2},
		{"reading the ledger", 2},
		{"order.shipped", 2},
	} {
		t.Run(fmt.Sprintf("%s/%d fail", tt.what, tt.fails), func(t *testing.T) {
			w := newWorld(t)
			w.fault(upstreamtest.AnyRow(35), 1, tt.fails)
			w.produce(packedEvent(1, ""))
			w.settled()
			again := strings.NewReplacer("SF000", "SF777", "evt-", "evt-b-").Replace(packedEvent(1, ""))
			o := New(&w.settings, w.kafka, &during{what: tt.what, do: func() { w.produce(again); w.settled() }})
			p, err := o.PlanRedrive(t.Context(), RedriveFilter{})
			if err != nil {
				t.Fatal(err)
			}
			if p.Selected != 0 {
				t.Errorf("%+v, want it refused", p)
			}
		})
	}
}

// TestRedriveFilters selects by each filter.
func TestRedriveFilters(t *testing.T) {
	w := newWorld(t)
	inShop := func(shop string, tid int) string {
		return strings.Replace(packedEvent(tid, ""), testShop, shop, 1)
	}
	for tid := 1; tid <= 4; tid++ {
		w.fault(upstreamtest.AnyRow(35), tid, 1)
	}
	w.produce(inShop("a", 1), inShop("b", 2), inShop("b", 3))
	w.settled()
	middle := time.Now()
	w.produce(inShop("c", 4), strings.Replace(inShop("c", 5), `"SF"`, `""`, 1))
	w.settled()
	set := func(assignment string) []Change {
		c, err := ParseChange(assignment)
		if err != nil {
			t.Fatal(err)
		}
		return []Change{c}
	}
	table := func(text string) *Corrections {
		c, err := ParseCorrections([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	tests := map[string]struct {
		filter RedriveFilter
		want   map[string]Refused
	}{
		"all":         {RedriveFilter{}, map[string]Refused{"1": "", "2": "", "3": "", "4": "", "5": RefusedInvalid}},
		"shop":        {RedriveFilter{Shops: []string{"a", "c"}}, map[string]Refused{"1": "", "4": "", "5": RefusedInvalid}},
		"reason":      {RedriveFilter{Reasons: []string{"local_validation"}}, map[string]Refused{"5": RefusedInvalid}},
		"class":       {RedriveFilter{Classes: []string{"waybill_rejected"}, TIDs: []string{"3", "5"}}, map[string]Refused{"3": ""}},
		"since":       {RedriveFilter{Since: middle}, map[string]Refused{"4": "", "5": RefusedInvalid}},
		"until":       {RedriveFilter{Until: middle}, map[string]Refused{"1": "", "2": "", "3": ""}},
		"account":     {RedriveFilter{Accounts: []string{"default"}, Since: middle}, map[string]Refused{"4": "", "5": RefusedInvalid}},
		"none":        {RedriveFilter{MaybeShipped: true}, map[string]Refused{}},
		"limit":       {RedriveFilter{Limit: 1, Since: middle, Reasons: []string{"waybill_already_used"}}, map[string]Refused{"4": ""}},
		"no limit":    {RedriveFilter{Limit: 0, Until: middle, Shops: []string{"b"}}, map[string]Refused{"2": "", "3": ""}},
		"set":         {RedriveFilter{Reasons: []string{"local_validation"}, Set: set("company_code=SF")}, map[string]Refused{"5": ""}},
		"set wrongly": {RedriveFilter{TIDs: []string{"1"}, Set: set("out_sid=")}, map[string]Refused{"1": RefusedInvalid}},
		"corrections": {RedriveFilter{Corrections: table("tid,company_code\n5,YTO\n77,SF\n")}, map[string]Refused{"5": ""}},
	}
	// Several orders must not get the waybill number of one.
	alike := RedriveFilter{Reasons: []string{"waybill_already_used"}, Set: set("out_sid=SF7777777777777")}
	if _, err := w.operator().PlanRedrive(t.Context(), alike); err == nil || !strings.Contains(err.Error(), "--set out_sid would give 4 parcels the same value") {
		t.Errorf("one waybill number for all: %v", err)
	}
	alike.Force = true
	if p := w.redrive(alike, false); p.Selected != 4 {
		t.Errorf("one waybill number for all, by force: %+v", p)
	}
	alike.Force, alike.Corrections = false, table("tid,out_sid\n1,SF0000000000101\n2,\n3,SF0000000000103\n")
	if p := w.redrive(alike, false); p.Selected != 3 {
		t.Errorf("one waybill number for the one that the table has none for: %+v", p)
	}
	if p := w.redrive(RedriveFilter{Reasons: []string{"waybill_already_used"}, PerSecond: 0.5}, false); p.Seconds != 6 {
		t.Errorf("4 events, one every two seconds: %g seconds, want 6", p.Seconds)
	}

	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := w.redrive(tt.filter, false)
			if diff := cmp.Diff(tt.want, p.why()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if p.Found != p.Selected+p.Refused+p.Left || int(p.Calls) != p.Selected {
				t.Errorf("the counts do not add up: %+v", p)
			}
			if name != "corrections" {
				return
			}
			if diff := cmp.Diff([]UnmatchedLine{{3, "77"}}, p.Unmatched); diff != "" {
				t.Errorf("unmatched (-want +got):\n%s", diff)
			}
		})
	}
	if p := w.redrive(RedriveFilter{Limit: 2}, false); p.Selected+p.Refused != len(p.Orders) || p.Selected != 2 || p.Left != 5-len(p.Orders) {
		t.Errorf("limit: %+v", p)
	}
	for what, f := range map[string]RedriveFilter{
		"reason": {Reasons: []string{"local_validation", "of_tomorrow"}},
		"class":  {Classes: []string{"needs_nobody"}},
	} {
		if _, err := w.operator().PlanRedrive(t.Context(), f); err == nil || !strings.Contains(err.Error(), "there is no "+what) {
			t.Errorf("an unknown %s: %v", what, err)
		}
	}
	// Another version may have words of its own: what was published is good.
	w.append(schema.Record{Topic: w.settings.TopicFailed, Key: []byte("9"), Value: []byte(
		`{"result_id":"r9","status":"failed","occurred_at":"2026-11-24T02:00:00.000Z","shop_id":"a","tid":"9","reason":"of_tomorrow","class":"needs_nobody"}`)})
	for _, f := range []RedriveFilter{{Reasons: []string{"of_tomorrow"}}, {Classes: []string{"needs_nobody"}}} {
		if p := w.redrive(f, false); p.Found != 1 {
			t.Errorf("words of another version: %d found, want 1", p.Found)
		}
	}
	if _, err := w.operator().PlanRedrive(t.Context(), RedriveFilter{Accounts: []string{"nobody"}}); err == nil || !strings.Contains(err.Error(), `no account "nobody"; there are default`) {
		t.Errorf("an unknown account: %v", err)
	}
	if p := w.redrive(RedriveFilter{Corrections: table("tid,company_code\n5,YTO\n")}, true); p.Sent != 1 {
		t.Fatalf("corrections: %+v", p)
	}
	w.settled()
	if r := w.results(w.settings.TopicShipped)["5"]; len(r) != 1 || r[0].CompanyCode != "YTO" {
		t.Errorf("order 5: %+v", r)
	}
}

// TestRedriveWithoutOriginal has the packed event of a failure gone.
func TestRedriveWithoutOriginal(t *testing.T) {
	w := newWorld(t)
	if w.cluster == nil {
		t.Skip("makes topics of its own")
	}
	w.fault(upstreamtest.AnyRow(35), 1, 1)
	w.produce(packedEvent(1, ""))
	w.settled()
	moved := w.settings
	moved.TopicPacked += "-moved" // nothing is at the place that the result names
	k := app.NewKafka(&moved, nil, moved.Topics()...)
	t.Cleanup(k.Close)
	if _, err := k.CreateTopics(t.Context(), testPartitions, 1); err != nil {
		t.Fatal(err)
	}
	var p *Redrive
	eventually(t, "planned", func() bool {
		var err error
		p, err = New(&moved, k, nil).PlanRedrive(t.Context(), RedriveFilter{Force: true})
		return err == nil
	})
	if diff := cmp.Diff(map[string]Refused{"1": RefusedGone}, p.why()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestEveryRefusalIsExplained holds the texts to the names.
func TestEveryRefusalIsExplained(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range []Refused{
		RefusedShipped, RefusedOrderShipped, RefusedMaybeShipped, RefusedUnderWay, RefusedSuperseded, RefusedSent, RefusedSentBefore,
		RefusedNotRedrivable, RefusedInvalid, RefusedNotServed, RefusedGone, RefusedUnchangeable, RefusedAmbiguous,
	} {
		if text := r.Meaning(); text == string(r) || seen[text] {
			t.Errorf("%s is not explained", r)
		}
		seen[r.Meaning()] = true
	}
	if n := len(slices.Collect(maps.Keys(seen))); n != 13 {
		t.Errorf("%d explanations", n)
	}
}
