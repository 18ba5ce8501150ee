package app

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"packship/schema"
	"packship/upstream/upstreamtest"
)

// recreateLedger deletes the ledger's topic and creates it again.
func (w *world) recreateLedger() {
	w.t.Helper()
	topic := w.settings.TopicLedger
	res, err := w.kafka.Client.DeleteTopics(w.t.Context(), &kafka.DeleteTopicsRequest{Topics: []string{topic}})
	if err == nil {
		err = res.Errors[topic]
	}
	if err != nil {
		w.t.Fatal(err)
	}
	// A client's view of the topics is a little old.
	exists := func() bool {
		topics, err := w.kafka.Topics(w.t.Context())
		return err != nil || slices.ContainsFunc(topics, func(t Topic) bool { return t.Name == topic && t.Exists })
	}
	eventually(w.t, "ledger deleted", func() bool { return !exists() })
	eventually(w.t, "ledger created again", func() bool {
		_, err := w.kafka.CreateTopics(w.t.Context(), testPartitions, min(3, len(w.settings.KafkaBrokers)))
		return err == nil && w.kafka.CheckTopics(w.t.Context(), RightsToRun) == nil
	})
}

// TestLedgerCreatedAgain loses the whole memory while no replica runs, and then
// has everything replayed: not one order is called for again, each gets a result
// that tells a person, and what is packed from then on is shipped. The next
// restart knows of it, too.
func TestLedgerCreatedAgain(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	const n = 12
	w.produce(orders(1, n)...)
	r := w.start()
	w.await(n, 0, 0)
	w.committed()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	w.recreateLedger()
	w.rewind()
	r = w.start()
	w.await(n, n, 0)
	w.committed()
	if calls := w.sim.Stats().Calls; calls != n {
		t.Errorf("%d calls after the replay, want the %d of before", calls, n)
	}
	for _, rec := range w.read(w.settings.TopicFailed) {
		if res := result(t, rec); res.Reason != "outcome_unknown" || !res.MaybeShipped || res.Upstream != nil || !strings.Contains(res.Advice, "lost") {
			t.Errorf("got %s", rec.Value)
		}
	}
	if code, body := r.get("/api/status"); code != http.StatusOK || !strings.Contains(body, "not the ledger that the group's offsets were committed with") {
		t.Errorf("status: %d %s", code, body)
	}
	if _, body := r.get("/metrics"); !strings.Contains(body, "packship_ledger_damaged 1") {
		t.Error("the metric does not show the damage")
	}
	w.produce(orders(101, n)...)
	w.await(2*n, n, 0)
	w.committed()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	w.rewind()
	r = w.start()
	w.await(3*n, 2*n, 0)
	w.committed()
	w.calledOnce(2 * n)
	if _, body := r.get("/metrics"); !strings.Contains(body, "packship_ledger_damaged 0") {
		t.Error("after a restart the old damage is news")
	}
	w.identities()
}

// TestOtherShipmentsOfTheOrder ships parts of an order, and an order again under
// another waybill number.
func TestOtherShipmentsOfTheOrder(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick}, func(s *Settings) {
		s.UnknownPolicy = "park"
		s.UpstreamTimeout = 500 * time.Millisecond
	})
	split := func(tid int, event, waybill, subs string) schema.Record {
		value := order(tid, `,"is_split":1,"sub_tid":"`+subs+`"`)
		value = strings.Replace(value, "evt-", event+"-", 1)
		return schema.Record{Key: []byte("key"), Value: []byte(strings.Replace(value, "SF00000000000", "SF"+waybill, 1))}
	}
	other := func(tid int, event, waybill string) schema.Record {
		value := strings.Replace(order(tid, ""), "evt-", event+"-", 1)
		return schema.Record{Key: []byte("key"), Value: []byte(strings.Replace(value, "SF00000000000", "SF"+waybill, 1))}
	}
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.ApplyThenHang, TID: "20", Count: 1})
	for _, r := range []schema.Record{
		split(11, "a", "11111111111", "1,2"),
		split(11, "b", "22222222222", "3"),
		split(11, "c", "33333333333", "4,2"), // 2 was shipped
		other(11, "d", "44444444444"),        // so was some of all
		split(11, "e", "22222222222", "3"),   // the same as b
		other(20, "f", "55555555555"),        // nobody knows
		other(20, "g", "66666666666"),        // another waybill, to which the API says that it is shipped
	} {
		w.append(r)
	}
	w.start()
	w.await(3, 4, 0)
	w.committed()
	got := map[string]string{}
	for _, topic := range []string{w.settings.TopicShipped, w.settings.TopicFailed} {
		for _, rec := range w.read(topic) {
			res := result(t, rec)
			event, _ := rec.Header("in_reply_to")
			event, _, _ = strings.Cut(event, "-")
			got[event] = string(res.Status)
			if res.Failure != nil {
				got[event] = res.Reason
				for _, v := range res.Violations {
					got[event] += " " + v.Rule + " " + v.Field
				}
				if res.MaybeShipped {
					got[event] += " maybe"
				}
			}
		}
	}
	for event, want := range map[string]string{
		"a": "shipped", "b": "shipped", "c": "local_validation V26 sub_tid", "d": "local_validation V26 is_split V26 is_split", "e": "shipped",
		"f": "outcome_unknown maybe", "g": "shipped_with_other_waybill_possible maybe",
	} {
		if got[event] != want {
			t.Errorf("event %s: got %s, want %s", event, got[event], want)
		}
	}
	if stats := w.verify(); stats.Calls != 4 || stats.Applied != 3 {
		t.Errorf("%d calls, %d applied; want 4 and 3", stats.Calls, stats.Applied)
	}
}
