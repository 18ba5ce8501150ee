package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"

	"packship/schema"
)

// Range is a part of a partition's log: the records from an offset up to, and
// not including, another.
type Range struct {
	Partition int
	From, To  int64
}

// Len is how many offsets the range has. Where a log has gaps there are fewer
// records.
func (r Range) Len() int64 { return max(0, r.To-r.From) }

// Ranges returns what the partitions of a topic hold at this moment.
func (k *Kafka) Ranges(ctx context.Context, topic string) ([]Range, error) {
	var ranges []Range
	err := patiently(ctx, func() error {
		bounds, err := k.bounds(ctx, topic)
		ranges = make([]Range, len(bounds))
		for i, b := range bounds {
			ranges[i] = Range{b.Partition, b.FirstOffset, b.LastOffset}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	return ranges, nil
}

// Read calls each for every record of a range of a topic, in the order of the
// log. It puts up with brokers that fail for a while, and returns the first error
// of each, or Kafka's.
func (k *Kafka) Read(ctx context.Context, topic string, r Range, each func(*schema.Record) error) error {
	var stopped error
	once := func(rec *schema.Record) error {
		stopped = each(rec)
		return stopped
	}
	for next := r.From; next < r.To; {
		err := patiently(ctx, func() error {
			before := next
			var err error
			if next, err = k.fetch(ctx, topic, r.Partition, next, r.To, once); stopped != nil {
				return nil //nolint:nilerr // the error is that of each, which is not tried again
			}
			if errors.Is(err, kafka.OffsetOutOfRange) {
				next, err = k.skipDeleted(ctx, topic, r.Partition, next)
			}
			if err == nil && next == before {
				err = errors.New("nothing comes although there is more")
			}
			return err
		})
		if stopped != nil {
			return stopped
		}
		if err != nil {
			return fmt.Errorf("read %s: partition %d at %d: %w", topic, r.Partition, next, err)
		}
	}
	return nil
}

// skipDeleted returns the offset at which a partition begins, if that is after
// an offset that is not there any more.
func (k *Kafka) skipDeleted(ctx context.Context, topic string, partition int, offset int64) (int64, error) {
	bounds, err := k.bounds(ctx, topic)
	if err != nil {
		return offset, err
	}
	for _, b := range bounds {
		if b.Partition == partition && b.FirstOffset > offset {
			return b.FirstOffset, nil
		}
	}
	return offset, kafka.OffsetOutOfRange
}

// OffsetsAt returns, for every partition of a topic, the offset of the first
// record that is not older than a time; the end, if there is none.
func (k *Kafka) OffsetsAt(ctx context.Context, topic string, at time.Time) (map[int]int64, error) {
	ranges, err := k.Ranges(ctx, topic)
	if err != nil {
		return nil, err
	}
	if at.Before(time.UnixMilli(0)) {
		at = time.UnixMilli(0) // Kafka takes negative times for names of places
	}
	offsets := map[int]int64{}
	var wanted []kafka.OffsetRequest
	for _, r := range ranges {
		offsets[r.Partition] = r.To
		wanted = append(wanted, kafka.TimeOffsetOf(r.Partition, at))
	}
	err = patiently(ctx, func() error {
		res, err := k.Client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: wanted}})
		if err != nil {
			return err
		}
		for _, p := range res.Topics[topic] {
			if p.Error != nil {
				return p.Error
			}
			for offset := range p.Offsets {
				if offset >= 0 { // -1: all records are older
					offsets[p.Partition] = offset
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read: offsets of %s at %s: %w", topic, at.Format(time.RFC3339), err)
	}
	return offsets, nil
}

// Members lists the members of the consumer group, each as a person would look
// for it.
func (k *Kafka) Members(ctx context.Context) ([]string, error) {
	group := k.settings.KafkaGroupID
	var members []string
	err := patiently(ctx, func() error {
		res, err := k.Client.DescribeGroups(ctx, &kafka.DescribeGroupsRequest{GroupIDs: []string{group}})
		if err != nil {
			return err
		}
		if len(res.Groups) != 1 {
			return errors.New("no answer about it")
		}
		g := res.Groups[0]
		members = nil
		switch {
		case g.GroupState == "Empty" || g.GroupState == "Dead":
			return nil
		case g.Error != nil && g.GroupState == "":
			return g.Error
		}
		for _, m := range g.Members {
			members = append(members, m.ClientID+m.ClientHost)
		}
		if len(members) == 0 { // one is about to join
			members = []string{g.GroupState}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read: members of group %s: %w", group, k.forGroup(err, group))
	}
	slices.Sort(members)
	return members, nil
}

// patiently tries until it works, ctx ends, or Kafka has failed for as long as a
// command waits for it. What no waiting mends is not tried again. Whatever a try
// says that is broken off, the error is that of ctx: where kafka-go splits a
// request, a part that was broken off fails with Kafka's UNKNOWN.
func patiently(ctx context.Context, try func() error) error {
	last := time.Now().Add(patience)
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := try()
		switch {
		case err != nil && errors.Is(ctx.Err(), context.Canceled):
			return ctx.Err()
		case err == nil, ctx.Err() != nil, !time.Now().Before(last),
			errors.Is(err, kafka.UnknownTopicOrPartition), errors.Is(err, kafka.TopicAuthorizationFailed), errors.Is(err, kafka.GroupAuthorizationFailed):
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}
