package consumer

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"

	"packship/schema"
)

// An answer may hold the end of one transaction and the next of the same producer.
// Only what stands before the marker was taken back.
func TestDropAborted(t *testing.T) {
	const none, first, second = -1, 7, 8 // producers
	batch := func(producer int64, attributes protocol.Attributes, offsets ...int64) *protocol.RecordBatch {
		var records []protocol.Record
		for _, offset := range offsets {
			records = append(records, protocol.Record{Offset: offset, Value: protocol.NewBytes([]byte("v"))})
		}
		return &protocol.RecordBatch{Attributes: attributes, ProducerID: producer, BaseOffset: offsets[0], Records: protocol.NewRecordReader(records...)}
	}
	marker := func(producer, offset int64) *protocol.ControlBatch {
		return &protocol.ControlBatch{Attributes: protocol.Control | protocol.Transactional, ProducerID: producer, BaseOffset: offset}
	}
	for name, tt := range map[string]struct {
		aborted []fetch.ResponseTransaction
		parts   []protocol.RecordReader
		want    []int64
		next    int64
	}{
		"committed after it": {
			[]fetch.ResponseTransaction{{ProducerID: first, FirstOffset: 10}},
			[]protocol.RecordReader{batch(first, protocol.Transactional, 10, 11), marker(first, 12), batch(first, protocol.Transactional, 13, 14), marker(first, 15)},
			[]int64{13, 14},
			15,
		},
		"committed before it": {
			[]fetch.ResponseTransaction{{ProducerID: first, FirstOffset: 12}},
			[]protocol.RecordReader{batch(first, protocol.Transactional, 10), marker(first, 11), batch(first, protocol.Transactional, 12), marker(first, 13)},
			[]int64{10},
			11,
		},
		"twice, and listed the other way round": {
			[]fetch.ResponseTransaction{{ProducerID: first, FirstOffset: 14}, {ProducerID: first, FirstOffset: 8}},
			[]protocol.RecordReader{batch(first, protocol.Transactional, 10), marker(first, 11), batch(first, protocol.Transactional, 12), marker(first, 13), batch(first, protocol.Transactional, 14), marker(first, 15), batch(none, 0, 16)},
			[]int64{12, 16},
			17,
		},
		"among those of others": {
			[]fetch.ResponseTransaction{{ProducerID: first, FirstOffset: 10}},
			[]protocol.RecordReader{batch(first, protocol.Transactional, 10), batch(second, protocol.Transactional, 11), marker(second, 12), batch(none, 0, 13), batch(first, protocol.Transactional, 14), marker(first, 15)},
			[]int64{11, 13},
			14,
		},
		"and nothing else": {
			[]fetch.ResponseTransaction{{ProducerID: first, FirstOffset: 3}},
			[]protocol.RecordReader{batch(first, protocol.Transactional, 9, 10, 19)},
			nil, 20,
		},
	} {
		t.Run(name, func(t *testing.T) {
			stream := &protocol.RecordStream{Records: tt.parts}
			if err := dropAborted(stream, tt.aborted); err != nil {
				t.Fatal(err)
			}
			f := &Fetched{asked: 10, records: stream, highWatermark: 100}
			var got []int64
			next, err := f.Each(func(rec *schema.Record) error {
				got = append(got, rec.Offset)
				return nil
			})
			if err != nil || !slices.Equal(got, tt.want) || next != tt.next {
				t.Errorf("got %v, then %d, %v; want %v, then %d", got, next, err, tt.want, tt.next)
			}
		})
	}
}

// An answer whose batches all lie before the offset that was asked for is stepped
// over, but never beyond the end of the log: the next order will stand there.
func TestFetchedStaysWithinTheLog(t *testing.T) {
	for highWatermark, want := range map[int64]int64{10: 10, 11: 11} {
		f := &Fetched{asked: 10, highWatermark: highWatermark, records: &protocol.RecordStream{Records: []protocol.RecordReader{
			&protocol.RecordBatch{BaseOffset: 8, Records: protocol.NewRecordReader(protocol.Record{Offset: 8}, protocol.Record{Offset: 9})},
		}}}
		next, err := f.Each(func(rec *schema.Record) error {
			t.Errorf("got offset %d", rec.Offset)
			return nil
		})
		if err != nil || next != want {
			t.Errorf("where the log ends at %d: got %d, %v, want %d", highWatermark, next, err, want)
		}
	}
}

// answering is a transport that answers every request with itself.
type answering fetch.Response

func (a *answering) RoundTrip(context.Context, net.Addr, kafka.Request) (kafka.Response, error) {
	return (*fetch.Response)(a), nil
}

// An answer that leaves out what was asked for is no answer. One for a client that
// is over its quota is named as that.
func TestFetchIsNotAnswered(t *testing.T) {
	for _, tt := range []struct {
		answer answering
		want   error
	}{
		{answering{ThrottleTimeMs: 1000}, errThrottled},
		{answering{}, errNotNamed},
		{answering{ThrottleTimeMs: 1000, Topics: []fetch.ResponseTopic{{Topic: "t"}}}, errNotNamed},
	} {
		if _, err := Fetch(t.Context(), &kafka.Client{Transport: &tt.answer}, "t", 0, 5); !errors.Is(err, tt.want) {
			t.Errorf("%+v: got %v, want %v", tt.answer, err, tt.want)
		}
	}
}
