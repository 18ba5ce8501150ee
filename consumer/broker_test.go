package consumer

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kgo"

	"packship/schema"
)

// realWorld is a topic and a group of their own on a real broker.
type realWorld struct {
	t       *testing.T
	brokers []string
	topic   string
	group   string
	client  *kafka.Client
}

// inRealWorld skips the test unless PACKSHIP_TEST_BROKERS names brokers.
func inRealWorld(t *testing.T, partitions int) *realWorld {
	t.Helper()
	list := os.Getenv("PACKSHIP_TEST_BROKERS") //nolint:forbidigo // a test may look for its broker
	if list == "" {
		t.Skip("PACKSHIP_TEST_BROKERS is not set")
	}
	noLeaks(t)
	name := fmt.Sprintf("%s-%d", strings.ToLower(t.Name()), time.Now().UnixNano())
	w := &realWorld{t: t, brokers: strings.Split(list, ","), topic: "packed-" + name, group: "group-" + name}
	tr := transportOver(new(net.Dialer).DialContext, w.topic)
	t.Cleanup(tr.CloseIdleConnections)
	w.client = &kafka.Client{Addr: kafka.TCP(w.brokers...), Timeout: 10 * time.Second, Transport: tr}
	if partitions > 0 {
		w.createTopic(partitions)
	}
	return w
}

// noLeaks fails the test if goroutines of this package or of the Kafka client
// are left after all clean-ups.
func noLeaks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		var left string
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			left = ""
			buf := make([]byte, 1<<20)
			for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
				if strings.Contains(g, "testing.(*T)") || strings.Contains(g, "testing.tRunner") {
					continue
				}
				if strings.Contains(g, "packship/consumer.") || strings.Contains(g, "segmentio/kafka-go") {
					left += g + "\n\n"
				}
			}
			if left == "" {
				return
			}
		}
		t.Errorf("goroutines are left:\n%s", left)
	})
}

func (w *realWorld) createTopic(partitions int) {
	w.t.Helper()
	res, err := w.client.CreateTopics(w.t.Context(), &kafka.CreateTopicsRequest{
		Topics: []kafka.TopicConfig{{Topic: w.topic, NumPartitions: partitions, ReplicationFactor: -1}},
	})
	if err != nil || res.Errors[w.topic] != nil {
		w.t.Fatal(err, res)
	}
	await(w.t, "the topic to have leaders", func() bool {
		for p := range partitions {
			ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
			_, err := w.client.Fetch(ctx, &kafka.FetchRequest{Topic: w.topic, Partition: p, MaxWait: 10 * time.Millisecond})
			cancel()
			if err != nil {
				return false
			}
		}
		return true
	})
}

func (w *realWorld) start(name string, h Handler, change ...func(*Config)) *replica {
	w.t.Helper()
	network := newCutNet(new(net.Dialer).DialContext)
	change = append([]func(*Config){func(c *Config) { c.Topic, c.GroupID = w.topic, w.group }}, change...)
	return startReplica(w.t, name, h, network, w.brokers, transportOver(network.DialContext, w.topic), change...)
}

func (w *realWorld) produce(partition int, values ...string) {
	w.t.Helper()
	produce(w.t, w.client, w.topic, partition, values...)
}

func (w *realWorld) awaitCommit(partition int, offset int64) {
	w.t.Helper()
	await(w.t, fmt.Sprintf("offset %d of partition %d to be committed", offset, partition), func() bool {
		res, err := w.client.OffsetFetch(w.t.Context(), &kafka.OffsetFetchRequest{
			GroupID: w.group, Topics: map[string][]int{w.topic: {partition}},
		})
		return err == nil && res.Error == nil && len(res.Topics[w.topic]) == 1 && res.Topics[w.topic][0].CommittedOffset == offset
	})
}

func TestBrokerReadsAndRestarts(t *testing.T) {
	w := inRealWorld(t, 3)
	for p := range 3 {
		w.produce(p, events("s", 1000*p+1, 500)...)
	}
	h := new(fakeHandler)
	r := w.start("a", h)
	for p := range 3 {
		w.awaitCommit(p, 500)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	w.produce(1, events("s", 9000, 10)...)
	again := new(fakeHandler)
	r = w.start("b", again, func(c *Config) { c.CommitMetadata = func() string { return strings.Repeat("m", maxMetadata) } })
	w.awaitCommit(1, 510)
	if _, settled := h.count(); settled != 1500 {
		t.Errorf("the first run settled %d records, want 1500", settled)
	}
	if _, settled := again.count(); settled != 10 {
		t.Errorf("the second run settled %d records, want 10", settled)
	}
	h.inOrder(t)
	if t.Failed() {
		t.Log(r.log)
	}
}

func TestBrokerStandby(t *testing.T) {
	w := inRealWorld(t, 4)
	release := make(chan struct{})
	var cut atomic.Int32
	h := &fakeHandler{work: func(ctx context.Context, g *Gate, rec *schema.Record, p *schema.Packed) error {
		err := until(release)(ctx, g, rec, p)
		if err != nil {
			cut.Add(1)
		}
		return err
	}}
	for p := range 4 {
		w.produce(p, events("s", 100*p+1, 5)...)
	}
	begun := time.Now()
	a := w.start("a", h)
	await(t, "all records to be in flight", func() bool { began, _ := h.count(); return began == 20 })
	t.Logf("first member: all records in flight after %s", time.Since(begun).Round(time.Millisecond))
	closed := watchGate(t, &a.c.gate)
	for i := range 3 {
		generation := a.c.Status().Generation
		b := w.start(fmt.Sprintf("b%d", i), new(fakeHandler))
		b.awaitRole(RoleStandby)
		a.awaitRole(RoleActive)
		if err := b.stop(); err != nil {
			t.Error(err)
		}
		await(t, "two more generations", func() bool {
			st := a.c.Status()
			return st.Generation >= generation+2 && st.GateOpen
		})
	}
	t.Logf("gate closed by joins and leaves of a standby: %v", closed())
	close(release)
	for p := range 4 {
		w.awaitCommit(p, 5)
	}
	if n := cut.Load(); n != 0 {
		t.Errorf("%d handlers were told to give up", n)
	}
	if began, settled := h.count(); began != 20 || settled != 20 {
		t.Errorf("began %d and settled %d records, want 20 each", began, settled)
	}
}

func TestBrokerTakeover(t *testing.T) {
	w := inRealWorld(t, 2)
	for p := range 2 {
		w.produce(p, events("s", 100*p+1, 10)...)
	}
	first := &fakeHandler{work: func(ctx context.Context, _ *Gate, rec *schema.Record, _ *schema.Packed) error {
		if rec.Offset < 4 {
			return nil
		}
		<-ctx.Done()
		return context.Cause(ctx)
	}}
	a := w.start("a", first)
	for p := range 2 {
		w.awaitCommit(p, 4)
	}
	second := new(fakeHandler)
	b := w.start("b", second)
	b.awaitRole(RoleStandby)
	killed := time.Now()
	a.kill()
	b.awaitRole(RoleActive)
	t.Logf("the standby took over %s after the kill, with a session of 6s", time.Since(killed).Round(time.Millisecond))
	for p := range 2 {
		w.awaitCommit(p, 10)
	}
	if _, settled := second.count(); settled != 12 {
		t.Errorf("the second settled %d records, want 12", settled)
	}
	third := w.start("c", new(fakeHandler))
	third.awaitRole(RoleStandby)
	stopped := time.Now()
	if err := b.stop(); err != nil {
		t.Error(err)
	}
	third.awaitRole(RoleActive)
	t.Logf("the next took over %s after the stop", time.Since(stopped).Round(time.Millisecond))
	if t.Failed() {
		t.Log(b.log)
	}
}

func TestBrokerMissingTopicAndAddedPartitions(t *testing.T) {
	w := inRealWorld(t, 0)
	h := new(fakeHandler)
	r := w.start("a", h)
	await(t, "the missing topic to be reported", func() bool { return r.log.count("not in the group", "does not exist") == 1 })
	w.createTopic(1)
	w.produce(0, events("s", 1, 3)...)
	w.awaitCommit(0, 3)
	res, err := w.client.CreatePartitions(t.Context(), &kafka.CreatePartitionsRequest{
		Topics: []kafka.TopicPartitionsConfig{{Name: w.topic, Count: 3}},
	})
	if err != nil || res.Errors[w.topic] != nil {
		t.Fatal(err, res)
	}
	await(t, "the new partitions to be held", func() bool {
		return len(r.c.Status().Partitions) == 3 && r.metric("packship_assigned_partitions") == 3
	})
	w.produce(2, events("s", 100, 3)...)
	w.awaitCommit(2, 3)
	if _, settled := h.count(); settled != 6 {
		t.Errorf("settled %d records, want 6", settled)
	}
	deleted, err := w.client.DeleteTopics(t.Context(), &kafka.DeleteTopicsRequest{Topics: []string{w.topic}})
	if err != nil || deleted.Errors[w.topic] != nil {
		t.Fatal(err, deleted)
	}
	await(t, "the loss of the topic to be noticed", func() bool { return r.c.Status().Role == RoleJoining })
	generation := r.c.Status().Generation
	time.Sleep(5 * time.Second)
	if got := r.c.Status().Generation; got > generation+joinBurst {
		t.Errorf("went from generation %d to %d without a topic", generation, got)
	}
	if t.Failed() {
		t.Log(r.log)
	}
}

func TestBrokerCommittedOffsetBeyondTheEnd(t *testing.T) {
	w := inRealWorld(t, 1)
	w.produce(0, events("s", 1, 10)...)
	res, err := w.client.OffsetCommit(t.Context(), &kafka.OffsetCommitRequest{
		GroupID: w.group, GenerationID: -1,
		Topics: map[string][]kafka.OffsetCommit{w.topic: {{Partition: 0, Offset: 40}}},
	})
	if err != nil || res.Topics[w.topic][0].Error != nil {
		t.Fatal(err, res)
	}
	h := new(fakeHandler)
	r := w.start("a", h)
	w.awaitCommit(0, 10)
	if _, settled := h.count(); settled != 10 {
		t.Errorf("settled %d records, want 10", settled)
	}
	if n := r.log.count("ERROR offsets skipped", "from=10", "to=39"); n != 1 {
		t.Errorf("%d log lines name the hole, want 1:\n%s", n, r.log)
	}
}

func TestBrokerTransactions(t *testing.T) {
	w := inRealWorld(t, 1)
	cl, err := kgo.NewClient(kgo.SeedBrokers(w.brokers...), kgo.TransactionalID(w.topic),
		kgo.DefaultProduceTopic(w.topic), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for i := range 10 { // every other one is taken back
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for j := range 3 {
			if err := cl.ProduceSync(t.Context(), kgo.StringRecord(event("s", 1+10*i+j))).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		if err := cl.EndTransaction(t.Context(), kgo.TransactionEndTry(i%2 == 0)); err != nil {
			t.Fatal(err)
		}
	}
	h := new(fakeHandler)
	w.start("a", h)
	w.awaitCommit(0, 40)
	if _, settled := h.count(); settled != 15 {
		t.Errorf("settled %d records, want 15", settled)
	}
}

func TestBrokerShelf(t *testing.T) {
	const parked, others = 20_000, 200
	w := inRealWorld(t, 1)
	w.produce(0, events("parked", 1, parked)...)
	w.produce(0, events("other", 1, others)...)
	h := new(blockingHandler)
	h.block("parked")
	r := w.start("a", h, func(c *Config) { c.Window = 100 })
	h.awaitSettled(t, others)
	w.awaitCommit(0, 0)
	await(t, "all parked orders to be on the shelf", func() bool {
		st := r.c.Status().Partitions
		return len(st) == 1 && st[0].Shelved == parked
	})
	began := time.Now()
	h.unblock("parked")
	w.awaitCommit(0, parked+others)
	t.Logf("%d records came back from the shelf in %s", parked, time.Since(began).Round(time.Millisecond))
	h.inOrder(t)
	if _, settled := h.count(); settled != parked+others {
		t.Errorf("settled %d records, want %d", settled, parked+others)
	}
}

// A member that is cut off in the middle of a join stays in the group until its
// session times out. If it is the one that held the partitions last, nobody has
// them until then.
func TestBrokerGhostOfAHolder(t *testing.T) {
	w := inRealWorld(t, 1)
	w.produce(0, events("s", 1, 5)...)
	h := new(fakeHandler)
	r := w.start("a", h)
	w.awaitCommit(0, 5)
	network := newCutNet(new(net.Dialer).DialContext)
	ghost := newSingleHolder("ghost")
	ghost.note(1000, true)
	group, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: w.group, Brokers: w.brokers, Topics: []string{w.topic}, GroupBalancers: []kafka.GroupBalancer{ghost},
		Dialer: &kafka.Dialer{DialFunc: network.DialContext}, SessionTimeout: 6 * time.Second, RebalanceTimeout: 10 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the ghost's join to end the holder's generation", func() bool {
		return !r.c.gate.IsOpen() || r.c.Status().Generation > 1
	})
	network.cut(true)
	begun := time.Now()
	if err := group.Close(); err != nil {
		t.Error(err)
	}
	await(t, "the partition to be held in a later generation", func() bool {
		st := r.c.Status()
		return st.Generation >= 2 && st.Role == RoleActive && st.GateOpen
	})
	t.Logf("the partition was held again %s after the ghost was cut off", time.Since(begun).Round(time.Millisecond))
	w.produce(0, events("s", 100, 5)...)
	w.awaitCommit(0, 10)
}
