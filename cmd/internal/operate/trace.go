package operate

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"packship/cmd/internal/app"
	"packship/cmd/internal/life"
	"packship/schema"
)

// Trace finds everything that the topics hold of the orders with an id and tells
// it as one story. It reads all of them, at the same time.
func (o *Operator) Trace(ctx context.Context, tid string) (life.Story, error) {
	if !schema.ValidID(tid) {
		return life.Story{}, fmt.Errorf("trace: %q is no order id: a whole number from 1 to 9223372036854775807", tid)
	}
	memory, err := o.openLedger(ctx)
	if err != nil {
		return life.Story{}, err
	}
	positions, err := o.positions(ctx)
	if err != nil {
		return life.Story{}, err
	}
	whole, err := memory.Size(ctx)
	if err != nil {
		return life.Story{}, err
	}
	f := life.Found{TID: tid, LedgerTopic: o.settings.TopicLedger}
	s := o.settings
	// Each reader appends to a list of its own.
	readers := []struct {
		topic string
		each  func(*schema.Record)
	}{
		{s.TopicPacked, func(rec *schema.Record) { f.Packed = packedOf(f.Packed, rec, tid, positions) }},
		{s.TopicShipped, func(rec *schema.Record) { f.Published = published(f.Published, rec, tid) }},
		{s.TopicFailed, func(rec *schema.Record) { f.Published = published(f.Published, rec, tid) }},
		{s.TopicDLQ, func(rec *schema.Record) { f.DeadLetters = deadLetter(f.DeadLetters, rec, tid) }},
	}
	ranges := make([][]app.Range, len(readers))
	for i, r := range readers {
		if ranges[i], err = o.kafka.Ranges(ctx, r.topic); err != nil {
			return life.Story{}, err
		}
		whole += total(ranges[i])
	}
	o.meter.Begin("searching", whole)
	defer o.meter.End()
	var mu sync.Mutex // guards the lists of f
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		f.Steps, err = memory.History(ctx, tid)
		return err
	})
	for i, r := range readers {
		g.Go(func() error {
			return o.read(ctx, r.topic, ranges[i], func(rec *schema.Record) error {
				if !mentions(rec, tid) {
					return nil
				}
				mu.Lock()
				defer mu.Unlock()
				r.each(rec)
				return nil
			})
		})
	}
	if err := g.Wait(); err != nil {
		return life.Story{}, err
	}
	return life.Tell(f), nil
}

// mentions reports whether a record can be about an order. It is a quick look
// that passes a few others, too: ids may be written with escapes, or in an
// envelope.
func mentions(rec *schema.Record, tid string) bool {
	id := []byte(tid)
	return bytes.Contains(rec.Value, id) || bytes.Contains(rec.Key, id) ||
		bytes.Contains(rec.Value, []byte(`\u00`)) || bytes.Contains(rec.Value, []byte(`data_base64`))
}

func packedOf(list []life.Packed, rec *schema.Record, tid string, positions []position) []life.Packed {
	ahead := int64(-1)
	for _, at := range positions {
		if at.Partition == rec.Partition && rec.Offset >= at.at {
			ahead = rec.Offset - at.at
		}
	}
	found, ok := life.PackedOf(rec, tid, ahead)
	if !ok {
		return list
	}
	return append(list, found)
}

// published takes a result of the order. Results have its id as their key.
func published(list []*schema.Record, rec *schema.Record, tid string) []*schema.Record {
	if string(rec.Key) != tid {
		return list
	}
	return append(list, rec)
}

// deadLetter takes a dead letter that has the order's id as its key, or somewhere
// in it as a number of its own.
func deadLetter(list []*schema.Record, rec *schema.Record, tid string) []*schema.Record {
	if string(rec.Key) != tid && !holdsNumber(rec.Value, tid) {
		return list
	}
	return append(list, rec)
}

// holdsNumber reports whether digits stand somewhere in a text with no digit
// before or after them.
func holdsNumber(text []byte, digits string) bool {
	digit := func(i int) bool { return i >= 0 && i < len(text) && text[i] >= '0' && text[i] <= '9' }
	for from := 0; ; {
		i := bytes.Index(text[from:], []byte(digits))
		if i < 0 {
			return false
		}
		i += from
		if !digit(i-1) && !digit(i+len(digits)) {
			return true
		}
		from = i + 1
	}
}
