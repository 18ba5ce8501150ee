package app

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"packship/cmd/internal/life"
	"packship/upstream/upstreamtest"
)

// story asks a replica for the life of an order.
func (r *replica) story(tid string) life.Story {
	r.t.Helper()
	code, text := r.get("/api/orders/" + tid)
	var s life.Story
	if err := json.Unmarshal([]byte(text), &s); code != http.StatusOK || err != nil {
		r.t.Fatalf("order %s: %d %s (%v)", tid, code, text, err)
	}
	return s
}

// kinds are the moments of a story, in order.
func kinds(s life.Story) []life.Kind {
	var list []life.Kind
	for i := range s.Timeline {
		list = append(list, s.Timeline[i].Kind)
	}
	return list
}

// TestOrderHasItsWholeLife asks for an order that is shipped in two parcels, one
// of which failed at first and was packed again.
func TestOrderHasItsWholeLife(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(35), TID: "7", Count: 1})
	parcel := func(event, item string) string {
		return strings.Replace(order(7, `,"is_split":1,"sub_tid":["`+item+`"]`), "evt-7", event, 1)
	}
	r := w.start()
	w.produce(parcel("first", "71"))
	w.await(0, 1, 0)
	w.produce(parcel("again", "71"), strings.Replace(parcel("other", "72"), "SF0000000000007", "SF0000000000008", 1))
	w.await(2, 1, 0)
	r.eventually("everything published", func() bool { return len(r.story("7").Timeline) >= 12 })
	s := r.story("7")
	got := kinds(s)
	if len(got) != 12 {
		t.Errorf("the time line is %v", got)
	}
	for _, kind := range []life.Kind{life.KindPacked, life.KindIntent, life.KindOutcome, life.KindPublished} {
		n := 0
		for _, k := range got {
			if k == kind {
				n++
			}
		}
		if n != 3 {
			t.Errorf("%d moments of kind %s, want 3: %v", n, kind, got)
		}
	}
	if got[0] != life.KindPacked || got[len(got)-1] != life.KindPublished {
		t.Errorf("the time line is %v, want it to begin with a packed event and to end with a publication", got)
	}
	for i := range s.Timeline {
		if m := &s.Timeline[i]; m.Time.IsZero() || m.Topic == "" || m.Shipment == 0 || i > 0 && m.Time.Before(s.Timeline[i-1].Time) {
			t.Errorf("moment %d is incomplete or not in order: %+v", i, m)
		}
	}
	if len(s.Shipments) != 2 || !strings.Contains(s.Standing, "2 parcels: 2 shipped; nothing to do") || len(s.Results) != 3 || s.Note != "" {
		t.Errorf("%d shipments, %d results, note %q: %s", len(s.Shipments), len(s.Results), s.Note, s.Standing)
	}
}

// TestOrderThatWaits asks for orders that the ledger does not know: one is
// parked, the other stands behind a halted account and was never tried.
func TestOrderThatWaits(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	if err := w.sim.SetToken("default", "another"); err != nil {
		t.Fatal(err)
	}
	w.produce(orders(1, 6)...)
	r := w.start()
	r.eventually("halted", func() bool { return r.c.Status().Health == HealthHalted })
	for _, tid := range []string{"4", "6"} {
		s := r.story(tid)
		if !slices.Contains(kinds(s), life.KindPacked) || s.Shipments[0].State == life.StateShipped {
			t.Errorf("order %s: %v, %s", tid, kinds(s), s.Standing)
		}
	}
	if code, text := r.get("/api/orders/99"); code != http.StatusNotFound || !strings.Contains(text, "packship trace") {
		t.Errorf("an unknown order: %d %s, want 404", code, text)
	}
	if code, text := r.get("/orders?tid=99"); code != http.StatusNotFound || !strings.Contains(text, "Not known") {
		t.Errorf("the page of an unknown order: %d, want 404 with a page:\n%.300s", code, text)
	}
	if code, text := r.get("/orders"); code != http.StatusOK || !strings.Contains(text, "<form") {
		t.Errorf("the page without an order: %d:\n%.300s", code, text)
	}
	code, text := r.get("/readyz")
	if code != http.StatusOK || !strings.HasPrefix(text, "ok\nhalted\nhalted: account default is halted") {
		t.Errorf("readyz: %d %q, want 200 that says halted", code, text)
	}
}
