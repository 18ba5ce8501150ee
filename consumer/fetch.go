package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"packship/schema"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"
)

// Fetched is the answer to one fetch.
type Fetched struct {
	topic         string
	partition     int
	asked         int64
	records       protocol.RecordReader
	highWatermark int64
}

// Fetch makes one fetch, from an offset on, of records that no transaction may
// take back any more. A call cannot be taken back: an order that was packed in a
// transaction is none before that is committed, and never if it is aborted.
//
// The client library can ask for no more than that, but leaves what was aborted
// among the records, and does not pass on the list by which to tell. So the request
// is made here.
func Fetch(ctx context.Context, client *kafka.Client, topic string, partition int, offset int64) (*Fetched, error) {
	if client.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, client.Timeout)
		defer cancel()
	}
	transport := client.Transport
	if transport == nil {
		transport = kafka.DefaultTransport
	}
	answer, err := transport.RoundTrip(ctx, client.Addr, &fetch.Request{
		ReplicaID: -1, MinBytes: 1, MaxBytes: fetchBytes,
		MaxWaitTime:    int32(fetchWait.Milliseconds()), //nolint:gosec // it is a constant
		IsolationLevel: int8(kafka.ReadCommitted), SessionID: -1, SessionEpoch: -1,
		Topics: []fetch.RequestTopic{{Topic: topic, Partitions: []fetch.RequestPartition{{
			Partition:          int32(partition), //nolint:gosec // a partition's number
			CurrentLeaderEpoch: -1, FetchOffset: offset, LogStartOffset: -1, PartitionMaxBytes: fetchBytes,
		}}}},
	})
	if err != nil {
		return nil, fmt.Errorf("consumer: fetch: %w", err)
	}
	res, ok := answer.(*fetch.Response)
	switch {
	case ok && len(res.Topics) == 0 && res.ThrottleTimeMs > 0:
		return nil, fmt.Errorf("consumer: fetch: %w", errThrottled)
	case !ok || len(res.Topics) != 1 || len(res.Topics[0].Partitions) != 1:
		return nil, fmt.Errorf("consumer: fetch: %w", errNotNamed)
	case res.ErrorCode != 0:
		return nil, kafka.Error(res.ErrorCode)
	}
	p := &res.Topics[0].Partitions[0]
	if p.ErrorCode != 0 {
		return nil, kafka.Error(p.ErrorCode)
	}
	f := &Fetched{topic: topic, partition: partition, asked: offset, records: p.RecordSet.Records, highWatermark: p.HighWatermark}
	if f.records == nil {
		f.records = kafka.NewRecordReader()
	}
	if stream, ok := f.records.(*protocol.RecordStream); ok && len(p.AbortedTransactions) > 0 {
		err = dropAborted(stream, p.AbortedTransactions)
	}
	return f, err
}

// errThrottled means that a broker has answered with nothing, as it does to a client
// that is over its quota.
var errThrottled = errors.New("the broker holds its answers back, because this client is over its quota (consumer_byte_rate or request_percentage)")

// Each calls visit for the records at and above the offset that was asked for, in
// the order of the log. It returns the offset to go on at, also with the error of
// visit or of reading. It may be called once.
func (f *Fetched) Each(visit func(*schema.Record) error) (next int64, err error) {
	next = f.asked
	for {
		r, err := f.records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return f.past(next), nil
		}
		if err != nil {
			return next, err
		}
		rec, err := f.copyRecord(r)
		if err != nil {
			return next, err
		}
		if rec.Offset < f.asked {
			continue
		}
		if err := visit(rec); err != nil {
			return next, err
		}
		next = rec.Offset + 1
	}
}

// past returns the offset to go on at after an answer that could be read to its end
// and has led to an offset. It may hold batches but no record at or above the offset
// that was asked for: the end of a batch was compacted away, or it is a transaction's
// marker. Every offset up to the base of the last batch was in it, so the next fetch
// may begin behind that base; one from the same offset would get the same for ever.
func (f *Fetched) past(next int64) int64 {
	stream, ok := f.records.(*protocol.RecordStream)
	if next > f.asked || !ok || len(stream.Records) == 0 || f.asked >= f.highWatermark {
		return next
	}
	switch b := stream.Records[len(stream.Records)-1].(type) {
	case *protocol.RecordBatch:
		return max(f.asked, b.BaseOffset) + 1
	case *protocol.ControlBatch:
		return max(f.asked, b.BaseOffset) + 1
	default:
		return f.asked + 1
	}
}

// copyRecord copies a record out of the response's memory and gives that back.
func (f *Fetched) copyRecord(r *kafka.Record) (*schema.Record, error) {
	rec := &schema.Record{Topic: f.topic, Partition: f.partition, Offset: r.Offset, Time: r.Time}
	var errKey, errValue error
	rec.Key, errKey = readBytes(r.Key)
	rec.Value, errValue = readBytes(r.Value)
	if len(r.Headers) > 0 {
		rec.Headers = make([]schema.Header, len(r.Headers))
		for i, h := range r.Headers {
			rec.Headers[i] = schema.Header{Key: h.Key, Value: h.Value}
		}
	}
	return rec, errors.Join(errKey, errValue)
}

// readBytes reads a key or value to its end and closes it. No bytes at all,
// which is a tombstone or a missing key, stay nil.
func readBytes(b kafka.Bytes) ([]byte, error) {
	if b == nil {
		return nil, nil
	}
	data, err := kafka.ReadAll(b)
	return data, errors.Join(err, b.Close())
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
