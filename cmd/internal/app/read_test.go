package app

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"packship/schema"
)

// TestRead reads ranges from brokers that fail for a while, and over what
// retention has removed.
func TestRead(t *testing.T) {
	c := newCluster(t)
	s := kafkaSettings(c)
	k := NewKafka(&s, nil)
	defer k.Close()
	if _, err := k.CreateTopics(t.Context(), 2, 1); err != nil {
		t.Fatal(err)
	}
	begin := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	for i := range 10 {
		res, err := k.Client.Produce(t.Context(), &kafka.ProduceRequest{
			Topic: s.TopicPacked, Partition: 1, RequiredAcks: kafka.RequireAll,
			Records: kafka.NewRecordReader(kafka.Record{Time: begin.Add(time.Duration(i) * time.Hour), Value: kafka.NewBytes([]byte(fmt.Sprint(i)))}),
		})
		if err != nil || res.Error != nil {
			t.Fatal(err, res)
		}
	}
	read := func(from, to int64) string {
		t.Helper()
		var got []string
		err := k.Read(t.Context(), s.TopicPacked, Range{Partition: 1, From: from, To: to}, func(r *schema.Record) error {
			got = append(got, string(r.Value))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(got, "")
	}
	ranges, err := k.Ranges(t.Context(), s.TopicPacked)
	if diff := cmp.Diff([]Range{{0, 0, 0}, {1, 0, 10}}, ranges); err != nil || diff != "" {
		t.Errorf("%v; ranges (-want +got):\n%s", err, diff)
	}
	if got := read(0, 10); got != "0123456789" {
		t.Errorf("all: %s", got)
	}
	if got := read(3, 5); got != "34" {
		t.Errorf("3 to 5: %s", got)
	}
	if got := read(5, 5) + read(7, 5); got != "" {
		t.Errorf("nothing: %s", got)
	}
	failing := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: s.TopicPacked, Err: kerr.NotLeaderForPartition, Count: 3})
	if got := read(0, 10); got != "0123456789" || failing.Hits() != 3 {
		t.Errorf("from failing brokers: %s, %d failed", got, failing.Hits())
	}

	enough := errors.New("enough")
	n := 0
	err = k.Read(t.Context(), s.TopicPacked, Range{Partition: 1, From: 0, To: 10}, func(*schema.Record) error { n++; return enough })
	if !errors.Is(err, enough) || n != 1 {
		t.Errorf("got %v after %d records, want the callback's error after the first", err, n)
	}

	for at, want := range map[time.Duration]int64{-time.Hour: 0, 0: 0, 90 * time.Minute: 2, 9 * time.Hour: 9, 10 * time.Hour: 10, -100 * 365 * 24 * time.Hour: 0} {
		offsets, err := k.OffsetsAt(t.Context(), s.TopicPacked, begin.Add(at))
		if diff := cmp.Diff(map[int]int64{0: 0, 1: want}, offsets); err != nil || diff != "" {
			t.Errorf("%s: %v; offsets (-want +got):\n%s", at, err, diff)
		}
	}

	deleteRecords(t, c.ListenAddrs(), s.TopicPacked, 1, 6)
	if got := read(2, 10); got != "6789" {
		t.Errorf("where the beginning is gone: %s", got)
	}
	if got := read(2, 4); got != "" {
		t.Errorf("where all is gone: %s", got)
	}
	if _, err := k.Ranges(t.Context(), "missing"); !errors.Is(err, kafka.UnknownTopicOrPartition) {
		t.Errorf("a missing topic: %v", err)
	}
	if members, err := k.Members(t.Context()); err != nil || len(members) != 0 {
		t.Errorf("members of a group that nobody has heard of: %v, %v", members, err)
	}
	if progress, err := k.Progress(t.Context()); err != nil || progress[1].Committed != -1 || progress[1].Lag() != 4 {
		t.Errorf("progress of a group that nobody has heard of: %+v, %v", progress, err)
	}

	failing = c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: s.TopicPacked, Err: kerr.NotLeaderForPartition, Count: 3})
	if progress, err := k.Progress(t.Context()); err != nil || progress[1].Lag() != 4 || failing.Hits() != 3 {
		t.Errorf("progress while a leader moves: %+v, %v, %d failed", progress, err, failing.Hits())
	}
}

// deleteRecords deletes the records of a partition that stand before an offset,
// as retention does.
func deleteRecords(t *testing.T, brokers []string, topic string, partition int32, before int64) {
	t.Helper()
	admin, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: topic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Partition: partition, Offset: before}}}}
	res, err := req.RequestWith(t.Context(), admin)
	if err == nil {
		err = kerr.ErrorForCode(res.Topics[0].Partitions[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestReadBrokenOff ends a read between the requests into which kafka-go splits
// it: one is answered, the next fails as if Kafka did not know why.
func TestReadBrokenOff(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	tries := 0
	err := patiently(ctx, func() error {
		tries++
		stop()
		return kafka.Unknown
	})
	if !errors.Is(err, context.Canceled) || tries != 1 {
		t.Errorf("got %v after %d tries, want the end of the context after one", err, tries)
	}
	if err := patiently(ctx, func() error { return nil }); err != nil {
		t.Errorf("a try that worked before it was broken off: %v", err)
	}
}
