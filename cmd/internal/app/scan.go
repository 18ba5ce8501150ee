package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"packship/schema"
)

// Scan calls each for every record that a topic holds at this moment, partition
// by partition, in the order of the log. It puts up with brokers that fail for a
// while, and returns the first error of each, or Kafka's.
//
// Where to end is asked of the partitions' leaders beforehand. A fetch does not
// tell it: a follower may answer one, with an end of its own that is older.
func (k *Kafka) Scan(ctx context.Context, topic string, each func(*schema.Record) error) error {
	ranges, err := k.Ranges(ctx, topic)
	if err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	for _, r := range ranges {
		if err := k.Read(ctx, topic, r, each); err != nil {
			return fmt.Errorf("scan: %w", err)
		}
	}
	return nil
}

// bounds asks the leaders of all partitions of a topic for the first offset and
// the one after the last.
func (k *Kafka) bounds(ctx context.Context, topic string) ([]kafka.PartitionOffsets, error) {
	meta, err := k.Client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return nil, fmt.Errorf("metadata of %s: %w", topic, err)
	}
	if len(meta.Topics) != 1 {
		return nil, fmt.Errorf("no metadata of %s", topic)
	}
	if err := meta.Topics[0].Error; err != nil {
		return nil, fmt.Errorf("metadata of %s: %w", topic, err)
	}
	var wanted []kafka.OffsetRequest
	for _, p := range meta.Topics[0].Partitions {
		wanted = append(wanted, kafka.FirstOffsetOf(p.ID), kafka.LastOffsetOf(p.ID))
	}
	res, err := k.Client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: wanted}})
	if err != nil {
		return nil, fmt.Errorf("ends of %s: %w", topic, err)
	}
	bounds := res.Topics[topic]
	slices.SortFunc(bounds, func(a, b kafka.PartitionOffsets) int { return a.Partition - b.Partition })
	for _, b := range bounds {
		if b.Error != nil {
			return nil, fmt.Errorf("ends of %s: partition %d: %w", topic, b.Partition, b.Error)
		}
	}
	return bounds, nil
}

// fetch reads once from an offset on, and returns where to go on.
func (k *Kafka) fetch(ctx context.Context, topic string, partition int, offset, end int64, each func(*schema.Record) error) (int64, error) {
	res, err := k.Client.Fetch(ctx, &kafka.FetchRequest{
		Topic: topic, Partition: partition, Offset: offset, MinBytes: 1, MaxBytes: 1 << 20, MaxWait: 300 * time.Millisecond,
	})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return offset, err
	}
	next := offset
	for {
		r, err := res.Records.ReadRecord()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return next, err
		}
		rec, err := plainRecord(topic, partition, r)
		if err != nil {
			return next, err
		}
		if rec.Offset < offset || rec.Offset >= end {
			continue
		}
		if err := each(rec); err != nil {
			return next, err
		}
		next = rec.Offset + 1
	}
	return past(res, next, offset), nil
}

// past returns the offset after an answer that holds no record at or above the
// one that was asked for: what is left of a compacted batch, or the mark of a
// transaction. Everything up to the base of its last batch was in the answer.
func past(res *kafka.FetchResponse, next, asked int64) int64 {
	stream, ok := res.Records.(*protocol.RecordStream)
	if next > asked || !ok || len(stream.Records) == 0 || asked >= res.HighWatermark {
		return next
	}
	switch b := stream.Records[len(stream.Records)-1].(type) {
	case *protocol.RecordBatch:
		return max(asked, b.BaseOffset) + 1
	case *protocol.ControlBatch:
		return max(asked, b.BaseOffset) + 1
	default:
		return asked + 1
	}
}

// plainRecord copies a record out of the buffers of kafka-go.
func plainRecord(topic string, partition int, r *kafka.Record) (*schema.Record, error) {
	rec := &schema.Record{Topic: topic, Partition: partition, Offset: r.Offset, Time: r.Time}
	for _, h := range r.Headers {
		rec.Headers = append(rec.Headers, schema.Header{Key: h.Key, Value: h.Value})
	}
	var err error
	if r.Key != nil {
		if rec.Key, err = kafka.ReadAll(r.Key); err != nil {
			return nil, err
		}
	}
	if r.Value != nil {
		if rec.Value, err = kafka.ReadAll(r.Value); err != nil {
			return nil, err
		}
	}
	return rec, nil
}
