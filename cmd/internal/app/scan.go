package app

import (
	"context"
	"fmt"
	"slices"

	"github.com/segmentio/kafka-go"

	"packship/consumer"
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
// the one after the last that no open transaction may take back.
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
	res, err := k.Client.ListOffsets(ctx, &kafka.ListOffsetsRequest{
		Topics: map[string][]kafka.OffsetRequest{topic: wanted}, IsolationLevel: kafka.ReadCommitted,
	})
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
	res, err := consumer.Fetch(ctx, k.Client, topic, partition, offset)
	if err != nil {
		return offset, err
	}
	return res.Each(func(rec *schema.Record) error {
		if rec.Offset >= end {
			return nil
		}
		return each(rec)
	})
}
