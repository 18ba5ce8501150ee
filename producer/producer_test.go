package producer

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/producer/internal/brokertest"
	"packship/schema"
)

// topics are the topics of a Producer under test.
type topics struct{ shipped, failed, dead, packed string }

func newTopics(t *testing.T, b *brokertest.Broker) topics {
	t.Helper()
	return topics{b.Topic(t, 5, nil), b.Topic(t, 5, nil), b.Topic(t, 3, nil), b.Topic(t, 5, nil)}
}

func newProducer(t *testing.T, b *brokertest.Broker, names topics, reg prometheus.Registerer) (*Producer, *logs) {
	t.Helper()
	log, lines := newLogger()
	p, err := New(Config{
		Client:       b.Client(t, names.shipped, names.failed, names.dead, names.packed),
		ShippedTopic: names.shipped, FailedTopic: names.failed, DeadLetterTopic: names.dead, PackedTopic: names.packed,
		Source: "packship/orders", Logger: log, Registerer: reg,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p, lines
}

func outcome(t *testing.T, tid string, failed bool) schema.Outcome {
	t.Helper()
	s := schema.Shipment{ShopID: "1", TID: tid, Split: "0", OutSID: "SF1", CompanyCode: "SF"}
	r := schema.Result{ShopID: "1", TID: tid, OutSID: "SF1", CompanyCode: "SF", Upstream: &schema.Exchange{Msg: "成功 <&>"}}
	if failed {
		r.Failure = &schema.Failure{Reason: "waybill_already_used", Class: "waybill_rejected"}
	}
	o, err := r.Outcome(&s, 1, time.Date(2026, 11, 24, 2, 0, 0, 123e6, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// find returns the only record of a topic, and its partition.
func find(t *testing.T, b *brokertest.Broker, topic string, partitions int) (brokertest.Record, int) {
	t.Helper()
	var found brokertest.Record
	at := -1
	for p := range partitions {
		for _, rec := range b.Log(t, topic, p) {
			if at >= 0 {
				t.Fatalf("topic %s has more than one record", topic)
			}
			found, at = rec, p
		}
	}
	if at < 0 {
		t.Fatalf("topic %s is empty", topic)
	}
	return found, at
}

func headers(rec brokertest.Record) map[string]string {
	h := make(map[string]string)
	for _, header := range rec.Headers {
		h[header.Key] = string(header.Value)
	}
	return h
}

func TestPublish(t *testing.T) {
	for name, cluster := range brokertest.All {
		t.Run(name, func(t *testing.T) {
			b := cluster(t)
			names := newTopics(t, b)
			reg := prometheus.NewPedanticRegistry()
			p, _ := newProducer(t, b, names, reg)
			const tid = "3941893279420000001"
			const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
			for _, failed := range []bool{false, true} {
				o := outcome(t, tid, failed)
				pub := schema.Publication{TID: tid, Outcome: o, InReplyTo: "evt-1", TraceParent: trace, TraceState: "vendor=x"}
				if err := p.Publish(t.Context(), pub); err != nil {
					t.Fatal(err)
				}
				topic, eventType := names.shipped, schema.TypeShipped
				if failed {
					topic, eventType = names.failed, schema.TypeFailed
				}
				rec, partition := find(t, b, topic, 5)
				if want := PartitionOf([]byte(tid), 5); partition != want {
					t.Errorf("got partition %d, want %d", partition, want)
				}
				if string(rec.Key) != tid || !bytes.Equal(rec.Value, o.Event) {
					t.Errorf("got key %q, value %s", rec.Key, rec.Value)
				}
				got := headers(rec)
				if span := got["traceparent"]; !strings.HasPrefix(span, trace[:36]) || span == trace {
					t.Errorf("got traceparent %s, want another span of the trace of %s", span, trace)
				}
				delete(got, "traceparent")
				want := map[string]string{
					"ce_specversion": "1.0", "ce_id": o.ResultID, "ce_type": eventType, "ce_source": "packship/orders",
					"ce_subject": tid, "ce_time": "2026-11-24T02:00:00.123Z", "content-type": "application/json",
					"in_reply_to": "evt-1", "tracestate": "vendor=x",
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("headers (-want +got):\n%s", diff)
				}
				if got := testutil.ToFloat64(p.metrics.published.WithLabelValues(topic)); got != 1 {
					t.Errorf("got %v published", got)
				}
			}
			if n, err := testutil.GatherAndCount(reg, "packship_results_published_total", "packship_result_publish_failures_total"); err != nil || n != 8 {
				t.Errorf("got %d series, %v, want those of all topics from the start", n, err)
			}
		})
	}
}

func TestPublishDropsBrokenTrace(t *testing.T) {
	b := brokertest.Fake(t)
	names := newTopics(t, b)
	p, _ := newProducer(t, b, names, nil)
	pub := schema.Publication{TID: "1", Outcome: outcome(t, "1", false), TraceParent: "00-nonsense", TraceState: "vendor=x"}
	if err := p.Publish(t.Context(), pub); err != nil {
		t.Fatal(err)
	}
	rec, _ := find(t, b, names.shipped, 5)
	got := headers(rec)
	for _, name := range []string{"traceparent", "tracestate"} {
		if v, ok := got[name]; ok {
			t.Errorf("got %s %q", name, v)
		}
	}
	if err := p.Publish(t.Context(), schema.Publication{TID: "1"}); err == nil {
		t.Error("an outcome without an event was published")
	}
}

func TestBury(t *testing.T) {
	for name, cluster := range brokertest.All {
		t.Run(name, func(t *testing.T) {
			b := cluster(t)
			for name, tt := range map[string]struct {
				rec  schema.Record
				want map[string]string
			}{
				"with everything": {
					schema.Record{
						Topic: "packed", Partition: 3, Offset: 42, Key: []byte("k"), Value: []byte("no event"),
						Headers: []schema.Header{{Key: "own", Value: []byte("1")}},
					},
					map[string]string{"own": "1", "packship_topic": "packed", "packship_partition": "3", "packship_offset": "42"},
				},
				"with nothing": {
					schema.Record{Topic: "packed"},
					map[string]string{"packship_topic": "packed", "packship_partition": "0", "packship_offset": "0"},
				},
				"with an empty key and value": {
					schema.Record{Topic: "packed", Key: []byte{}, Value: []byte{}},
					map[string]string{"packship_topic": "packed", "packship_partition": "0", "packship_offset": "0"},
				},
			} {
				t.Run(name, func(t *testing.T) {
					names := newTopics(t, b)
					p, _ := newProducer(t, b, names, nil)
					before := time.Now().Truncate(time.Millisecond)
					if err := p.Bury(t.Context(), &tt.rec, schema.ReasonNotJSON, "it is prose"); err != nil {
						t.Fatal(err)
					}
					rec, _ := find(t, b, names.dead, 3)
					if diff := cmp.Diff([][]byte{tt.rec.Key, tt.rec.Value}, [][]byte{rec.Key, rec.Value}); diff != "" {
						t.Errorf("key and value (-want +got):\n%s", diff)
					}
					got := headers(rec)
					at, err := time.Parse(time.RFC3339, got["packship_at"])
					if err != nil || at.Before(before) || at.After(time.Now()) {
						t.Errorf("got packship_at %q", got["packship_at"])
					}
					delete(got, "packship_at")
					tt.want["packship_reason"], tt.want["packship_detail"] = schema.ReasonNotJSON, "it is prose"
					if diff := cmp.Diff(tt.want, got); diff != "" {
						t.Errorf("headers (-want +got):\n%s", diff)
					}
				})
			}
		})
	}
}

// TestProduceFollowsPartitions sees that a topic that grows is used as it is.
func TestProduceFollowsPartitions(t *testing.T) {
	b := brokertest.Fake(t)
	names := newTopics(t, b)
	p, _ := newProducer(t, b, names, nil)
	client := b.Client(t, names.packed)
	res, err := client.CreatePartitions(t.Context(), &kafka.CreatePartitionsRequest{
		Topics: []kafka.TopicPartitionsConfig{{Name: names.packed, Count: 40}},
	})
	if err != nil || res.Errors[names.packed] != nil {
		t.Fatal(err, res)
	}
	key := []byte("a key that moves")
	if PartitionOf(key, 5) == PartitionOf(key, 40) {
		t.Fatal("it does not move")
	}
	waitFor(t, func() bool {
		if err := p.Produce(t.Context(), names.packed, key, []byte("v"), nil); err != nil {
			t.Fatal(err)
		}
		return len(b.Log(t, names.packed, PartitionOf(key, 40))) > 0
	})
}

func TestProduceWaitsForItsTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		names := topics{"shipped", "failed", "dead", "packed"}
		p, lines := newProducer(t, b, names, nil)
		time.AfterFunc(time.Minute, func() { b.Create(t, "packed", 4, nil) })
		start := time.Now()
		if err := p.Produce(t.Context(), "packed", []byte("k"), []byte("v"), nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < time.Minute || took > time.Minute+2*maxBackoff {
			t.Errorf("took %s", took)
		}
		if got := lines.lines("WARN"); len(got) != 1 || !strings.Contains(got[0], "packship topics create") {
			t.Errorf("got %q, want one line that says what to do", got)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := p.Produce(ctx, "shipped", []byte("k"), []byte("v"), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want that it is given up", err)
		}
		if err := p.Produce(ctx, "another", nil, nil, nil); err == nil || !strings.Contains(err.Error(), `"another"`) {
			t.Errorf("got %v for a topic that was not set", err)
		}
	})
}

// TestRunFlushes sees that Run returns after what was given has been appended.
func TestRunFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.Virtual(t)
		for _, name := range []string{"shipped", "failed", "dead", "packed"} {
			b.Create(t, name, 1, nil)
		}
		p, _ := newProducer(t, b, topics{"shipped", "failed", "dead", "packed"}, nil)
		f := b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var published, ended time.Time
		wg.Go(func() {
			if err := p.Publish(t.Context(), schema.Publication{TID: "1", Outcome: outcome(t, "1", false)}); err != nil {
				t.Error(err)
			}
			published = time.Now()
		})
		wg.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Error(err)
			}
			ended = time.Now()
		})
		synctest.Wait()
		stop()
		time.Sleep(10 * time.Second)
		if !ended.IsZero() || !published.IsZero() {
			t.Error("Run has not waited")
		}
		f.Remove()
		wg.Wait()
		if ended.Before(published) {
			t.Error("Run has not waited")
		}
		if got := testutil.ToFloat64(p.metrics.failures.WithLabelValues("shipped")); got == 0 {
			t.Error("no failures were counted")
		}
	})
}

func TestNewNeedsAClient(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("got no error")
	}
}

// TestPartitionOf compares with what the Java client computes: the hashes are
// the vectors of its own test of murmur2.
func TestPartitionOf(t *testing.T) {
	for key, hash := range map[string]int32{
		"21":                         -973932308,
		"foobar":                     -790332482,
		"a-little-bit-long-string":   -985981536,
		"a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		for _, n := range []int{1, 2, 3, 5, 8, 12, 100, 1000} {
			want := int(hash&0x7fffffff) % n
			if got := PartitionOf([]byte(key), n); got != want {
				t.Errorf("%q of %d: got %d, want %d", key, n, got, want)
			}
		}
	}
	seen := make(map[int]bool)
	for range 1000 {
		seen[PartitionOf(nil, 4)] = true
	}
	if len(seen) != 4 {
		t.Errorf("records without a key went to %v", seen)
	}
	if a, b := PartitionOf([]byte{}, 1000), PartitionOf([]byte{}, 1000); a != b {
		t.Error("an empty key is a key")
	}
}

func TestNextSpan(t *testing.T) {
	const trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for in, flags := range map[string]string{
		"00-" + trace + "-" + span + "-01":            "01",
		"00-" + trace + "-" + span + "-00":            "00",
		"00-" + trace + "-" + span + "-03":            "03",
		"00-" + trace + "-" + span + "-ff":            "03", // flags of later levels are not passed on
		"cc-" + trace + "-" + span + "-01":            "01",
		"cc-" + trace + "-" + span + "-01-what-later": "01",
	} {
		got, ok := nextSpan(in)
		if !ok || len(got) != 55 || got[:36] != "00-"+trace+"-" || got[52:] != "-"+flags || got[36:52] == span || strings.Trim(got[36:52], "0") == "" {
			t.Errorf("%s became %s, %v", in, got, ok)
		}
		if again, _ := nextSpan(in); again == got {
			t.Errorf("%s has the same span twice", in)
		}
	}
	for _, in := range []string{
		"", "00", "00-" + trace + "-" + span, "00-" + trace + "-" + span + "-01-more", "00-" + trace + "-" + span + "-01.",
		"ff-" + trace + "-" + span + "-01", "cc-" + trace + "-" + span + "-01more",
		"00-" + strings.ToUpper(trace) + "-" + span + "-01", "00-" + trace + "-" + strings.ToUpper(span) + "-01",
		"00-" + strings.Repeat("0", 32) + "-" + span + "-01", "00-" + trace + "-" + strings.Repeat("0", 16) + "-01",
		"0g-" + trace + "-" + span + "-01", "00-" + trace + "-" + span + "-0x", "00_" + trace + "_" + span + "_01",
		"00-" + trace[:31] + "--" + span + "-01", "000-" + trace[:31] + "-" + span + "-01",
	} {
		if got, ok := nextSpan(in); ok {
			t.Errorf("%q became %s", in, got)
		}
	}
}

func FuzzNextSpan(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Add("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more")
	f.Add("-")
	f.Fuzz(func(t *testing.T, in string) {
		got, ok := nextSpan(in)
		if !ok {
			return
		}
		again, ok := nextSpan(got)
		if !ok || len(got) != 55 || got[3:35] != in[3:35] || again[3:35] != in[3:35] {
			t.Errorf("%q became %q, then %q", in, got, again)
		}
	})
}
