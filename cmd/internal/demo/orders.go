package demo

import (
	"encoding/json"
	"fmt"

	"packship/schema"
	"packship/upstream/upstreamtest"
)

// sample is one record that is produced to the packed topic.
type sample struct {
	key    string
	value  []byte
	expect expectation
}

// expectation is what must come of a record.
type expectation string

// What must come of a record, beside a failure with a certain reason.
const (
	expectShipped    expectation = "shipped"
	expectDeadLetter expectation = "dead letter"
)

// expectFailed is a failure with a reason.
func expectFailed(reason string) expectation { return expectation("failed: " + reason) }

const (
	demoShop  = "102030405"
	demoToken = "demo-token"
)

// script is the sample orders and what goes wrong with them at the API.
type script struct {
	samples []sample
	faults  []upstreamtest.Fault
	next    int64 // order id
}

// newScript writes the script: some 120 orders, in such an order that what takes
// long begins early.
func newScript() *script {
	s := &script{next: 3_941_893_279_420_000_000}

	s.plain(8)
	// Four calls are executed and never answered.
	for range 4 {
		s.troubled(upstreamtest.ApplyThenHang, 1, expectShipped)
	}
	// Two are cut off before they have done anything.
	for range 2 {
		s.troubled(upstreamtest.ResetAfterRead, 1, expectShipped)
	}
	// What the platform refuses for good.
	for _, refusal := range []struct {
		row    int
		reason string
	}{
		{35, "waybill_already_used"},
		{30, "waybill_flagged_fake"},
		{13, "logistics_order_not_found"},
		{25, "carrier_not_self_contact"},
		{59, "logistics_order_closed"},
		{51, "shipping_type_mismatch"},
		{33, "waybill_receiver_address_mismatch"},
		{31, "waybill_expired"},
	} {
		s.troubled(upstreamtest.AnyRow(refusal.row), 0, expectFailed(refusal.reason))
		s.plain(3)
	}
	// What it asks to try again later.
	for range 3 {
		s.troubled(upstreamtest.AnyRow(55), 1, expectShipped)
	}
	s.invalid()
	s.malformed()
	s.split()
	s.plain(70)
	s.repeated()
	return s
}

// id returns the next order id.
func (s *script) id() string {
	s.next++
	return fmt.Sprint(s.next)
}

// add adds a packed event.
func (s *script) add(expect expectation, fields map[string]any) {
	value, err := json.Marshal(fields)
	if err != nil {
		panic(err) // a map of strings and numbers
	}
	s.samples = append(s.samples, sample{key: fmt.Sprint(fields["tid"]), value: value, expect: expect})
}

// parcel returns a packed event that nothing is wrong with.
func parcel(tid string) map[string]any {
	return map[string]any{
		"event_id": "evt-" + tid, "shop_id": demoShop, "tid": tid, "out_sid": "SF" + tid[len(tid)-13:], "company_code": "SF",
	}
}

// plain adds orders that go well.
func (s *script) plain(n int) {
	for range n {
		s.add(expectShipped, parcel(s.id()))
	}
}

// troubled adds an order whose first calls, or all if count is 0, go wrong.
func (s *script) troubled(kind upstreamtest.FaultKind, count int, expect expectation) {
	tid := s.id()
	s.faults = append(s.faults, upstreamtest.Fault{Kind: kind, TID: tid, Count: count})
	s.add(expect, parcel(tid))
}

// invalid adds events that break a rule, for which no call is paid.
func (s *script) invalid() {
	for _, spoil := range []func(map[string]any){
		func(p map[string]any) { p["out_sid"] = "" },
		func(p map[string]any) { p["company_code"] = "OTHER" },
		func(p map[string]any) { p["is_split"] = 1 },
		func(p map[string]any) { p["vvtype"] = 9 },
	} {
		p := parcel(s.id())
		spoil(p)
		s.add(expectFailed("local_validation"), p)
	}
}

// malformed adds records that are no packed event.
func (s *script) malformed() {
	s.samples = append(s.samples, sample{key: "nonsense", value: []byte("{this is no JSON"), expect: expectDeadLetter})
	p := parcel(s.id())
	p["tid"] = json.Number("3.9e18") // as a spreadsheet spoils it
	s.add(expectDeadLetter, p)
}

// split adds an order in two parcels.
func (s *script) split() {
	tid := s.id()
	for part := 1; part <= 2; part++ {
		p := parcel(tid)
		p["event_id"] = fmt.Sprintf("evt-%s-%d", tid, part)
		p["out_sid"] = fmt.Sprintf("SF%d%s", part, tid[len(tid)-12:])
		p["is_split"], p["sub_tid"] = 1, fmt.Sprintf("%s%d", tid[2:], part)
		s.add(expectShipped, p)
	}
}

// repeated adds exact copies of earlier events, and earlier shipments under new
// event ids: none of them causes a call.
func (s *script) repeated() {
	for i := range 3 {
		s.samples = append(s.samples, s.samples[i])
	}
	for i := 3; i < 5; i++ {
		var p map[string]any
		if err := json.Unmarshal(s.samples[i].value, &p); err != nil {
			panic(err) // it was encoded above
		}
		p["event_id"] = fmt.Sprint(p["event_id"], "-again")
		s.add(expectShipped, p)
	}
}

// count returns how many different orders and events there are in the script. A
// record that is no event counts as one.
func (s *script) count() (orders, events int) {
	tids, ids := map[string]bool{}, map[string]bool{}
	for _, sample := range s.samples {
		p, err := schema.DecodePacked(&schema.Record{Value: sample.value})
		if err != nil {
			events++
			continue
		}
		tids[p.TID], ids[p.EventID] = true, true
	}
	return len(tids), events + len(ids)
}
