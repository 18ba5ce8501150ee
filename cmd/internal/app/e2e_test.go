package app

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"

	"packship/consumer"
	"packship/schema"
	"packship/upstream/upstreamtest"
)

// world is Kafka, the shipping API and the replicas of one end-to-end test.
// Kafka is the embedded broker, or real brokers if PACKSHIP_TEST_BROKERS names
// them; every test has topics and a group of its own. With real brokers that
// check rights, the replicas have those of the manual and no others: see
// secure_test.go.
type world struct {
	t        *testing.T
	cluster  *kfake.Cluster // nil with real brokers
	sim      *upstreamtest.Simulator
	settings Settings
	kafka    *Kafka       // the test's own connection
	logger   *slog.Logger // of the replicas; nil is the test's output
}

const (
	testToken = "e2e-token"
	testShop  = "100200300"
	// testPartitions of the packed topic: enough for two replicas to share them.
	testPartitions = 4
)

// newWorld starts the broker and the API, and creates the topics. The settings
// may be changed by the test before that.
func newWorld(t *testing.T, options upstreamtest.Options, change ...func(*Settings)) *world {
	t.Helper()
	w := &world{t: t, settings: Defaults()}
	s := &w.settings
	if brokers := os.Getenv("PACKSHIP_TEST_BROKERS"); brokers != "" {
		s.KafkaBrokers = strings.Split(brokers, ",")
	} else {
		w.cluster = newCluster(t)
		s.KafkaBrokers = w.cluster.ListenAddrs()
	}
	options.AutoCreate = true
	options.Accounts = append(options.Accounts, upstreamtest.Account{Name: "default", Token: testToken})
	w.sim = upstreamtest.New(options)
	t.Cleanup(func() {
		if err := w.sim.Close(); err != nil {
			t.Error(err)
		}
	})
	url, err := w.sim.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	unique := fmt.Sprintf("e2e-%d-", time.Now().UnixNano())
	for _, topic := range []*string{&s.TopicPacked, &s.TopicShipped, &s.TopicFailed, &s.TopicDLQ, &s.TopicLedger} {
		*topic = unique + *topic
	}
	s.KafkaGroupID = unique + "group"
	s.KafkaSessionTimeout = 6 * time.Second
	s.UpstreamURL, s.UpstreamToken = url+upstreamtest.SendPath, testToken
	s.UpstreamTimeout, s.UpstreamSettle = 2*time.Second, time.Second
	s.RetryBackoff, s.RetryBackoffMax = 50*time.Millisecond, 200*time.Millisecond
	s.RatePerSecond, s.RateJitter = 100, time.Millisecond
	s.LedgerPartitions = 2
	s.HTTPAddr = "127.0.0.1:0"
	s.ShutdownTimeout = 15 * time.Second
	s.AdminToken = "e2e-admin"
	for _, c := range change {
		c(s)
	}
	w.kafka = NewKafka(s, nil, s.Topics()...)
	t.Cleanup(w.kafka.Close)
	if err := w.kafka.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.kafka.CreateTopics(t.Context(), testPartitions, min(3, len(s.KafkaBrokers))); err != nil {
		t.Fatal(err)
	}
	settledTopics(t, w.kafka, func(ts []Topic) bool { return !slices.ContainsFunc(ts, func(t Topic) bool { return !t.Exists }) })
	if rightsChecked() {
		w.secure(t)
	}
	return w
}

// replica is one running connector.
type replica struct {
	t    *testing.T
	c    *Connector
	url  string
	stop func() error // stops it, once, and returns what Run returned
}

// start starts a replica and waits until it is ready.
func (w *world) start() *replica {
	w.t.Helper()
	r := w.launch(w.settings)
	r.eventually("ready", func() bool { ok, _ := r.c.Ready(); return ok })
	return r
}

// startLogging is start with a log of everything.
func (w *world) startLogging(to io.Writer) *replica {
	w.t.Helper()
	r := w.launchLogging(w.settings, slog.New(slog.NewTextHandler(to, &slog.HandlerOptions{Level: slog.LevelDebug})))
	r.eventually("ready", func() bool { ok, _ := r.c.Ready(); return ok })
	return r
}

// launch starts a replica without waiting.
func (w *world) launch(s Settings) *replica {
	w.t.Helper()
	logger := w.logger
	if logger == nil {
		logger = testLogger(w.t)
	}
	return w.launchLogging(s, logger)
}

func (w *world) launchLogging(s Settings, logger *slog.Logger) *replica {
	w.t.Helper()
	addr := make(chan net.Addr, 1)
	c, err := New(s, Options{Logger: logger, Serving: func(a net.Addr) { addr <- a }})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	r := &replica{t: w.t, c: c}
	r.stop = sync.OnceValue(func() error {
		cancel(errors.New("the test stops the replica"))
		return <-ended
	})
	w.t.Cleanup(func() {
		if err := r.stop(); err != nil {
			w.t.Errorf("replica: %v", err)
		}
	})
	select {
	case a := <-addr:
		r.url = "http://" + a.String()
	case err := <-ended:
		ended <- err
	}
	return r
}

// testLogger logs to the test's output, if that is shown at all.
func testLogger(t *testing.T) *slog.Logger {
	t.Helper()
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// eventually waits for a state. The limit is for a test that hangs, not for the
// machine's speed.
func (r *replica) eventually(what string, cond func() bool) {
	r.t.Helper()
	eventually(r.t, what, cond)
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	const limit = time.Minute
	for end := time.Now().Add(limit); !cond(); {
		if time.Now().After(end) {
			t.Fatalf("still not so after %s: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// order is a packed event for a test, as JSON.
func order(tid int, extra string) string {
	return fmt.Sprintf(`{"event_id":"evt-%d","shop_id":%q,"tid":"%d","out_sid":"SF%013d","company_code":"SF"%s}`, tid, testShop, tid, tid, extra)
}

// produce appends values to the packed topic, to its partitions in turn.
func (w *world) produce(values ...string) {
	w.t.Helper()
	for i, value := range values {
		w.append(schema.Record{Partition: i % testPartitions, Key: []byte("key"), Value: []byte(value)})
	}
}

// append appends a record to the packed topic, as one of this moment if it says no
// other. The leader of a topic that has
// just been created does not know yet that it is.
func (w *world) append(r schema.Record) {
	w.t.Helper()
	eventually(w.t, "record appended", func() bool {
		err := w.tryAppend(r)
		if err != nil && !errors.Is(err, kafka.NotLeaderForPartition) {
			w.t.Fatal(err)
		}
		return err == nil
	})
}

func (w *world) tryAppend(r schema.Record) error {
	record := kafka.Record{Value: kafka.NewBytes(r.Value), Time: cmp.Or(r.Time, time.Now())}
	if r.Key != nil {
		record.Key = kafka.NewBytes(r.Key)
	}
	for _, h := range r.Headers {
		record.Headers = append(record.Headers, kafka.Header{Key: h.Key, Value: h.Value})
	}
	res, err := w.kafka.Client.Produce(w.t.Context(), &kafka.ProduceRequest{
		Topic: w.settings.TopicPacked, Partition: r.Partition, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(record),
	})
	if err != nil {
		return err
	}
	return res.Error
}

// read returns all records of a topic. A real broker may still be electing the
// leader of a partition that was just made.
func (w *world) read(topic string) []schema.Record {
	w.t.Helper()
	var records []schema.Record
	var err error
	eventually(w.t, "read "+topic, func() bool {
		records = nil
		err = w.kafka.Scan(w.t.Context(), topic, func(r *schema.Record) error { records = append(records, *r); return nil })
		return err == nil || !passing(err)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return records
}

// passing reports whether a broker's error goes away by itself.
func passing(err error) bool {
	code, ok := errors.AsType[kafka.Error](err)
	return ok && code.Temporary()
}

// await waits until the three output topics hold so many records.
func (w *world) await(shipped, failed, dead int) {
	w.t.Helper()
	for topic, want := range map[string]int{w.settings.TopicShipped: shipped, w.settings.TopicFailed: failed, w.settings.TopicDLQ: dead} {
		eventually(w.t, fmt.Sprintf("%d records in %s", want, topic), func() bool { return len(w.read(topic)) >= want })
	}
	for topic, want := range map[string]int{w.settings.TopicShipped: shipped, w.settings.TopicFailed: failed, w.settings.TopicDLQ: dead} {
		if got := len(w.read(topic)); got != want {
			w.t.Errorf("%s holds %d records, want %d", topic, got, want)
		}
	}
}

// committed waits until the group has committed everything that was produced.
func (w *world) committed() {
	w.t.Helper()
	eventually(w.t, "everything committed", func() bool { return w.lag() == 0 })
}

// lag is how far the group's committed offsets are behind the ends.
func (w *world) lag() int64 {
	w.t.Helper()
	progress, err := w.kafka.Progress(w.t.Context())
	for ; passing(err); time.Sleep(50 * time.Millisecond) {
		progress, err = w.kafka.Progress(w.t.Context())
	}
	if err != nil {
		w.t.Fatal(err)
	}
	var lag int64
	for _, p := range progress {
		lag += p.Lag()
	}
	return lag
}

// rewind sets the offsets of the group, which must be empty, to the beginning.
func (w *world) rewind() {
	w.t.Helper()
	offsets := map[int]int64{}
	for p := range testPartitions {
		offsets[p] = 0
	}
	var err error
	eventually(w.t, "offsets reset", func() bool { err = w.kafka.Rewind(w.t.Context(), offsets); return err == nil })
}

// verify checks what the API has seen of all replicas.
func (w *world) verify() upstreamtest.Stats {
	w.t.Helper()
	for _, v := range w.sim.Verify() {
		w.t.Errorf("the API saw what must never happen: %s: %s", v.Rule, v.Detail)
	}
	return w.sim.Stats()
}

// calledOnce is verify where each of n orders is to have been called for once. An
// order that was not has all its calls told.
func (w *world) calledOnce(n int) upstreamtest.Stats {
	w.t.Helper()
	stats := w.verify()
	if stats.Calls == n && stats.Repeats == 0 {
		return stats
	}
	w.t.Errorf("%d calls and %d repeats, want one call for each of %d orders", stats.Calls, stats.Repeats, n)
	calls := w.sim.Journal().Calls()
	seen := make(map[upstreamtest.Shipment]int)
	for _, c := range calls {
		if seen[c.Shipment]++; seen[c.Shipment] != 2 {
			continue
		}
		for i, c := range w.sim.Journal().CallsOf(c.Shipment) {
			w.t.Errorf("call %d for order %s, after %s: row %d, fault %q, taken %s, delivered %t",
				i+1, c.Shipment.TID, c.Arrived.Sub(calls[0].Arrived), c.Row, c.Fault, c.Done.Sub(c.Arrived), c.Delivered)
		}
	}
	return stats
}

// knowsSpending looks whether a replica knows what all replicas have spent today,
// whoever made the calls: one point for each success, which is all that answers
// tell. Of a test that began yesterday it need not know.
func (w *world) knowsSpending(r *replica, successes int64) {
	w.t.Helper()
	got := r.c.Status().Accounts[0].Today
	if time.Now().YearDay() != w.sim.Journal().Calls()[0].Arrived.Local().YearDay() {
		w.t.Log("a day has ended; what it has cost is not compared")
		return
	}
	if got.Points != successes || got.Charged != successes {
		w.t.Errorf("replica %s says that %+v was spent today, want %d", r.c.name, got, successes)
	}
}

// get asks a replica's HTTP server.
func (r *replica) get(path string) (int, string) {
	r.t.Helper()
	return r.do(http.MethodGet, path, "")
}

func (r *replica) do(method, path, token string) (int, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.url+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// result decodes a result event.
func result(t *testing.T, r schema.Record) schema.Result {
	t.Helper()
	var v schema.Result
	if err := json.Unmarshal(r.Value, &v); err != nil {
		t.Fatalf("%s: %v", r.Value, err)
	}
	return v
}

func TestEndToEnd(t *testing.T) {
	w := newWorld(t, upstreamtest.Options{Latency: upstreamtest.Latency{Fixed: 20 * time.Millisecond}})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(35), TID: "35"})
	w.produce(
		order(1, ""), order(2, ""), order(3, `,"vvtype":2`),
		order(35, ""), // refused by the platform
		strings.Replace(order(4, ""), `"SF0000000000004"`, `""`, 1), // no waybill number: refused here
		"not json", // no event at all
	)
	r := w.start()
	w.await(3, 2, 1)
	w.produce(order(1, `,"feature":"x"`), order(1, "")) // the same shipment again
	w.await(5, 2, 1)
	w.committed()
	stats := w.verify()
	if stats.Calls != 4 || stats.Applied != 3 || stats.Repeats != 0 {
		t.Errorf("calls %d, applied %d, repeats %d; want 4, 3, 0", stats.Calls, stats.Applied, stats.Repeats)
	}

	first := map[string][]byte{}
	for _, rec := range w.read(w.settings.TopicShipped) {
		res := result(t, rec)
		if string(rec.Key) != res.TID || res.Status != schema.Shipped || res.Attempts != 1 || res.Upstream == nil || res.Upstream.Withheld != 1 {
			t.Errorf("shipped record %s with key %s", rec.Value, rec.Key)
		}
		for name, want := range map[string]string{
			"ce_specversion": "1.0", "ce_id": res.ResultID, "ce_type": "erp.order.shipped.v1", "ce_subject": res.TID,
			"ce_source": "packship/" + w.settings.KafkaGroupID, "ce_time": res.OccurredAt, "content-type": "application/json", "in_reply_to": "evt-" + res.TID,
		} {
			if got, _ := rec.Header(name); got != want {
				t.Errorf("shipped %s: header %s is %q, want %q", res.TID, name, got, want)
			}
		}
		if before, ok := first[res.TID]; ok && string(before) != string(rec.Value) {
			t.Errorf("results of %s differ:\n%s\n%s", res.TID, before, rec.Value)
		}
		first[res.TID] = rec.Value
	}
	reasons := map[string]string{}
	for _, rec := range w.read(w.settings.TopicFailed) {
		res := result(t, rec)
		reasons[res.TID] = res.Reason
		if got, _ := rec.Header("ce_type"); got != "erp.order.shipment-failed.v1" || string(rec.Key) != res.TID {
			t.Errorf("failed record: type %s, key %s", got, rec.Key)
		}
	}
	if reasons["35"] != "waybill_already_used" || reasons["4"] != "local_validation" {
		t.Errorf("reasons %v", reasons)
	}
	dead := w.read(w.settings.TopicDLQ)[0]
	if reason, _ := dead.Header("packship_reason"); string(dead.Value) != "not json" || string(dead.Key) != "key" || reason != "not_json" {
		t.Errorf("dead letter %q with key %q and reason %q", dead.Value, dead.Key, reason)
	}

	st := r.c.Status()
	if st.Role != consumer.RoleActive || !st.Ready || st.Counts != (consumer.Counts{Shipped: 5, Failed: 2, DeadLettered: 1}) {
		t.Errorf("status %+v", st)
	}
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ok", "/metrics": "packship_calls_total", "/": "<h1>packship</h1>", "/api/status": `"role":"active"`} {
		if code, body := r.get(path); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("GET %s: %d, want 200 with %q in\n%.500s", path, code, want, body)
		}
	}
	if err := r.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}
