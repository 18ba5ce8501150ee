package operate

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/cmd/internal/app"
	"packship/producer/ledger"
	"packship/schema"
	"packship/upstream/upstreamtest"
)

// world is Kafka, the shipping API and the connectors of one story. Kafka is the
// embedded broker, or real brokers if PACKSHIP_TEST_BROKERS names them; every
// story has topics and a group of its own.
type world struct {
	t        *testing.T
	cluster  *kfake.Cluster // nil with real brokers
	sim      *upstreamtest.Simulator
	settings app.Settings
	kafka    *app.Kafka // the test's own connection
	url      string     // of the connector that was started last
}

const (
	testToken      = "story-token"
	testShop       = "100200300"
	testPartitions = 3
)

// quick is the latency of an API whose slowness is not the point.
var quick = upstreamtest.Options{Latency: upstreamtest.Latency{Fixed: 5 * time.Millisecond}}

func newWorld(t *testing.T, change ...func(*app.Settings)) *world {
	t.Helper()
	w := &world{t: t, settings: app.Defaults()}
	s := &w.settings
	if brokers := os.Getenv("PACKSHIP_TEST_BROKERS"); brokers != "" {
		s.KafkaBrokers = strings.Split(brokers, ",")
	} else {
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cluster.Close)
		w.cluster, s.KafkaBrokers = cluster, cluster.ListenAddrs()
	}
	options := quick
	options.AutoCreate = true
	options.Accounts = []upstreamtest.Account{{Name: "default", Token: testToken}}
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
	unique := fmt.Sprintf("story-%d-", time.Now().UnixNano())
	for _, topic := range []*string{&s.TopicPacked, &s.TopicShipped, &s.TopicFailed, &s.TopicDLQ, &s.TopicLedger} {
		*topic = unique + *topic
	}
	s.KafkaGroupID = unique + "group"
	s.KafkaSessionTimeout = 6 * time.Second
	s.UpstreamURL, s.UpstreamToken = url+upstreamtest.SendPath, testToken
	// A call that takes longer on a busy machine would be followed up.
	s.UpstreamTimeout, s.UpstreamSettle = 4*time.Second, 500*time.Millisecond
	s.RetryBackoff, s.RetryBackoffMax = 20*time.Millisecond, 100*time.Millisecond
	s.RatePerSecond, s.RateJitter = 200, time.Millisecond
	s.LedgerPartitions = 2
	s.HTTPAddr = "127.0.0.1:0"
	s.ShutdownTimeout = 15 * time.Second
	for _, c := range change {
		c(s)
	}
	w.kafka = app.NewKafka(s, nil, s.Topics()...)
	t.Cleanup(w.kafka.Close)
	if err := w.kafka.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.kafka.CreateTopics(t.Context(), testPartitions, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "topics there", func() bool { return w.kafka.CheckTopics(t.Context(), app.RightsToRun) == nil })
	return w
}

// operator returns an Operator of this world.
func (w *world) operator() *Operator { return New(&w.settings, w.kafka, nil) }

// start starts a connector and returns the function that stops it and waits.
func (w *world) start() (stop func()) {
	w.t.Helper()
	addr := make(chan net.Addr, 1)
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(w.t.Output(), nil))
	}
	c, err := app.New(w.settings, app.Options{Logger: log, Serving: func(a net.Addr) { addr <- a }})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	w.url = "http://" + (<-addr).String()
	stop = sync.OnceFunc(func() {
		cancel(errors.New("the story stops the connector"))
		if err := <-ended; err != nil {
			w.t.Errorf("connector: %v", err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

// eventually waits for a state. The limit is for a test that hangs, not for the
// machine's speed.
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

// settled runs a connector until everything that was produced is committed.
func (w *world) settled() {
	w.t.Helper()
	stop := w.start()
	w.committed()
	stop()
}

// committed waits until the group has committed everything that was produced.
func (w *world) committed() {
	w.t.Helper()
	eventually(w.t, "everything committed", func() bool {
		progress, err := w.kafka.Progress(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		var lag int64
		for _, p := range progress {
			lag += p.Lag()
		}
		return lag == 0
	})
}

// idle waits until the group has no members.
func (w *world) idle() {
	w.t.Helper()
	eventually(w.t, "group without members", func() bool {
		members, err := w.kafka.Members(w.t.Context())
		return err == nil && len(members) == 0
	})
}

// order is a packed event for a test, as JSON.
func packedEvent(tid int, extra string) string {
	return fmt.Sprintf(`{"event_id":"evt-%d","shop_id":%q,"tid":"%d","out_sid":"SF%013d","company_code":"SF"%s}`, tid, testShop, tid, tid, extra)
}

// produce appends values to the packed topic, those of one order to one
// partition.
func (w *world) produce(values ...string) {
	w.t.Helper()
	for _, value := range values {
		r := schema.Record{Key: []byte("key"), Value: []byte(value)}
		if p, err := schema.DecodePacked(&r); err == nil {
			r.Key, r.Partition = []byte(p.TID), int(p.TID[len(p.TID)-1])%testPartitions
		}
		w.append(r)
	}
}

// append appends a record to its topic, else to the packed one.
func (w *world) append(r schema.Record) {
	w.t.Helper()
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	eventually(w.t, "record appended", func() bool {
		record := kafka.Record{Value: kafka.NewBytes(r.Value), Time: r.Time}
		if r.Key != nil {
			record.Key = kafka.NewBytes(r.Key)
		}
		for _, h := range r.Headers {
			record.Headers = append(record.Headers, kafka.Header{Key: h.Key, Value: h.Value})
		}
		res, err := w.kafka.Client.Produce(w.t.Context(), &kafka.ProduceRequest{
			Topic: cmp.Or(r.Topic, w.settings.TopicPacked), Partition: r.Partition, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(record),
		})
		if err == nil {
			err = res.Error
		}
		if err != nil && !errors.Is(err, kafka.NotLeaderForPartition) {
			w.t.Fatal(err)
		}
		return err == nil
	})
}

// topic returns all records of a topic.
func (w *world) topic(name string) []*schema.Record {
	w.t.Helper()
	var records []*schema.Record
	if err := w.kafka.Scan(w.t.Context(), name, func(r *schema.Record) error { records = append(records, r); return nil }); err != nil {
		w.t.Fatal(err)
	}
	return records
}

// expire deletes what is before a record, as the topic's retention does.
func (w *world) expire(before *schema.Record) {
	w.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.settings.KafkaBrokers...))
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	partition := kmsg.NewDeleteRecordsRequestTopicPartition()
	partition.Partition, partition.Offset = int32(before.Partition), before.Offset
	topic := kmsg.NewDeleteRecordsRequestTopic()
	topic.Topic, topic.Partitions = before.Topic, append(topic.Partitions, partition)
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.Topics = append(req.Topics, topic)
	res, err := req.RequestWith(w.t.Context(), client)
	if err == nil {
		err = kerr.ErrorForCode(res.Topics[0].Partitions[0].ErrorCode)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// counts is how much there is of everything.
type counts struct{ calls, shipped, failed, dead, packed int }

func (w *world) count() counts {
	w.t.Helper()
	return counts{
		calls: w.sim.Stats().Calls, shipped: len(w.topic(w.settings.TopicShipped)), failed: len(w.topic(w.settings.TopicFailed)),
		dead: len(w.topic(w.settings.TopicDLQ)), packed: len(w.topic(w.settings.TopicPacked)),
	}
}

func (c counts) since(before counts) counts {
	return counts{c.calls - before.calls, c.shipped - before.shipped, c.failed - before.failed, c.dead - before.dead, c.packed - before.packed}
}

// callsOf is how often an order was called for.
func (w *world) callsOf(tid int) int {
	return len(w.sim.Journal().CallsOfOrder(fmt.Sprint(tid)))
}

// verify checks what the API has seen.
func (w *world) verify() {
	w.t.Helper()
	for _, v := range w.sim.Verify() {
		w.t.Errorf("the API saw what must never happen: %s: %s", v.Rule, v.Detail)
	}
}

// results returns the result events of a topic by order, each id once.
func (w *world) results(topic string) map[string][]schema.Result {
	w.t.Helper()
	all, seen := map[string][]schema.Result{}, map[string]bool{}
	for _, rec := range w.topic(topic) {
		var r schema.Result
		if err := json.Unmarshal(rec.Value, &r); err != nil {
			w.t.Fatal(err)
		}
		if !seen[r.ResultID] {
			seen[r.ResultID] = true
			all[r.TID] = append(all[r.TID], r)
		}
	}
	return all
}

// claim leaves an intent in the ledger whose process is gone without a word.
func (w *world) claim(value string) {
	w.t.Helper()
	p, err := schema.DecodePacked(&schema.Record{Value: []byte(value)})
	if err != nil {
		w.t.Fatal(err)
	}
	s := &w.settings
	l, err := ledger.New(ledger.Config{
		Client: w.kafka.Client, Topic: s.TopicLedger, Partitions: s.LedgerPartitions, Horizon: s.LedgerHorizon,
		StartBy: s.StartBy(), CallTimeout: s.UpstreamTimeout, Settle: s.UpstreamSettle, Instance: "gone", Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	}()
	if err := l.WaitReady(ctx); err != nil {
		w.t.Fatal(err)
	}
	if _, held, err := l.Claim(ctx, &p.Shipment, p.EventID, "", ""); err != nil || !held {
		w.t.Fatalf("claim: %t, %v", held, err)
	}
}

// fault has an order's calls go wrong, so often.
func (w *world) fault(kind upstreamtest.FaultKind, tid, times int) {
	w.sim.AddFault(upstreamtest.Fault{Kind: kind, TID: fmt.Sprint(tid), Count: times})
}
