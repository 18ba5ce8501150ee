package life

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"packship/producer/ledger"
	"packship/schema"
)

const tid = "3941893279420000001"

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// history builds what is found of an order, a second at a time.
type history struct {
	t      *testing.T
	now    time.Time
	offset int64
	found  Found
}

func newHistory(t *testing.T) *history {
	t.Helper()
	return &history{t: t, now: noon, found: Found{TID: tid, LedgerTopic: "ledger"}}
}

func (h *history) tick() time.Time {
	h.now = h.now.Add(time.Second)
	h.offset++
	return h.now
}

func parcel(waybill string, items ...string) schema.Shipment {
	s := schema.Shipment{ShopID: "s", TID: tid, Split: "0", OutSID: waybill, CompanyCode: "SF"}
	if len(items) > 0 {
		s.Split, s.SubTID = "1", items
	}
	return s
}

// step adds a record of the ledger that counts.
func (h *history) step(kind string, s schema.Shipment, event string) *ledger.Step {
	at := h.tick()
	h.found.Steps = append(h.found.Steps, ledger.Step{
		Time: at, Offset: h.offset, Kind: kind, Shipment: s, Counts: true, Event: event, Round: 1,
		Attempt: fmt.Sprintf("host-a/0/%d", h.offset),
	})
	return &h.found.Steps[len(h.found.Steps)-1]
}

// outcome is that of a shipment, with its event.
func (h *history) outcome(s schema.Shipment, event string, failure *schema.Failure, reconciled bool) *schema.Outcome {
	r := schema.Result{ShopID: s.ShopID, TID: s.TID, OutSID: s.OutSID, CompanyCode: s.CompanyCode, SubTID: s.SubTID, Reconciled: reconciled, Failure: failure, Source: schema.Source{EventID: event}}
	if s.Split == "1" {
		r.IsSplit = 1
	}
	o, err := r.Outcome(&s, 1, h.now)
	if err != nil {
		h.t.Fatal(err)
	}
	return &o
}

// settle adds an intent and its outcome.
func (h *history) settle(s schema.Shipment, event string, failure *schema.Failure) {
	h.step(ledger.StepIntent, s, event)
	step := h.step(ledger.StepOutcome, s, event)
	step.Outcome = h.outcome(s, event, failure, false)
}

func (h *history) packed(s schema.Shipment, event string, ahead int64) {
	h.found.Packed = append(h.found.Packed, Packed{
		Packed: &schema.Packed{EventID: event, TID: s.TID, ShopID: s.ShopID, Shipment: s},
		Record: &schema.Record{Topic: "packed", Partition: 3, Offset: h.offset, Time: h.tick()}, Ahead: ahead,
	})
}

func (h *history) publish(o *schema.Outcome, event string) {
	h.found.Published = append(h.found.Published, &schema.Record{
		Topic: "results", Offset: h.offset, Time: h.tick(), Value: o.Event,
		Headers: []schema.Header{{Key: "ce_id", Value: []byte(o.ResultID)}, {Key: "in_reply_to", Value: []byte(event)}},
	})
}

func refusal() *schema.Failure {
	return &schema.Failure{Reason: "waybill_already_used", Class: "waybill_rejected", Redrivable: true, Advice: "Get a new waybill."}
}

// TestStanding says where an order stands, in every state that it may be in.
func TestStanding(t *testing.T) {
	a, b := parcel("A"), parcel("B")
	tests := map[string]struct {
		tell func(h *history)
		want string
	}{
		"nothing":     {func(*history) {}, "nothing is known of order " + tid},
		"waiting":     {func(h *history) { h.packed(a, "e", 7) }, "waits in partition 3 of packed with 7 records before it; see on /api/status whether a replica is active, and what holds it up"},
		"passed over": {func(h *history) { h.packed(a, "e", -1) }, "packed, but neither ledger nor results know of it: it is older than they remember, or its shop belongs to another deployment; look it up at the platform before anything is sent"},
		"held":        {func(h *history) { h.step(ledger.StepIntent, a, "e") }, "held since 2026-11-24T12:00:01.000Z by host-a: a call is under way or has no known outcome; packship goes on with it by itself as long as a replica runs, so do not ship it by hand"},
		"released": {func(h *history) {
			h.step(ledger.StepIntent, a, "e")
			h.step(ledger.StepRelease, a, "e").Why = "throttled"
		}, "waits to be called for: its last attempt, at 2026-11-24T12:00:02.000Z, reached nothing (throttled); packship tries again by itself, and /api/status says what holds it up"},
		"shipped": {func(h *history) { h.settle(a, "e", nil) }, "shipped at 2026-11-24T12:00:02.000Z with waybill A; nothing to do"},
		"shipped, not published": {func(h *history) {
			h.packed(a, "e", 0)
			h.settle(a, "e", nil)
		}, "shipped at 2026-11-24T12:00:03.000Z with waybill A; its result is not published yet: /api/status says what holds that up"},
		"shipped, published to another event": {func(h *history) {
			h.packed(a, "e", 0)
			h.settle(a, "e", nil)
			h.publish(h.outcome(a, "e", nil, false), "e0")
		}, "shipped at 2026-11-24T12:00:03.000Z with waybill A; its result is not published yet: /api/status says what holds that up"},
		"shipped and published, not committed": {func(h *history) {
			h.packed(a, "e", 0)
			h.settle(a, "e", nil)
			h.publish(h.outcome(a, "e", nil, false), "e")
		}, "shipped at 2026-11-24T12:00:03.000Z with waybill A; nothing to do"},
		"shipped, publications not searched": {func(h *history) {
			h.packed(a, "e", 0)
			h.settle(a, "e", nil)
			h.found.Unsearched = true
		}, "shipped at 2026-11-24T12:00:03.000Z with waybill A; nothing to do"},
		"failed, not published": {func(h *history) {
			h.packed(a, "e", 0)
			h.settle(a, "e", refusal())
		}, "failed at 2026-11-24T12:00:03.000Z with waybill_already_used (its result is not published yet: /api/status says what holds that up): Get a new waybill; or send it corrected with `packship redrive --tid " + tid + " --set out_sid=WAYBILL --execute`"},
		"a shop in no account": {func(h *history) {
			h.settle(a, "e", &schema.Failure{Reason: "local_validation", Class: "invalid_request", Redrivable: true, Violations: []schema.Violation{{Rule: "V02", Message: "shop s is in no account"}}})
		}, "failed at 2026-11-24T12:00:02.000Z with local_validation (V02 shop s is in no account); put the shop into an account and restart the replicas, then run `packship redrive --tid " + tid + " --execute`, or pack the order anew if its shop_id is wrong"},
		"a shop in no account, and no waybill": {func(h *history) {
			h.settle(a, "e", &schema.Failure{Reason: "local_validation", Class: "invalid_request", Redrivable: true, Violations: []schema.Violation{{Rule: "V02", Message: "no account"}, {Rule: "V04", Message: "no waybill"}}})
		}, "failed at 2026-11-24T12:00:02.000Z with local_validation (V02 no account; V04 no waybill); correct it with `packship redrive --tid " + tid + " --set FIELD=VALUE --execute`"},
		"a parcel of two not published": {func(h *history) {
			h.packed(parcel("A", "1"), "e", 0)
			h.settle(parcel("A", "1"), "e", nil)
			h.settle(parcel("B", "2"), "e2", nil)
		}, "2 parcels: 2 shipped. waybill A: shipped at 2026-11-24T12:00:03.000Z with waybill A; its result is not published yet: /api/status says what holds that up"},
		"reconciled": {func(h *history) {
			h.step(ledger.StepIntent, a, "e")
			h.step(ledger.StepTakeover, a, "e")
			h.step(ledger.StepOutcome, a, "e").Outcome = h.outcome(a, "e", nil, true)
		}, "shipped at 2026-11-24T12:00:03.000Z with waybill A, which the API confirmed after a call that it had not answered; nothing to do"},
		"failed": {func(h *history) { h.settle(a, "e", refusal()) }, "failed at 2026-11-24T12:00:02.000Z with waybill_already_used: Get a new waybill; or send it corrected with `packship redrive --tid " + tid + " --set out_sid=WAYBILL --execute`"},
		"perhaps": {func(h *history) {
			f := refusal()
			f.MaybeShipped = true
			h.settle(a, "e", f)
		}, "failed at 2026-11-24T12:00:02.000Z with waybill_already_used, and may be shipped all the same: look it up at the platform, and only if it is not shipped run `packship redrive --tid " + tid + " --force --execute`"},
		"a carrier": {func(h *history) {
			h.settle(a, "e", &schema.Failure{Reason: "carrier_not_self_contact", Class: "carrier_rejected", Redrivable: true, Advice: "Choose another."})
		}, "failed at 2026-11-24T12:00:02.000Z with carrier_not_self_contact: Choose another; or send it corrected with `packship redrive --tid " + tid + " --set company_code=CARRIER --execute`"},
		"items": {func(h *history) {
			h.settle(a, "e", &schema.Failure{Reason: "sub_tid_missing", Class: "split_mismatch", Redrivable: true, Advice: "Name the items."})
		}, "failed at 2026-11-24T12:00:02.000Z with sub_tid_missing: Name the items; or send it corrected with `packship redrive --tid " + tid + " --set FIELD=VALUE --execute`"},
		"redriven in vain": {func(h *history) {
			h.settle(a, "e", &schema.Failure{Reason: "address_book_entry_invalid", Class: "address", Redrivable: true, Advice: "Correct the address."})
			h.settle(a, "redrive-r", &schema.Failure{Reason: "address_book_entry_invalid", Class: "address", Redrivable: true, Advice: "Correct the address."})
		}, "failed at 2026-11-24T12:00:04.000Z with address_book_entry_invalid, when it was sent again: Correct the address; when that is done run `packship redrive --tid " + tid + " --force --execute`"},
		"hopeless": {func(h *history) {
			h.settle(a, "e", &schema.Failure{Reason: "logistics_order_closed", StopParcel: true})
		}, "failed at 2026-11-24T12:00:02.000Z with logistics_order_closed; stop the parcel, the order may be refunded: no advice is known; sending it again does not help"},
		"invalid": {func(h *history) {
			h.settle(a, "e", &schema.Failure{Reason: "local_validation", Redrivable: true, Violations: []schema.Violation{{Rule: "V04", Message: "out_sid is missing"}}})
		}, "failed at 2026-11-24T12:00:02.000Z with local_validation (V04 out_sid is missing); correct it with `packship redrive --tid " + tid + " --set FIELD=VALUE --execute`"},
		"sent again": {func(h *history) {
			h.settle(a, "e", refusal())
			h.packed(a, "redrive-x", 4)
		}, "failed at 2026-11-24T12:00:02.000Z with waybill_already_used, and was sent again: event redrive-x waits in partition 3 with 4 records before it"},
		"a replay is no new event": {func(h *history) {
			h.settle(a, "e", refusal())
			h.publish(h.outcome(a, "e", refusal(), false), "e")
			h.packed(a, "e", 4)
		}, "failed at 2026-11-24T12:00:02.000Z with waybill_already_used: Get a new waybill; or send it corrected with `packship redrive --tid " + tid + " --set out_sid=WAYBILL --execute`"},
		"tried again and held": {func(h *history) {
			h.settle(a, "e", refusal())
			h.step(ledger.StepIntent, a, "e2")
		}, "held since 2026-11-24T12:00:03.000Z by host-a: a call is under way or has no known outcome; packship goes on with it by itself as long as a replica runs, so do not ship it by hand"},
		"too late": {func(h *history) {
			h.settle(a, "e", nil)
			step := h.step(ledger.StepOutcome, a, "e")
			step.Counts, step.Outcome = false, h.outcome(a, "e", refusal(), false)
		}, "shipped at 2026-11-24T12:00:02.000Z with waybill A; nothing to do"},
		"another waybill": {func(h *history) {
			h.settle(a, "e", refusal())
			h.settle(b, "e2", nil)
		}, "shipped at 2026-11-24T12:00:04.000Z with waybill B; nothing to do"},
		"two waybills failed": {func(h *history) {
			h.settle(a, "e", nil)
			h.settle(b, "e2", nil)
		}, "shipped under more than one waybill (A, B): check at the platform which of them counts, and stop the other parcel"},
		"two parcels": {func(h *history) {
			h.settle(parcel("A", "1"), "e", nil)
			h.settle(parcel("B", "2"), "e2", nil)
		}, "2 parcels: 2 shipped; nothing to do"},
		"one of two parcels": {func(h *history) {
			h.settle(parcel("A", "1"), "e", nil)
			h.packed(parcel("B", "2"), "e2", 0)
		}, "2 parcels: 1 shipped, 1 waiting. waybill B: waits in partition 3 of packed with 0 records before it; see on /api/status whether a replica is active, and what holds it up"},
		"failed whole, shipped in parts": {func(h *history) {
			h.settle(a, "e", refusal())
			h.settle(parcel("B", "1"), "e2", nil)
			h.settle(parcel("C", "2"), "e3", nil)
		}, "2 parcels: 2 shipped; nothing to do"},
		"failed whole, then a part failed": {func(h *history) {
			h.settle(a, "e", refusal())
			h.settle(parcel("B", "1"), "e2", &schema.Failure{Reason: "waybill_expired", Redrivable: true})
		}, "failed at 2026-11-24T12:00:04.000Z with waybill_expired: no advice is known; when that is done run `packship redrive --tid " + tid + " --execute`"},
		"failed in a part, waits as a whole": {func(h *history) {
			h.settle(parcel("A", "1"), "e", refusal())
			h.packed(b, "e2", 1)
		}, "waits in partition 3 of packed with 1 record before it; see on /api/status whether a replica is active, and what holds it up"},
		"failed in one shop, shipped in another": {func(h *history) {
			h.settle(a, "e", refusal())
			elsewhere := parcel("B", "1")
			elsewhere.ShopID = "elsewhere"
			h.settle(elsewhere, "e2", nil)
		}, "2 parcels: 1 shipped, 1 failed. waybill A: failed at 2026-11-24T12:00:02.000Z with waybill_already_used: Get a new waybill; or send it corrected with `packship redrive --tid " + tid + " --set out_sid=WAYBILL --execute`"},
		"other items failed": {func(h *history) {
			h.settle(parcel("A", "1"), "e", refusal())
			h.settle(parcel("B", "2"), "e2", nil)
		}, "2 parcels: 1 shipped, 1 failed. waybill A: failed at 2026-11-24T12:00:02.000Z with waybill_already_used: Get a new waybill; or send it corrected with `packship redrive --tid " + tid + " --set out_sid=WAYBILL --execute`"},
		"forgotten and shipped": {func(h *history) {
			h.packed(a, "e", -1)
			h.publish(h.outcome(a, "e", nil, false), "e")
		}, "shipped at 2026-11-24T12:00:01.000Z with waybill A; nothing to do"},
		"forgotten, and the newest counts": {func(h *history) {
			old := h.outcome(a, "e", refusal(), false)
			h.tick()
			newer := h.outcome(a, "e2", &schema.Failure{Reason: "waybill_expired", Redrivable: true}, false)
			h.publish(newer, "e2")
			h.publish(old, "e") // a replay has published it again
		}, "failed at 2026-11-24T12:00:01.000Z with waybill_expired: no advice is known; when that is done run `packship redrive --tid " + tid + " --execute`"},
		"dead letter": {func(h *history) {
			h.found.DeadLetters = append(h.found.DeadLetters, &schema.Record{Topic: "dlq", Partition: 1, Offset: 7, Time: h.tick(), Headers: []schema.Header{{Key: "packship_reason", Value: []byte("not_json")}}})
		}, "a record that seems to be about the order is no packed event (not_json) and lies in the dead letters: see `packship dlq show 1/7`"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHistory(t)
			tt.tell(h)
			if got := Tell(h.found).Standing; got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestStandingOfReplaced says of a failed shipment that its items are on their way
// in another.
func TestStandingOfReplaced(t *testing.T) {
	h := newHistory(t)
	h.settle(parcel("A"), "e", refusal())
	h.settle(parcel("B", "1"), "e2", nil)
	const want = "failed at 2026-11-24T12:00:02.000Z, and what it was to ship was packed again in other parcels, one of them with waybill B; nothing to do for this one"
	if got := Tell(h.found).Shipments[0].Standing; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestDetail says more of a moment: what the API answered, and where an event
// that was sent again came from.
func TestDetail(t *testing.T) {
	result := func(r schema.Result) Moment {
		r.Status = schema.Shipped
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return Moment{Kind: KindOutcome, Attempt: "host-a/0/7", Verdict: schema.Shipped, ResultID: "r", Result: text}
	}
	answer := &schema.Exchange{HTTPStatus: 200, Code: 614, Msg: "系统异常\x1b", Msec: 12}
	for want, m := range map[string]Moment{
		"shipped, no call, told by host-a, result r":                                                         result(schema.Result{}),
		"shipped, 1 call, answered with HTTP 200, code 614 \"系统异常\\x1b\" in 12 ms, told by host-a, result r": result(schema.Result{Attempts: 1, Upstream: answer}),
		"shipped, 3 calls without an answer that could be read, told by host-a, result r":                    result(schema.Result{Attempts: 3}),
		"the attempt of host-b reached nothing: throttled":                                                   {Kind: KindRelease, Attempt: "host-b/0/1", Why: "throttled"},
		"for event e by host-b from host-a, whose call has no known outcome":                                 {Kind: KindTakeover, EventID: "e", Attempt: "host-b/0/1", Prev: "host-a/0/7"},
		"for event e by host-a from host-a, whose call has no known outcome: \"HTTP 502, \\x1b\"":            {Kind: KindTakeover, EventID: "e", Attempt: "host-a/0/8", Prev: "host-a/0/7", Why: "HTTP 502, \x1b"},
		"event e, sent again for result q, shop s, waybill A, carrier SF":                                    {Kind: KindPacked, Shipment: 1, EventID: "e", RedriveOf: "q"},
		"event e, sent again from dead letter dlq/1/7, shop s, waybill A, carrier SF":                        {Kind: KindPacked, Shipment: 1, EventID: "e", ResentFrom: "dlq/1/7"},
	} {
		s := Story{Shipments: []Shipment{{ShopID: "s", OutSID: "A", CompanyCode: "SF"}}}
		if got := s.Detail(&m); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// TestSuperseded has a try that failed before another one shipped the same items.
func TestSuperseded(t *testing.T) {
	h := newHistory(t)
	h.settle(parcel("A"), "e", refusal())
	h.settle(parcel("B"), "e2", nil)
	s := Tell(h.found)
	if got, want := s.Shipments[0].Standing, "failed at 2026-11-24T12:00:02.000Z, and what it was to ship was shipped with waybill B; nothing to do"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestTell puts a story in order and gives each result once.
func TestTell(t *testing.T) {
	h := newHistory(t)
	a := parcel("A")
	h.packed(a, "e", -1)
	h.settle(a, "e", nil)
	o := h.found.Steps[1].Outcome
	h.publish(o, "e")
	h.publish(o, "e2")
	// All of it within one millisecond.
	for i := range h.found.Steps {
		h.found.Steps[i].Time = noon
	}
	h.found.Packed[0].Record.Time = noon
	for _, r := range h.found.Published {
		r.Time = noon
	}
	s := Tell(h.found)
	var got []string
	for i := range s.Timeline {
		m := &s.Timeline[i]
		got = append(got, string(m.Kind)+" "+m.Topic+" "+m.EventID)
		if m.Shipment != 1 {
			t.Errorf("%s is about shipment %d", m.Kind, m.Shipment)
		}
	}
	if want := "packed packed e|intent ledger e|outcome ledger e|published results e|published results e2"; strings.Join(got, "|") != want {
		t.Errorf("got %s, want %s", strings.Join(got, "|"), want)
	}
	if len(s.Results) != 1 || string(s.Results[0]) != string(o.Event) {
		t.Errorf("results %s", s.Results)
	}
	text, err := json.Marshal(Tell(Found{TID: tid}))
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"tid":"` + tid + `","standing":"nothing is known of order ` + tid + `","shipments":[],"timeline":[],"results":[]}`; string(text) != want {
		t.Errorf("got %s, want %s", text, want)
	}
}

// TestIsSplitIsANumber gives it as the events do, also where the event had
// something else.
func TestIsSplitIsANumber(t *testing.T) {
	h := newHistory(t)
	h.packed(parcel("A"), "e", 0)
	h.packed(parcel("B", "1"), "e2", 1)
	wrong := parcel("C")
	wrong.Split = "true"
	h.packed(wrong, "e3", 2)
	text, err := json.Marshal(Tell(h.found).Shipments)
	if err != nil {
		t.Fatal(err)
	}
	var shipments []struct {
		OutSID  string          `json:"out_sid"`
		IsSplit json.RawMessage `json:"is_split"`
	}
	if err := json.Unmarshal(text, &shipments); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range shipments {
		got = append(got, s.OutSID+" "+string(s.IsSplit))
	}
	if want := "A 0|B 1|C 0"; strings.Join(got, "|") != want {
		t.Errorf("got %s, want %s", strings.Join(got, "|"), want)
	}
}

// TestTellBadData tells of records that are not what they should be.
func TestTellBadData(t *testing.T) {
	h := newHistory(t)
	h.found.Published = append(h.found.Published, &schema.Record{Topic: "results", Time: h.tick(), Value: []byte("{")}, &schema.Record{Topic: "results", Time: h.tick()})
	h.step(ledger.StepOutcome, parcel("A"), "e").Outcome = &schema.Outcome{Verdict: schema.Failed, Event: json.RawMessage(`{"status":"failed"}`)}
	s := Tell(h.found)
	if len(s.Timeline) != 3 || !strings.HasPrefix(s.Standing, "failed at  with an unknown reason") {
		t.Errorf("%+v", s)
	}
}
