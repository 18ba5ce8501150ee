package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/segmentio/kafka-go"
)

// Progress is how far a group has come in a partition of a topic.
type Progress struct {
	Partition int
	First     int64 // of the records that are still there
	Committed int64 // -1 if the group has committed nothing
	End       int64
	Metadata  string // what is committed beside the offset
}

// Lag is how many offsets lie before the group.
func (p Progress) Lag() int64 { return p.End - max(p.Committed, p.First) }

// Progress tells how far the consumer group has come in every partition of the
// packed topic, in their order.
func (k *Kafka) Progress(ctx context.Context) ([]Progress, error) {
	return k.ProgressOf(ctx, k.settings.KafkaGroupID, k.settings.TopicPacked)
}

// ProgressOf tells how far a group has come in every partition of a topic, in
// their order.
func (k *Kafka) ProgressOf(ctx context.Context, group, topic string) ([]Progress, error) {
	ranges, err := k.Ranges(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("offsets: %w", err)
	}
	list := make([]Progress, len(ranges))
	ids := make([]int, len(ranges))
	index := map[int]int{}
	for i, r := range ranges {
		list[i] = Progress{Partition: r.Partition, First: r.From, End: r.To, Committed: -1}
		ids[i], index[r.Partition] = r.Partition, i
	}
	var res *kafka.OffsetFetchResponse
	err = patiently(ctx, func() (err error) { // a group's coordinator may yet have to be found
		if res, err = k.Client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: group, Topics: map[string][]int{topic: ids}}); err == nil {
			err = res.Error
		}
		if errors.Is(err, kafka.GroupIdNotFound) { // it has never committed
			res, err = &kafka.OffsetFetchResponse{}, nil
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("offsets: of group %s: %w", group, k.forGroup(err, group))
	}
	for _, p := range res.Topics[topic] {
		if p.Error != nil {
			return nil, fmt.Errorf("offsets: of group %s in partition %d: %w", group, p.Partition, p.Error)
		}
		at := &list[index[p.Partition]]
		at.Committed, at.Metadata = p.CommittedOffset, p.Metadata
	}
	return list, nil
}

// forGroup adds to an error about a missing right on a group who needs which.
func (k *Kafka) forGroup(err error, group string) error {
	if !errors.Is(err, kafka.GroupAuthorizationFailed) {
		return err
	}
	return fmt.Errorf("%w; grant %s the rights Read and Describe on group %s", err, cmp.Or(k.settings.Principal(), "this client"), group)
}

// Rewind moves the consumer group to the given offsets of the packed topic, by
// partition. Kafka refuses it while the group has members.
func (k *Kafka) Rewind(ctx context.Context, offsets map[int]int64) error {
	return k.Move(ctx, k.settings.KafkaGroupID, k.settings.TopicPacked, offsets)
}

// Move moves a group to the given offsets of a topic, by partition. What is
// committed beside an offset stays. Kafka refuses it while the group has members.
func (k *Kafka) Move(ctx context.Context, group, topic string, offsets map[int]int64) error {
	before, err := k.ProgressOf(ctx, group, topic)
	if err != nil {
		return err
	}
	places := map[int]Place{}
	for _, p := range before {
		if offset, ok := offsets[p.Partition]; ok {
			places[p.Partition] = Place{offset, p.Metadata}
		}
	}
	return k.Put(ctx, group, topic, places)
}

// Place is an offset of a group, and what is committed beside it.
type Place struct {
	Offset   int64
	Metadata string
}

// Put commits places for a group without members, by partition of a topic.
func (k *Kafka) Put(ctx context.Context, group, topic string, places map[int]Place) error {
	var commits []kafka.OffsetCommit
	for partition, p := range places {
		commits = append(commits, kafka.OffsetCommit{Partition: partition, Offset: p.Offset, Metadata: p.Metadata})
	}
	res, err := k.Client.OffsetCommit(ctx, &kafka.OffsetCommitRequest{
		GroupID: group, GenerationID: -1, // of a group without members
		Topics: map[string][]kafka.OffsetCommit{topic: commits},
	})
	if err != nil {
		return fmt.Errorf("offsets: move group %s: %w", group, err)
	}
	for _, p := range res.Topics[topic] {
		if p.Error != nil {
			if errors.Is(p.Error, kafka.GroupAuthorizationFailed) {
				return fmt.Errorf("offsets: move group %s: %w", group, k.forGroup(p.Error, group))
			}
			return fmt.Errorf("offsets: move group %s in partition %d: %w; if it has members, stop them first", group, p.Partition, p.Error)
		}
	}
	return nil
}
