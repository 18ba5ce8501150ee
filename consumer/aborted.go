package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"
)

// fetched is the answer to a fetch.
type fetched struct {
	records       protocol.RecordReader
	highWatermark int64
}

// fetchCommitted makes one fetch of records that no transaction may take back any
// more. A call cannot be taken back: an order that was packed in a transaction is
// none before that is committed, and never if it is aborted.
//
// The client library can ask for no more than that, but leaves what was aborted
// among the records, and does not pass on the list by which to tell. So the request
// is made here.
func (c *Consumer) fetchCommitted(ctx context.Context, partition int, offset int64) (fetched, error) {
	transport := c.cfg.Client.Transport
	if transport == nil {
		transport = kafka.DefaultTransport
	}
	answer, err := transport.RoundTrip(ctx, c.cfg.Client.Addr, &fetch.Request{
		ReplicaID: -1, MinBytes: 1, MaxBytes: fetchBytes,
		MaxWaitTime:    int32(fetchWait.Milliseconds()), //nolint:gosec // it is a constant
		IsolationLevel: int8(kafka.ReadCommitted), SessionID: -1, SessionEpoch: -1,
		Topics: []fetch.RequestTopic{{Topic: c.cfg.Topic, Partitions: []fetch.RequestPartition{{
			Partition:          int32(partition), //nolint:gosec // a partition's number
			CurrentLeaderEpoch: -1, FetchOffset: offset, LogStartOffset: -1, PartitionMaxBytes: fetchBytes,
		}}}},
	})
	if err != nil {
		return fetched{}, fmt.Errorf("consumer: fetch: %w", err)
	}
	res, ok := answer.(*fetch.Response)
	switch {
	case !ok || len(res.Topics) != 1 || len(res.Topics[0].Partitions) != 1:
		return fetched{}, fmt.Errorf("consumer: fetch: %w", errNotNamed)
	case res.ErrorCode != 0:
		return fetched{}, kafka.Error(res.ErrorCode)
	}
	p := &res.Topics[0].Partitions[0]
	if p.ErrorCode != 0 {
		return fetched{}, kafka.Error(p.ErrorCode)
	}
	f := fetched{records: p.RecordSet.Records, highWatermark: p.HighWatermark}
	if f.records == nil {
		f.records = kafka.NewRecordReader()
	}
	if stream, ok := f.records.(*protocol.RecordStream); ok && len(p.AbortedTransactions) > 0 {
		err = dropAborted(stream, p.AbortedTransactions)
	}
	return f, err
}

// dropAborted replaces the batches of transactions that were aborted by markers,
// which are no records. The broker lists the transactions of which a part is in its
// answer, by the producer and the first offset; each ends at the producer's next
// marker.
func dropAborted(stream *protocol.RecordStream, aborted []fetch.ResponseTransaction) error {
	waiting := slices.SortedFunc(slices.Values(aborted), func(a, b fetch.ResponseTransaction) int { return cmp.Compare(a.FirstOffset, b.FirstOffset) })
	open := make(map[int64]bool) // by producer
	for i, part := range stream.Records {
		base := int64(-1)
		if b, ok := part.(interface{ Offset() int64 }); ok {
			base = b.Offset()
		}
		for ; len(waiting) > 0 && waiting[0].FirstOffset <= base; waiting = waiting[1:] {
			open[waiting[0].ProducerID] = true
		}
		switch b := part.(type) {
		case *protocol.ControlBatch:
			delete(open, b.ProducerID)
		case *protocol.RecordBatch:
			if !b.Attributes.Transactional() || !open[b.ProducerID] {
				continue
			}
			last, err := drain(b)
			if err != nil {
				return err
			}
			stream.Records[i] = &protocol.ControlBatch{BaseOffset: max(base, last)}
		}
	}
	return nil
}

// drain gives the records of a batch back unread and returns the last one's offset.
func drain(b *protocol.RecordBatch) (last int64, err error) {
	for {
		r, err := b.ReadRecord()
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return 0, err
		}
		last = r.Offset
		for _, part := range []protocol.Bytes{r.Key, r.Value} {
			if part != nil {
				_ = part.Close() // it only counts references
			}
		}
	}
}
