package app

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kgo"

	"packship/schema"
)

// TestScan reads a topic of two partitions, one of them compacted to gaps, as
// it was when the scan began.
func TestScan(t *testing.T) {
	c := newCluster(t)
	s := kafkaSettings(c)
	k := NewKafka(&s, nil)
	defer k.Close()
	const topic = "scanned"
	res, err := k.Client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
		Topic: topic, NumPartitions: 2, ReplicationFactor: 1,
		ConfigEntries: []kafka.ConfigEntry{{ConfigName: "cleanup.policy", ConfigValue: "compact"}},
	}}})
	if err != nil || res.Errors[topic] != nil {
		t.Fatal(err, res)
	}
	put := func(partition int, keys ...string) {
		t.Helper()
		var records []kafka.Record
		for _, key := range keys {
			r := kafka.Record{Key: kafka.NewBytes([]byte(key)), Value: kafka.NewBytes([]byte("v-" + key)), Headers: []kafka.Header{{Key: "h", Value: []byte(key)}}}
			if key == "tombstone" {
				r.Value = nil
			}
			records = append(records, r)
		}
		res, err := k.Client.Produce(t.Context(), &kafka.ProduceRequest{
			Topic: topic, Partition: partition, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(records...),
		})
		if err == nil {
			err = res.Error
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	scan := func() (got []string) {
		t.Helper()
		err := k.Scan(t.Context(), topic, func(r *schema.Record) error {
			header, _ := r.Header("h")
			got = append(got, fmt.Sprintf("%d/%d %s=%s %s %t", r.Partition, r.Offset, r.Key, r.Value, header, r.Value == nil))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := scan(); len(got) != 0 {
		t.Errorf("an empty topic holds %v", got)
	}
	put(0, "a", "b")
	put(0, "a", "tombstone")
	put(0, "d") // a compaction leaves the last batch as it is
	put(1, "c")
	want := []string{
		"0/0 a=v-a a false", "0/1 b=v-b b false", "0/2 a=v-a a false", "0/3 tombstone= tombstone true", "0/4 d=v-d d false",
		"1/0 c=v-c c false",
	}
	if diff := cmp.Diff(want, scan()); diff != "" {
		t.Errorf("before the compaction (-want +got):\n%s", diff)
	}
	c.Compact()
	if diff := cmp.Diff(want[1:], scan()); diff != "" {
		t.Errorf("after the compaction (-want +got):\n%s", diff)
	}

	enough := errors.New("enough")
	n := 0
	if err := k.Scan(t.Context(), topic, func(*schema.Record) error { n++; return enough }); !errors.Is(err, enough) || n != 1 {
		t.Errorf("got %v after %d records, want the callback's error after the first", err, n)
	}
	if err := k.Scan(t.Context(), "missing", nil); !errors.Is(err, kafka.UnknownTopicOrPartition) {
		t.Errorf("a missing topic: got %v", err)
	}
}

// TestScanLeavesOutWhatIsTakenBack scans a topic with a committed, an aborted and an
// open transaction, as the connector reads it: a command that counts orders counts
// those that will be called for.
func TestScanLeavesOutWhatIsTakenBack(t *testing.T) {
	c := newCluster(t)
	s := kafkaSettings(c)
	k := NewKafka(&s, nil)
	defer k.Close()
	if _, err := k.CreateTopics(t.Context(), 1, 1); err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.KafkaBrokers...), kgo.TransactionalID("outbox"), kgo.DefaultProduceTopic(s.TopicPacked))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	pack := func(values ...string) {
		t.Helper()
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for _, v := range values {
			if err := cl.ProduceSync(t.Context(), kgo.StringRecord(v)).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	end := func(how kgo.TransactionEndTry) {
		t.Helper()
		if err := cl.EndTransaction(t.Context(), how); err != nil {
			t.Fatal(err)
		}
	}
	scan := func() (got []string) {
		t.Helper()
		if err := k.Scan(t.Context(), s.TopicPacked, func(r *schema.Record) error {
			got = append(got, fmt.Sprintf("%d=%s", r.Offset, r.Value))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return got
	}
	pack("a", "b")
	end(kgo.TryCommit)
	pack("c", "d")
	end(kgo.TryAbort)
	pack("e", "f")
	if diff := cmp.Diff([]string{"0=a", "1=b"}, scan()); diff != "" {
		t.Errorf("one is open (-want +got):\n%s", diff)
	}
	end(kgo.TryCommit)
	if diff := cmp.Diff([]string{"0=a", "1=b", "6=e", "7=f"}, scan()); diff != "" {
		t.Errorf("all are over (-want +got):\n%s", diff)
	}
}

// TestProgress looks at a group that has committed in one of two partitions, and
// moves it.
func TestProgress(t *testing.T) {
	c := newCluster(t)
	s := kafkaSettings(c)
	k := NewKafka(&s, nil)
	defer k.Close()
	if _, err := k.CreateTopics(t.Context(), 2, 1); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, err := k.Client.Produce(t.Context(), &kafka.ProduceRequest{
			Topic: s.TopicPacked, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(kafka.Record{Value: kafka.NewBytes([]byte("v"))}),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// What a member has committed beside its offset outlives a move.
	if _, err := k.Client.OffsetCommit(t.Context(), &kafka.OffsetCommitRequest{
		GroupID: s.KafkaGroupID, GenerationID: -1,
		Topics: map[string][]kafka.OffsetCommit{s.TopicPacked: {{Partition: 0, Offset: 3, Metadata: "ledger"}}},
	}); err != nil {
		t.Fatal(err)
	}
	if err := k.Rewind(t.Context(), map[int]int64{0: 1}); err != nil {
		t.Fatal(err)
	}
	got, err := k.Progress(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []Progress{{Partition: 0, Committed: 1, End: 3, Metadata: "ledger"}, {Partition: 1, Committed: -1}}
	if diff := cmp.Diff(want, got); diff != "" || got[0].Lag() != 2 || got[1].Lag() != 0 {
		t.Errorf("lags %d and %d; progress (-want +got):\n%s", got[0].Lag(), got[1].Lag(), diff)
	}
}
