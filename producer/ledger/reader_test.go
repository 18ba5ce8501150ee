package ledger

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/producer/internal/brokertest"
	"packship/schema"
)

// reader opens a Reader of a topic.
func reader(tb testing.TB, b *brokertest.Broker, topic string, change ...func(*ReaderConfig)) *Reader {
	tb.Helper()
	cfg := ReaderConfig{Client: b.Client(tb, topic), Topic: topic, Partitions: testPartitions, Horizon: testHorizon}
	for _, c := range change {
		c(&cfg)
	}
	r, err := OpenReader(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// records counts all records of a ledger.
func records(tb testing.TB, b *brokertest.Broker, topic string) int {
	tb.Helper()
	n := 0
	for p := range testPartitions {
		n += len(b.Log(tb, topic, p))
	}
	return n
}

// TestReader compares a Reader with a replica that has read the same ledger, and
// checks that it writes nothing to it.
func TestReader(t *testing.T) {
	for name, cluster := range brokertest.All {
		t.Run(name, func(t *testing.T) {
			b := cluster(t)
			topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
			if n := records(t, b, topic); n != 0 {
				t.Fatalf("a new topic has %d records", n)
			}
			if err := reader(t, b, topic).Load(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := records(t, b, topic); n != 0 {
				t.Errorf("a reader has written %d records to an empty ledger", n)
			}

			a := start(t, b, topic, "a")
			settle(t, a, shipment(1), "e1", claim(t, a, shipment(1), "e1", ""), nil)
			settle(t, a, shipment(2), "e1", claim(t, a, shipment(2), "e1", ""), refusal())
			h := claim(t, a, shipment(3), "e1", "")
			inDoubt := schema.Result{TID: shipment(3).TID, Failure: maybe(), Upstream: &schema.Exchange{Code: 101}}
			o, err := inDoubt.Outcome(shipment(3), h.Round, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Settle(t.Context(), shipment(3), "e1", h, schema.Settlement{Outcome: o}); err != nil {
				t.Fatal(err)
			}
			claim(t, a, shipment(4), "e1", "")
			if err := a.Release(t.Context(), shipment(5), claim(t, a, shipment(5), "e1", ""), "throttled", schema.Charge{}); err != nil {
				t.Fatal(err)
			}
			before := records(t, b, topic)
			var read atomic.Int64
			r := reader(t, b, topic, func(c *ReaderConfig) { c.Read = func(n int) { read.Add(int64(n)) } })
			if err := r.Load(t.Context()); err != nil {
				t.Fatal(err)
			}
			if size, err := r.Size(t.Context()); err != nil || size != read.Load() || int(size) != before {
				t.Errorf("size %d, %v, and %d records were read, want %d", size, err, read.Load(), before)
			}
			for n := 1; n <= 6; n++ {
				for _, event := range []string{"e1", "e2"} {
					want := a.Look(shipment(n), event)
					want.Mine = false
					if diff := cmp.Diff(want, r.Look(shipment(n), event), cmpopts.IgnoreFields(schema.Standing{}, "FreeAt")); diff != "" {
						t.Errorf("shipment %d, event %s (-replica +reader):\n%s", n, event, diff)
					}
				}
				if got := r.Shipped(shipment(n)); got != (n == 1) {
					t.Errorf("shipment %d is shipped: %t", n, got)
				}
			}
			want, err := a.History(t.Context(), shipment(3).TID)
			if err != nil {
				t.Fatal(err)
			}
			got, err := reader(t, b, topic).History(t.Context(), shipment(3).TID)
			if err != nil || len(got) != 2 {
				t.Errorf("history without a load: %d steps, %v; want 2", len(got), err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("history (-replica +reader):\n%s", diff)
			}
			if after := records(t, b, topic); after != before {
				t.Errorf("a reader has written %d records", after-before)
			}
			if why := r.Damaged(); why != "" {
				t.Errorf("damaged: %s", why)
			}
		})
	}
}

// TestReaderRefuses opens topics that are no ledger of these settings.
func TestReaderRefuses(t *testing.T) {
	b := brokertest.Fake(t)
	topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
	compacted := b.Topic(t, testPartitions, map[string]string{"cleanup.policy": "compact"})
	tests := map[string]struct {
		topic      string
		partitions int
		want       string
	}{
		"missing":    {"packship-test-missing", testPartitions, "does not exist: create it with `packship topics create`"},
		"partitions": {topic, testPartitions + 1, fmt.Sprintf("has %d partitions instead of %d", testPartitions, testPartitions+1)},
		"compacted":  {compacted, testPartitions, "cleanup.policy=compact"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := OpenReader(t.Context(), ReaderConfig{Client: b.Client(t, tt.topic), Topic: tt.topic, Partitions: tt.partitions, Horizon: testHorizon})
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q", err, tt.want)
			}
		})
	}

	// The topic has as many partitions as the settings say, and its records are
	// those of a ledger of another number.
	other := b.Topic(t, testPartitions, TopicConfig(testHorizon))
	putRecord(t, b, other, record{Kind: kindMeta, Meta: &meta{
		Version: version, Partitions: testPartitions + 1, Horizon: testHorizon.String(), Epoch: "other",
	}})
	if err := reader(t, b, other).Load(t.Context()); err == nil || !strings.Contains(err.Error(), "was made for 5 partitions, not 4") {
		t.Errorf("another ledger's records: got %v", err)
	}
}

// TestReaderKnowsDamage reads a ledger whose beginning is gone: what it does not
// know may have been lost, as it is for a replica.
func TestReaderKnowsDamage(t *testing.T) {
	b := brokertest.Fake(t)
	topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
	a := start(t, b, topic, "a")
	settle(t, a, shipment(1), "e1", claim(t, a, shipment(1), "e1", ""), nil)
	p := a.partition(shipment(1)).n
	b.DeleteRecords(t, topic, int32(p), 1)
	r := reader(t, b, topic)
	if err := r.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if why := r.Damaged(); !strings.Contains(why, "its beginning is gone") {
		t.Errorf("damaged: %q", why)
	}
	inThere := 0
	for n := 2; inThere == 0; n++ {
		if s := shipment(n); a.partition(s).n == p {
			if inThere++; r.Look(s, "e1").LostBefore.IsZero() {
				t.Error("a shipment without a record counts as new")
			}
		}
	}
	if !r.Shipped(shipment(1)) {
		t.Error("what is left is not read")
	}
}

// TestReaderForgets has a Reader forget what the horizon has passed, although the
// log still holds the records. What it is asked to tell of them begins anew where
// an attempt was made by a writer that had forgotten them, too.
func TestReaderForgets(t *testing.T) {
	b := brokertest.Fake(t)
	topic := b.Topic(t, 1, map[string]string{"retention.ms": "-1", "message.timestamp.type": "CreateTime"})
	client := b.Client(t, topic)
	one := func(c *ReaderConfig) { c.Partitions = 1 }
	write := func(at time.Time, s *schema.Shipment, r record) {
		t.Helper()
		value, err := r.encode()
		if err != nil {
			t.Fatal(err)
		}
		for try := range 50 {
			rec := kafka.Record{Time: at, Value: kafka.NewBytes(value)}
			if s != nil {
				rec.Key = kafka.NewBytes([]byte(s.Canonical()))
			}
			res, err := client.Produce(t.Context(), &kafka.ProduceRequest{Topic: topic, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(rec)})
			if err == nil {
				err = res.Error
			}
			if err == nil {
				return
			}
			if try == 49 {
				t.Fatal(err)
			}
			sleep(t.Context(), 100*time.Millisecond) // the client has yet to learn of the topic
		}
	}
	ship := func(n int, at time.Time) {
		t.Helper()
		write(at, shipment(n), record{Kind: kindIntent, Attempt: "w/0/1", Event: "e1", Round: 1})
		body, err := encodeOutcome(&schema.Outcome{Verdict: schema.Shipped})
		if err != nil {
			t.Fatal(err)
		}
		write(at, shipment(n), record{Kind: kindOutcome, Attempt: "w/0/1", Event: "e1", Round: 1, Outcome: body})
	}
	now := time.Now()
	write(now.Add(-2*testHorizon), nil, record{Kind: kindMeta, Meta: &meta{Version: version, Partitions: 1, Horizon: testHorizon.String(), Epoch: "e"}})
	ship(1, now.Add(-testHorizon-48*time.Hour))
	ship(4, now.Add(-testHorizon-48*time.Hour))
	ship(2, now.Add(-testHorizon+48*time.Hour))
	ship(3, now)
	ship(1, now)
	r := reader(t, b, topic, one)
	if err := r.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]bool{4: false, 2: true, 3: true, 1: true} {
		if got := r.Shipped(shipment(n)); got != want {
			t.Errorf("shipment %d: shipped %t, want %t", n, got, want)
		}
	}
	if why := r.Damaged(); why != "" {
		t.Errorf("damaged: %s", why)
	}
	steps, err := r.History(t.Context(), shipment(1).TID)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range steps {
		if !s.Counts {
			t.Errorf("record %d of its history, an %s of %s, does not count", i, s.Kind, s.Time)
		}
	}
	if len(steps) != 4 {
		t.Errorf("%d records in its history, want 4", len(steps))
	}
}

// TestReaderIsPatient reads from brokers that fail for a while.
func TestReaderIsPatient(t *testing.T) {
	b := brokertest.Fake(t)
	topic := b.Topic(t, testPartitions, TopicConfig(testHorizon))
	a := start(t, b, topic, "a")
	settle(t, a, shipment(1), "e1", claim(t, a, shipment(1), "e1", ""), nil)
	if err := a.kill(); err != nil {
		t.Fatal(err)
	}
	r := reader(t, b, topic)
	moving := b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: topic, Err: kerr.NotLeaderForPartition, Count: 3})
	b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: topic, Err: kerr.LeaderNotAvailable, Count: 2})
	if err := r.Load(t.Context()); err != nil || !r.Shipped(shipment(1)) {
		t.Errorf("load: %v", err)
	}
	if moving.Hits() != 3 {
		t.Errorf("%d fetches failed, want 3", moving.Hits())
	}
}
