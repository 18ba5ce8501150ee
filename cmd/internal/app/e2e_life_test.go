package app

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/consumer"
	"packship/schema"
	"packship/upstream/upstreamtest"
)

// quick is the latency of an API whose slowness is not the point.
var quick = upstreamtest.Latency{Fixed: 20 * time.Millisecond}

// orders returns n packed events.
func orders(from, n int) []string {
	var values []string
	for i := range n {
		values = append(values, order(from+i, ""))
	}
	return values
}

// identities maps result ids to the bytes of their events, and fails the test if
// an id has two.
func (w *world) identities() map[string]string {
	w.t.Helper()
	ids := map[string]string{}
	for _, topic := range []string{w.settings.TopicShipped, w.settings.TopicFailed} {
		for _, r := range w.read(topic) {
			id, _ := r.Header("ce_id")
			if before, ok := ids[id]; ok && before != string(r.Value) {
				w.t.Errorf("result %s was published with different bytes:\n%s\n%s", id, before, r.Value)
			}
			ids[id] = string(r.Value)
		}
	}
	return ids
}

// TestEventForms sends one order in each form that an event may have.
func TestEventForms(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	bare := func(tid int) string {
		return strings.Replace(order(tid, ""), fmt.Sprintf(`"event_id":"evt-%d",`, tid), "", 1)
	}
	records := []schema.Record{
		{Value: []byte(order(1, ""))},
		{Value: []byte("\ufeff" + order(2, ""))},
		{Value: []byte(strings.Replace(order(3, ""), `"tid":"3"`, `"tid":3`, 1))},
		{Value: []byte(bare(4)), Headers: []schema.Header{{Key: "ce_id", Value: []byte("evt-4")}, {Key: "ce_type", Value: []byte(schema.TypePacked)}}},
		{
			Value:   []byte(`{"specversion":"1.0","id":"evt-5","data":` + bare(5) + `}`),
			Headers: []schema.Header{{Key: "content-type", Value: []byte("application/cloudevents+json; charset=UTF-8")}},
		},
		{Value: []byte(order(6, "")), Headers: []schema.Header{
			{Key: "traceparent", Value: []byte("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")},
			{Key: "tracestate", Value: []byte("a=b")},
		}},
	}
	for _, r := range records {
		w.append(r)
	}
	w.start()
	w.await(len(records), 0, 0)
	for _, r := range w.read(w.settings.TopicShipped) {
		tid := result(t, r).TID
		if got, _ := r.Header("in_reply_to"); got != "evt-"+tid {
			t.Errorf("order %s: in reply to %q", tid, got)
		}
		parent, _ := r.Header("traceparent")
		state, _ := r.Header("tracestate")
		if tid == "6" && (!strings.HasPrefix(parent, "00-0af7651916cd43dd8448eb211c80319c-") || state != "a=b") {
			t.Errorf("traceparent %q, tracestate %q; want the packed record's trace", parent, state)
		}
	}
	w.verify()
}

// TestRestartAndReplay stops a connector half-way, goes on with another, and
// then has a third replay everything: no shipment is called for twice, and the
// replay publishes the same results again.
func TestRestartAndReplay(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(30), TID: "7"})
	const n = 60
	w.produce(orders(1, n)...)
	w.produce("nonsense")

	first := w.start()
	w.calls(n / 3)
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	if got := w.sim.Stats().InFlight; got != 0 {
		t.Errorf("%d calls were left behind by an orderly stop", got)
	}
	if got := w.sim.Stats().Calls; got == n {
		t.Log("the first replica was done before it was stopped; this run shows less than it should")
	}

	second := w.start()
	w.committed()
	if err := second.stop(); err != nil {
		t.Fatal(err)
	}
	before := w.identities()
	w.calledOnce(n)
	if len(before) != n {
		t.Errorf("%d results, want %d", len(before), n)
	}
	published := len(w.read(w.settings.TopicShipped)) + len(w.read(w.settings.TopicFailed))

	w.rewind()
	third := w.start()
	w.committed()
	w.knowsSpending(third, n-1)
	if got := w.sim.Stats().Calls; got != n {
		t.Errorf("the replay made %d calls", got-n)
	}
	after := w.identities()
	if len(after) != len(before) {
		t.Errorf("the replay published %d new results", len(after)-len(before))
	}
	if again := len(w.read(w.settings.TopicShipped)) + len(w.read(w.settings.TopicFailed)) - published; again != n {
		t.Errorf("the replay published %d results again, want %d", again, n)
	}
}

// TestSecondReplica lets a second replica join and then the first one leave,
// under load.
func TestSecondReplica(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick}, func(s *Settings) {
		s.RatePerSecond = 20
		s.RateJitter, s.UpstreamTimeout = 100*time.Millisecond, 10*time.Second // the test shares its machine
	})
	const n = 60
	w.produce(orders(1, n)...)
	first := w.start()
	w.calls(10)
	second := w.start()
	if got := second.c.Status(); got.Role != consumer.RoleStandby || first.c.Status().Role != consumer.RoleActive {
		t.Errorf("roles %s and %s, want active and standby", first.c.Status().Role, got.Role)
	}
	if code, _ := second.get("/readyz"); code != 200 {
		t.Errorf("a standby answers %d to /readyz, want 200", code)
	}
	if code, text := second.do("POST", "/api/shops/7/unpark", "e2e-admin"); code != 404 || !strings.Contains(text, "no parked shop has that id; this replica stands by and sends nothing: ask ") {
		t.Errorf("a standby answers %d %s to an unpark, want whom to ask", code, text)
	}
	w.calls(20)
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	second.eventually("second active", func() bool { return second.c.Status().Role == consumer.RoleActive })
	w.committed()
	stats := w.calledOnce(n)
	if ids := w.identities(); len(ids) != n {
		t.Errorf("%d results, want %d", len(ids), n)
	}
	if stats.MaxInAnySecond > 20 {
		t.Errorf("%d calls in a second over both replicas, want at most 20", stats.MaxInAnySecond)
	}
	w.knowsSpending(second, n)
}

// TestSpread has two replicas share the partitions and the rate, and one of them
// stop in the middle: each order is called for once, and together they never call
// faster than one alone may.
func TestSpread(t *testing.T) {
	const rate = 20
	w := newWorld(t, upstreamtest.Options{Latency: quick}, func(s *Settings) {
		s.Assignment, s.RatePerSecond = "spread", rate
		s.RateJitter, s.UpstreamTimeout = 100*time.Millisecond, 10*time.Second // the test shares its machine
	})
	first, second := w.start(), w.start()
	has := func(r *replica, partitions int, limit float64) bool {
		open, _ := r.value("packship_gate_open")
		assigned, _ := r.value("packship_assigned_partitions")
		return open == 1 && assigned == float64(partitions) && r.c.Status().Accounts[0].Limit == limit
	}
	for _, r := range []*replica{first, second} {
		r.eventually("half of the work", func() bool { return has(r, testPartitions/2, rate/2) })
	}
	const n = 120
	w.produce(orders(1, n)...)
	w.calls(n / 2)
	for _, r := range []*replica{first, second} {
		if calls, _ := r.value("packship_calls_total", "outcome=shipped"); calls == 0 {
			t.Error("a replica has not made a call")
		}
	}
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	second.eventually("all of the work", func() bool { return has(second, testPartitions, rate) })
	w.committed()
	stats := w.calledOnce(n)
	if ids := w.identities(); len(ids) != n {
		t.Errorf("%d results, want %d", len(ids), n)
	}
	if stats.MaxInAnySecond > rate {
		t.Errorf("%d calls in a second over both replicas, want at most %d", stats.MaxInAnySecond, rate)
	}
}

// TestSwappedLabels ships an order of a group, and then has orders of others come
// with its waybill number: neither of two replicas that share the work sends them,
// nor one that starts afterwards.
func TestSwappedLabels(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick}, func(s *Settings) { s.Assignment = "spread" })
	replicas := []*replica{w.start(), w.start()}
	for _, r := range replicas {
		r.eventually("half of the work", func() bool {
			assigned, _ := r.value("packship_assigned_partitions")
			return assigned == testPartitions/2
		})
	}
	labelled := func(tid int, group string) string { // with the label of order 1
		return strings.Replace(order(tid, `,"order_group":"`+group+`"`), fmt.Sprintf("SF%013d", tid), fmt.Sprintf("SF%013d", 1), 1)
	}
	refused := func(events int) {
		t.Helper()
		w.await(1, events, 0)
		for _, rec := range w.read(w.settings.TopicFailed) {
			if res := result(t, rec); len(res.Violations) != 1 || res.Violations[0].Rule != "V07" || !strings.Contains(res.Violations[0].Message, "order 1,") {
				t.Errorf("got %+v, want that it has the label of order 1", res.Failure)
			}
		}
	}
	w.produce(labelled(1, "north"))
	w.await(1, 0, 0)
	for _, r := range replicas {
		r.eventually("the success read", func() bool {
			outcomes, _ := r.value("packship_ledger_records_total", "kind=outcome")
			return outcomes == 1
		})
	}
	w.produce(labelled(11, "south"), labelled(12, "south"), labelled(13, "south"), labelled(14, "south"))
	refused(4)
	for _, r := range replicas {
		if n, _ := r.value("packship_events_finished_total", "verdict=invalid", "class=invalid_request"); n == 0 {
			t.Error("a replica has not refused an order")
		}
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
	}

	w.produce(labelled(15, "south"))
	w.start()
	refused(5)
	w.produce(labelled(2, "north")) // a merged parcel
	w.committed()
	if stats := w.verify(); stats.Calls != 2 {
		t.Errorf("%d calls, want one for each order of the group", stats.Calls)
	}
}

// TestResultTopicRefuses keeps results from being written for ten seconds: no
// call is made a second time for it.
func TestResultTopicRefuses(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	relent := w.refuseResults()
	const n = 30
	w.produce(orders(1, n)...)
	r := w.start()
	w.calls(n)
	const unpublished = "its result is not published yet"
	r.eventually("an order to be shipped and not published", func() bool { return strings.Contains(r.story("1").Standing, unpublished) })
	if !testing.Short() {
		time.Sleep(10 * time.Second)
	}
	if got := len(w.read(w.settings.TopicShipped)); got != 0 {
		t.Fatalf("%d results were written although the topic refuses", got)
	}
	if got := w.lag(); got != n {
		t.Errorf("the lag is %d although nothing is published, want %d", got, n)
	}
	relent()
	w.await(n, 0, 0)
	w.committed()
	if got := r.story("1").Standing; strings.Contains(got, unpublished) {
		t.Errorf("it is published by now: %q", got)
	}
	if stats := w.verify(); stats.Calls != n {
		t.Errorf("%d calls, want %d", stats.Calls, n)
	}
}

// TestPartOfTheLedgerIsAway has one partition of the ledger take nothing. The orders
// in it wait, and those in the other are shipped.
func TestPartOfTheLedgerIsAway(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick}, func(s *Settings) { s.RatePerSecond = 10 })
	if w.cluster == nil {
		t.Skip("a real broker refuses for a topic as a whole")
	}
	const away, n = 1, 6 // more than are let in at a time
	var behind, others []string
	for i := 1; len(behind) <= n || len(others) < n; i++ {
		value := order(i, "")
		p, err := schema.DecodePacked(&schema.Record{Value: []byte(value)})
		if err != nil {
			t.Fatal(err)
		}
		if p.Shipment.Order().LedgerPartition(w.settings.LedgerPartitions) == away {
			behind = append(behind, value)
		} else {
			others = append(others, value)
		}
	}
	w.start()
	w.produce(behind[n])
	w.await(1, 0, 0)
	refusal := w.cluster.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Produce}, Topic: w.settings.TopicLedger, Partitions: []int32{away}, Err: kerr.NotEnoughReplicas, Count: -1,
	})
	w.produce(behind[:n]...)
	w.produce(others[:n]...)
	w.await(1+n, 0, 0)
	refusal.Remove()
	w.await(1+2*n, 0, 0)
	w.committed()
	if stats := w.verify(); stats.Calls != 1+2*n {
		t.Errorf("%d calls, want %d", stats.Calls, 1+2*n)
	}
}

// refuseResults makes the shipped topic refuse every record until the returned
// function is called. A real broker does so when the topic allows no record of
// that size.
func (w *world) refuseResults() (relent func()) {
	w.t.Helper()
	if w.cluster != nil {
		refusal := w.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: w.settings.TopicShipped, Err: kerr.NotEnoughReplicas, Count: -1})
		return refusal.Remove
	}
	set := func(op kafka.ConfigOperation, value string) {
		w.t.Helper()
		res, err := w.kafka.Client.IncrementalAlterConfigs(w.t.Context(), &kafka.IncrementalAlterConfigsRequest{
			Resources: []kafka.IncrementalAlterConfigsRequestResource{{
				ResourceType: kafka.ResourceTypeTopic, ResourceName: w.settings.TopicShipped,
				Configs: []kafka.IncrementalAlterConfigsRequestConfig{{Name: "max.message.bytes", Value: value, ConfigOperation: op}},
			}},
		})
		if err != nil || res.Resources[0].Error != nil {
			w.t.Fatalf("max.message.bytes: %v %v", err, res)
		}
	}
	set(kafka.ConfigOperationSet, "1")
	return func() { set(kafka.ConfigOperationDelete, "") }
}

// TestRunRefusesTopics checks that a start with missing or wrong topics fails
// with their names and the remedy.
func TestRunRefusesTopics(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{})
	for name, tt := range map[string]struct {
		change func(*Settings)
		want   string
	}{
		"missing":    {func(s *Settings) { s.TopicShipped += "-not" }, "-not does not exist; create it with `packship topics create`"},
		"partitions": {func(s *Settings) { s.LedgerPartitions = 7 }, "has 2 partitions instead of 7"},
	} {
		s := w.settings
		tt.change(&s)
		if rightsChecked() { // a topic without any right could not be told from one that is missing
			w.grant(s.Principal(), right{"topic", s.TopicShipped, "Describe"})
		}
		c, err := New(s, Options{})
		if err != nil {
			t.Fatal(err)
		}
		err = c.Run(t.Context())
		if _, ok := errors.AsType[*TopicsError](err); !ok || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want a TopicsError with %q", name, err, tt.want)
		}
	}
}

// TestUnansweredCall has calls executed and not answered, and not executed and
// not answered: each is followed up once, after it can no longer take effect,
// and told apart.
func TestUnansweredCall(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick}, func(s *Settings) {
		s.UpstreamTimeout, s.UpstreamSettle = 300*time.Millisecond, 200*time.Millisecond
	})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.ApplyThenHang, TID: "1", Count: 1})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.Hang, TID: "2", Count: 1})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.ApplyThenReset, TID: "3", Count: 1})
	w.produce(orders(1, 4)...)
	w.start()
	w.await(4, 0, 0)
	for _, r := range w.read(w.settings.TopicShipped) {
		got := result(t, r)
		wantAttempts, wantReconciled := 2, got.TID != "2"
		if got.TID == "4" {
			wantAttempts, wantReconciled = 1, false
		}
		if got.Attempts != wantAttempts || got.Reconciled != wantReconciled {
			t.Errorf("order %s: %d attempts, reconciled %t; want %d, %t", got.TID, got.Attempts, got.Reconciled, wantAttempts, wantReconciled)
		}
	}
	if stats := w.verify(); stats.Calls != 7 || stats.BlindRepeats != 0 || stats.Applied != 4 {
		t.Errorf("%d calls, %d blind repeats, %d applied; want 7, 0, 4", stats.Calls, stats.BlindRepeats, stats.Applied)
	}
}

// TestHaltAndResume takes the token away and gives it back over HTTP.
func TestHaltAndResume(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: quick})
	if err := w.sim.SetToken("default", "another"); err != nil {
		t.Fatal(err)
	}
	w.produce(orders(1, 5)...)
	r := w.start()
	r.eventually("halted", func() bool { return r.c.Status().Accounts[0].State == "halted" })
	if code, _ := r.do("POST", "/api/accounts/default/resume", ""); code != 401 {
		t.Errorf("resume without a token answers %d, want 401", code)
	}
	if err := w.sim.SetToken("default", testToken); err != nil {
		t.Fatal(err)
	}
	if code, text := r.do("POST", "/api/accounts/default/resume", "e2e-admin"); code != 200 {
		t.Errorf("resume answers %d %s, want 200", code, text)
	}
	w.await(5, 0, 0)
	if stats := w.verify(); stats.Applied != 5 {
		t.Errorf("%d applied, want 5", stats.Applied)
	}
}

// exactRate makes TestRate hold the connector to the limit of the API itself. It
// is for a machine that does nothing else: a process that does not get the CPU
// for some ten milliseconds sends late, and sees late what was sent.
var exactRate = flag.Bool("rate.exact", false, "hold TestRate to 97 % of the API's limit")

// TestRate ships 200 orders at the real latency and rate: there are never more
// than ten in any second, and the rate is used.
func TestRate(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 20 s of real time")
	}
	const n, limit = 200, 10
	jitter, share := 100*time.Millisecond, 0.80
	if *exactRate {
		jitter, share = 20*time.Millisecond, 0.97
	}
	w := newWorld(t, upstreamtest.Options{
		Latency: upstreamtest.Latency{Median: 1200 * time.Millisecond, P99: 3 * time.Second},
		Rate:    upstreamtest.Rate{PerSecond: limit},
	}, func(s *Settings) {
		s.RatePerSecond = limit
		s.RateJitter = jitter
		s.UpstreamTimeout = 15 * time.Second
	})
	w.produce(orders(1, n)...)
	w.start()
	w.calls(n)
	w.committed()
	stats := w.verify()
	if stats.Calls != n || stats.Applied != n {
		t.Errorf("%d calls, %d applied; want %d each", stats.Calls, stats.Applied, n)
	}
	calls := w.sim.Journal().Calls()
	took := calls[n-1].Arrived.Sub(calls[0].Arrived)
	used := float64(n-1) / took.Seconds() / limit
	t.Logf("%d calls in %s: %.1f %% of %d a second, at most %d in any second", n, took, 100*used, limit, stats.MaxInAnySecond)
	if stats.MaxInAnySecond > limit {
		t.Errorf("%d calls in a second, want at most %d", stats.MaxInAnySecond, limit)
	}
	if used < share {
		t.Errorf("%.1f %% of the limit used, want at least %.0f %%", 100*used, 100*share)
	}
}

// calls waits until the API has seen so many calls.
func (w *world) calls(n int) {
	w.t.Helper()
	for made := w.sim.Stats().Calls; made < n; made = w.sim.Stats().Calls {
		limit, cancel := context.WithTimeout(w.t.Context(), time.Minute)
		err := w.sim.Journal().Wait(limit, func(s upstreamtest.Stats) bool { return s.Calls > made })
		cancel()
		if err != nil {
			w.t.Fatalf("%d calls and not %d: %v", w.sim.Stats().Calls, n, err)
		}
	}
}
