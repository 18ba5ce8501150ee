package operate

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"packship/cmd/internal/app"
	"packship/cmd/internal/life"
	"packship/schema"
	"packship/upstream/upstreamtest"
)

// trace tells the story of an order and checks that it is in the order of time.
func (w *world) trace(tid int) life.Story {
	w.t.Helper()
	s, err := w.operator().Trace(w.t.Context(), fmt.Sprint(tid))
	if err != nil {
		w.t.Fatal(err)
	}
	if !slices.IsSortedFunc(s.Timeline, func(a, b life.Moment) int { return a.Time.Compare(b.Time) }) {
		w.t.Errorf("order %d: the time line is not in order: %+v", tid, s.Timeline)
	}
	return s
}

// kinds lists what has happened to each shipment, sorted where times tie.
func kinds(s life.Story) map[int][]life.Kind {
	m := map[int][]life.Kind{}
	for _, moment := range s.Timeline {
		m[moment.Shipment] = append(m[moment.Shipment], moment.Kind)
	}
	return m
}

// TestTrace follows orders through everything that may happen to them.
func TestTrace(t *testing.T) {
	w := newWorld(t)
	w.fault(upstreamtest.ApplyThenHang, 1, 1) // reconciled
	w.fault(upstreamtest.AnyRow(35), 2, 1)    // redriven
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(35), TID: "3", Count: 1})
	w.produce(packedEvent(1, ""), packedEvent(2, ""))
	w.produce(packedEvent(3, `,"is_split":1,"sub_tid":"31"`))
	stop := w.start()
	w.committed()
	w.produce(strings.Replace(strings.Replace(packedEvent(3, `,"is_split":1,"sub_tid":["32",33]`), "evt-3", "evt-3b", 1), "SF000", "SF777", 1))
	w.produce(strings.Replace(packedEvent(4, ""), `"SF"`, `""`, 1)) // breaks a rule
	w.append(schema.Record{Partition: 2, Key: []byte("5"), Value: []byte(`{"tid":"5","shop_id":`)})
	w.committed()
	stop()
	w.redrive(RedriveFilter{TIDs: []string{"2"}}, true)
	w.settled()
	letters, err := w.operator().DeadLetters(t.Context(), LetterFilter{})
	if err != nil || len(letters) != 1 {
		t.Fatalf("%+v, %v; want one dead letter", letters, err)
	}
	letter, err := w.operator().DeadLetter(t.Context(), letters[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if still, err := w.operator().Resend(t.Context(), letter, []byte(packedEvent(7, ""))); err != nil || still != nil {
		t.Fatalf("resend: %v, %v", still, err)
	}
	w.settled()
	w.produce(packedEvent(6, "")) // waits

	t.Run("reconciled", func(t *testing.T) {
		s := w.trace(1)
		if diff := cmp.Diff(map[int][]life.Kind{1: {life.KindPacked, life.KindIntent, life.KindTakeover, life.KindOutcome, life.KindPublished}}, kinds(s)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if s.Shipments[0].State != life.StateShipped || !strings.Contains(s.Standing, "which the API confirmed after a call that it had not answered; nothing to do") || len(s.Results) != 1 {
			t.Errorf("%+v", s)
		}
		if m := s.Timeline[2]; m.Prev != s.Timeline[1].Attempt || m.Instance() == "" || m.EventID != "evt-1" || m.Why != "no answer that could be read" {
			t.Errorf("takeover %+v", m)
		}
	})
	t.Run("redriven", func(t *testing.T) {
		s := w.trace(2)
		once := []life.Kind{life.KindPacked, life.KindIntent, life.KindOutcome, life.KindPublished}
		if diff := cmp.Diff(map[int][]life.Kind{1: slices.Concat(once, once)}, kinds(s)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if len(s.Results) != 2 || s.Shipments[0].State != life.StateShipped || !strings.HasPrefix(s.Standing, "shipped at 20") {
			t.Errorf("%+v", s)
		}
		failed, redriven := s.Timeline[2], s.Timeline[4]
		if answered := s.Detail(&failed); !strings.Contains(answered, "1 call, answered with HTTP 200, code 614 ") {
			t.Errorf("%q does not say what the API answered", answered)
		}
		if redriven.RedriveOf != failed.ResultID || redriven.EventID != "redrive-"+failed.ResultID || failed.Reason != "waybill_already_used" || s.Timeline[5].Round != 2 {
			t.Errorf("failed %+v, redriven %+v", failed, redriven)
		}
	})
	t.Run("split", func(t *testing.T) {
		s := w.trace(3)
		if len(s.Shipments) != 2 || s.Shipments[0].State != life.StateFailed || s.Shipments[1].State != life.StateShipped {
			t.Fatalf("shipments %+v", s.Shipments)
		}
		for _, want := range []string{"2 parcels: 1 shipped, 1 failed. waybill SF0000000000003: failed at ", "`packship redrive --tid 3 --set out_sid=WAYBILL --execute`"} {
			if !strings.Contains(s.Standing, want) {
				t.Errorf("%q lacks %q", s.Standing, want)
			}
		}
		for n, list := range kinds(s) {
			if n == 0 || len(list) != 4 {
				t.Errorf("shipment %d: %v", n, list)
			}
		}
	})
	t.Run("invalid", func(t *testing.T) {
		s := w.trace(4)
		if s.Shipments[0].State != life.StateFailed || !strings.Contains(s.Standing, "local_validation (V08 company_code is missing); correct it with `packship redrive --tid 4 --set FIELD=VALUE --execute`") {
			t.Errorf("%s", s.Standing)
		}
	})
	t.Run("dead letter", func(t *testing.T) {
		s := w.trace(5)
		if len(s.Timeline) != 1 || s.Timeline[0].Kind != life.KindDeadLetter || !strings.Contains(s.Standing, "(not_json) and lies in the dead letters: see `packship dlq show ") {
			t.Errorf("%+v", s)
		}
	})
	t.Run("resent", func(t *testing.T) {
		s := w.trace(7)
		if s.Shipments[0].State != life.StateShipped || s.Timeline[0].ResentFrom != w.settings.TopicDLQ+"/"+letter.ID {
			t.Errorf("%+v", s)
		}
	})
	t.Run("waiting", func(t *testing.T) {
		s := w.trace(6)
		if s.Shipments[0].State != life.StateWaiting || !strings.Contains(s.Standing, fmt.Sprintf("waits in partition 0 of %s with 0 records before it", w.settings.TopicPacked)) {
			t.Errorf("%s", s.Standing)
		}
	})
	t.Run("unknown", func(t *testing.T) {
		s := w.trace(404)
		if len(s.Timeline) != 0 || s.Standing != "nothing is known of order 404" {
			t.Errorf("%+v", s)
		}
	})
	if _, err := w.operator().Trace(t.Context(), "0012"); err == nil {
		t.Error("a bad id is traced")
	}

	// A running connector tells the same from its ledger.
	w.start()
	w.committed()
	get := func(tid string) (int, life.Story) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+"/api/orders/"+tid, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		var s life.Story
		if err := json.Unmarshal(body, &s); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		return res.StatusCode, s
	}
	for _, tid := range []int{1, 2, 3, 4} {
		code, told := get(fmt.Sprint(tid))
		traced := w.trace(tid)
		if code != 200 || told.Standing != traced.Standing || len(told.Results) != len(traced.Results) || len(told.Timeline) == 0 {
			t.Errorf("order %d: %d, %+v; want %+v", tid, code, told, traced)
		}
		for _, m := range told.Timeline {
			if !slices.ContainsFunc(traced.Timeline, func(x life.Moment) bool { return cmp.Equal(m, x) }) {
				t.Errorf("order %d: %+v is not in the trace", tid, m)
			}
		}
	}
	for _, tid := range []string{"404", "5", "0012", "x", "99999999999999999999"} {
		if code, _ := get(tid); code != 404 {
			t.Errorf("order %s: %d, want 404", tid, code)
		}
	}
}

// TestTraceForgotten traces orders that the ledger does not know any more.
func TestTraceForgotten(t *testing.T) {
	w := newWorld(t)
	if w.cluster == nil {
		t.Skip("makes topics of its own")
	}
	w.fault(upstreamtest.AnyRow(35), 2, 1)
	w.produce(packedEvent(1, ""), packedEvent(2, ""))
	w.settled()
	w.settings.TopicLedger += "-new"
	k := app.NewKafka(&w.settings, nil, w.settings.Topics()...)
	t.Cleanup(k.Close)
	if _, err := k.CreateTopics(t.Context(), testPartitions, 1); err != nil {
		t.Fatal(err)
	}
	w.kafka = k
	eventually(t, "topics there", func() bool { return k.CheckTopics(t.Context(), app.RightsToRun) == nil })
	if s := w.trace(1); s.Shipments[0].State != life.StateShipped || len(s.Shipments) != 1 || len(s.Results) != 1 {
		t.Errorf("shipped: %+v", s)
	}
	if s := w.trace(2); s.Shipments[0].State != life.StateFailed || len(s.Shipments) != 1 || !strings.Contains(s.Standing, "waybill_already_used") {
		t.Errorf("failed: %+v", s)
	}
}

func TestHoldsNumber(t *testing.T) {
	for text, want := range map[string]bool{
		"12": true, "a12b": true, "112": false, "123": false, "123 12": true, "1212": false, "12 ": true, "": false, "21": false, "312,12": true,
	} {
		if got := holdsNumber([]byte(text), "12"); got != want {
			t.Errorf("%q: got %t, want %t", text, got, want)
		}
	}
}
