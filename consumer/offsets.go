package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/segmentio/kafka-go"
)

// noOffset is the committed offset of a partition that has none.
const noOffset int64 = -1

// bounds are the ends of a partition's log, as its leader tells them.
type bounds struct {
	first int64 // the oldest record's offset
	last  int64 // the next record's offset
}

// request gives one exchange with a broker its limit. Without one, a broker
// that never answers costs a goroutine and a socket per try.
func request(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, requestLimit)
}

// partitions returns the number of partitions of the topic, 0 if there is no
// such topic.
func (c *Consumer) partitions(ctx context.Context) (int, error) {
	ctx, cancel := request(ctx)
	defer cancel()
	res, err := c.cfg.Client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{c.cfg.Topic}})
	if err != nil {
		return 0, fmt.Errorf("consumer: look for topic %s: %w", c.cfg.Topic, err)
	}
	for _, t := range res.Topics {
		switch {
		case t.Name != c.cfg.Topic || errors.Is(t.Error, kafka.UnknownTopicOrPartition):
		case t.Error != nil:
			return 0, fmt.Errorf("consumer: look for topic %s: %w", c.cfg.Topic, t.Error)
		default:
			return len(t.Partitions), nil
		}
	}
	return 0, nil
}

// commit is what the group has committed for a partition.
type commit struct {
	offset   int64 // noOffset if there is none
	metadata string
}

// committed returns what the group has committed for each partition. It fails if any of them is in doubt: a partition that
// began at the wrong place for want of an answer would lose or repeat records.
func (c *Consumer) committed(ctx context.Context, partitions []int) (map[int]commit, error) {
	ctx, cancel := request(ctx)
	defer cancel()
	res, err := c.cfg.Client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{
		GroupID: c.cfg.GroupID,
		Topics:  map[string][]int{c.cfg.Topic: partitions},
	})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return nil, fmt.Errorf("consumer: fetch the committed offsets: %w", err)
	}
	commits := make(map[int]commit, len(partitions))
	for _, p := range res.Topics[c.cfg.Topic] {
		if p.Error != nil {
			return nil, fmt.Errorf("consumer: fetch the committed offset of partition %d: %w", p.Partition, p.Error)
		}
		commits[p.Partition] = commit{max(p.CommittedOffset, noOffset), p.Metadata}
	}
	for _, p := range partitions {
		if _, ok := commits[p]; !ok {
			return nil, fmt.Errorf("consumer: fetch the committed offset of partition %d: %w", p, errNotNamed)
		}
	}
	return commits, nil
}

// bounds returns the ends of the log of those partitions whose leader answers.
// The error, if any, is about one of the others. Only a leader answers this request,
// which a fetch cannot promise: a follower answers fetches with an end of the
// log that may be old.
func (c *Consumer) bounds(ctx context.Context, partitions []int) (map[int]bounds, error) {
	ctx, cancel := request(ctx)
	defer cancel()
	requests := make([]kafka.OffsetRequest, 0, 2*len(partitions))
	for _, p := range partitions {
		requests = append(requests, kafka.FirstOffsetOf(p), kafka.LastOffsetOf(p))
	}
	res, err := c.cfg.Client.ListOffsets(ctx, &kafka.ListOffsetsRequest{
		Topics: map[string][]kafka.OffsetRequest{c.cfg.Topic: requests},
	})
	if err != nil {
		return nil, fmt.Errorf("consumer: list the ends of the log: %w", err)
	}
	found := make(map[int]bounds, len(partitions))
	errs := make(map[int]error)
	for _, p := range res.Topics[c.cfg.Topic] {
		switch {
		case p.Error != nil:
			errs[p.Partition] = p.Error
		case p.FirstOffset >= 0 && p.LastOffset >= p.FirstOffset:
			found[p.Partition] = bounds{first: p.FirstOffset, last: p.LastOffset}
		}
	}
	for _, p := range partitions {
		if _, ok := found[p]; !ok {
			return found, fmt.Errorf("consumer: list the ends of partition %d: %w", p, cmp.Or(errs[p], errNotNamed))
		}
	}
	return found, nil
}

// errNotNamed means that a broker has left a partition out of its answer.
var errNotNamed = errors.New("the answer does not name it")

// boundsOf returns the ends of the log of one partition.
func (c *Consumer) boundsOf(ctx context.Context, partition int) (bounds, error) {
	found, err := c.bounds(ctx, []int{partition})
	return found[partition], err
}

// commitOffsets commits offsets as a member of a generation and returns what
// became of each partition: the errors of an offset commit hide in the answer,
// one for each partition. An error in place of the answer means that the
// outcome is unknown.
func (c *Consumer) commitOffsets(ctx context.Context, s *session, offsets map[int]int64) (map[int]error, error) {
	ctx, cancel := request(ctx)
	defer cancel()
	metadata := ""
	if c.cfg.CommitMetadata != nil {
		metadata = c.cfg.CommitMetadata()
	}
	if len(metadata) > maxMetadata {
		metadata = ""
	}
	commits := make([]kafka.OffsetCommit, 0, len(offsets))
	for p, offset := range offsets {
		commits = append(commits, kafka.OffsetCommit{Partition: p, Offset: offset, Metadata: metadata})
	}
	res, err := c.cfg.Client.OffsetCommit(ctx, &kafka.OffsetCommitRequest{
		GroupID:      c.cfg.GroupID,
		GenerationID: int(s.generation),
		MemberID:     s.member,
		Topics:       map[string][]kafka.OffsetCommit{c.cfg.Topic: commits},
	})
	if err != nil {
		return nil, fmt.Errorf("consumer: commit offsets: %w", err)
	}
	results := make(map[int]error, len(offsets))
	for p := range offsets {
		results[p] = fmt.Errorf("consumer: commit the offset of partition %d: %w", p, errNotNamed)
	}
	for _, p := range res.Topics[c.cfg.Topic] {
		results[p.Partition] = nil
		if p.Error != nil {
			results[p.Partition] = fmt.Errorf("consumer: commit the offset of partition %d: %w", p.Partition, p.Error)
		}
	}
	return results, nil
}

// fenced reports whether a commit was refused because this member's generation
// is over or the group no longer knows it.
func fenced(err error) bool {
	return errors.Is(err, kafka.IllegalGeneration) || errors.Is(err, kafka.UnknownMemberId)
}
