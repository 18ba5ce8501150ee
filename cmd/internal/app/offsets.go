package app

import (
	"context"
	"fmt"

	"github.com/segmentio/kafka-go"
)

// Progress is how far the group has come in a partition of the packed topic.
type Progress struct {
	Partition int
	First     int64 // of the records that are still there
	Committed int64 // -1 if the group has committed nothing
	End       int64
}

// Lag is how many offsets lie before the group.
func (p Progress) Lag() int64 { return p.End - max(p.Committed, p.First) }

// Progress tells how far the group has come in every partition, in their order.
func (k *Kafka) Progress(ctx context.Context) ([]Progress, error) {
	s := k.settings
	bounds, err := k.bounds(ctx, s.TopicPacked)
	if err != nil {
		return nil, fmt.Errorf("offsets: %w", err)
	}
	list := make([]Progress, len(bounds))
	ids := make([]int, len(bounds))
	index := map[int]int{}
	for i, b := range bounds {
		list[i] = Progress{Partition: b.Partition, First: b.FirstOffset, End: b.LastOffset, Committed: -1}
		ids[i], index[b.Partition] = b.Partition, i
	}
	res, err := k.Client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: s.KafkaGroupID, Topics: map[string][]int{s.TopicPacked: ids}})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return nil, fmt.Errorf("offsets: of group %s: %w", s.KafkaGroupID, err)
	}
	for _, p := range res.Topics[s.TopicPacked] {
		if p.Error != nil {
			return nil, fmt.Errorf("offsets: of group %s in partition %d: %w", s.KafkaGroupID, p.Partition, p.Error)
		}
		list[index[p.Partition]].Committed = p.CommittedOffset
	}
	return list, nil
}

// Rewind moves the group to the given offsets, by partition. Kafka refuses it
// while the group has members.
func (k *Kafka) Rewind(ctx context.Context, offsets map[int]int64) error {
	s := k.settings
	var commits []kafka.OffsetCommit
	for partition, offset := range offsets {
		commits = append(commits, kafka.OffsetCommit{Partition: partition, Offset: offset})
	}
	res, err := k.Client.OffsetCommit(ctx, &kafka.OffsetCommitRequest{
		GroupID: s.KafkaGroupID, GenerationID: -1, // of a group without members
		Topics: map[string][]kafka.OffsetCommit{s.TopicPacked: commits},
	})
	if err != nil {
		return fmt.Errorf("offsets: move group %s: %w", s.KafkaGroupID, err)
	}
	for _, p := range res.Topics[s.TopicPacked] {
		if p.Error != nil {
			return fmt.Errorf("offsets: move group %s in partition %d: %w; stop all replicas first", s.KafkaGroupID, p.Partition, p.Error)
		}
	}
	return nil
}
