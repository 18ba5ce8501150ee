package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"

	"packship/schema"
)

// ErrNotSettled is wrapped by the error of [Ledger.Stored] for an event that no
// outcome answers.
var ErrNotSettled = errors.New("the ledger has no outcome for the event")

// Stored returns the outcome that answers the event. It is read from the log,
// unless it was read a short time ago; the outcomes that follow it in the log
// come along, so that a replay does not fetch each of them.
//
// It tries for as long as ctx lives. An error that wraps [ErrNotSettled] means
// that the shipment has to be looked at again.
func (l *Ledger) Stored(ctx context.Context, s *schema.Shipment, event string) (schema.Outcome, error) {
	p := l.partition(s)
	key, hash := s.Key(), schema.HashEvent(eventID(event))
	p.mu.Lock()
	st, offset := l.standing(p, key, hash)
	body, begun := p.recent.byOffset[offset], p.begun
	p.mu.Unlock()
	if st.State != schema.StateSettled {
		return schema.Outcome{}, fmt.Errorf("ledger: outcome of %s: %w", s.TID, ErrNotSettled)
	}
	if body == nil {
		var err error
		if body, err = l.outcomeAt(ctx, p, key, begun, offset, s.Canonical()); err != nil {
			return schema.Outcome{}, fmt.Errorf("ledger: outcome of %s at offset %d of partition %d: %w", s.TID, offset, p.n, err)
		}
	}
	var o schema.Outcome
	if err := json.Unmarshal(body, &o); err != nil {
		return schema.Outcome{}, fmt.Errorf("ledger: outcome of %s at offset %d of partition %d: %w", s.TID, offset, p.n, err)
	}
	return o, nil
}

// outcomeAt reads the outcome of a shipment from the log that has been begun so
// often.
func (l *Ledger) outcomeAt(ctx context.Context, p *partition, key schema.Key, begun int, offset int64, shipment string) ([]byte, error) {
	r, err := l.recordAt(ctx, p, begun, offset)
	var body []byte
	if err == nil {
		body, err = r.outcomeOf(shipment)
	}
	switch {
	case errors.Is(err, errGone):
		l.drop(ctx, p, key, offset)
		err = fmt.Errorf("%w: %w", ErrNotSettled, err)
	case errors.Is(err, errAnew):
		err = fmt.Errorf("%w: %w", ErrNotSettled, err)
	}
	return body, err
}

// recordAt reads the record of a shipment at an offset of the log that has been
// begun so often. It tries for as long as ctx lives. The error wraps errGone if
// there is no such record, and errAnew if the log has been begun once more.
func (l *Ledger) recordAt(ctx context.Context, p *partition, begun int, offset int64) (stored, error) {
	for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
		r, err := l.stored[p.n].get(ctx, begun, offset, func(from int64) (batch, error) {
			return l.fetch(ctx, p.n, from)
		})
		if p.reading().begun != begun {
			return stored{}, errAnew
		}
		if err == nil || errors.Is(err, errGone) {
			return r, err
		}
		if errors.Is(err, kafka.OffsetOutOfRange) {
			// It was deleted, or a follower that is behind has answered.
			if first, _, failed := l.ends(ctx, p.n); failed == nil && offset < first {
				return stored{}, fmt.Errorf("%w: %w", errGone, err)
			}
		}
		if ctx.Err() != nil {
			return stored{}, err
		}
		l.log.Debug("record not read, trying again", "partition", p.n, "offset", offset, "err", err)
		sleep(ctx, backoff)
	}
}

// drop forgets a shipment whose outcome is no longer in the log. That is how the
// horizon ends for a single shipment; before that it is damage.
func (l *Ledger) drop(ctx context.Context, p *partition, key schema.Key, offset int64) {
	if _, err := l.inspect(ctx, p); err != nil || p.isLost() {
		return
	}
	if p.forget(key, offset, l.cfg.Horizon) {
		l.damaged(p, time.Now(), fmt.Sprintf("the outcome at offset %d of partition %d was deleted before the horizon", offset, p.n))
	}
}

// forget forgets a shipment whose outcome stood at an offset, and reports whether
// that was before its time. If it was the outcome of an earlier round, only that is
// forgotten.
func (p *partition) forget(key schema.Key, offset int64, horizon time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, at, ok := p.fold.settled(key)
	if !ok || at.offset() != offset {
		p.fold.expireAnswer(key, offset)
		return false
	}
	p.fold.forget(key)
	p.wake(key)
	return d.n > dayOf(p.newest.Add(-horizon))
}

// errGone means that another record, or none, stands where one was read before.
var errGone = errors.New("the record is no longer there")

// errAnew means that the log was found to be another one than was read, so that
// an offset of before says nothing.
var errAnew = errors.New("the log is read from its beginning once more")

// readAhead keeps the records of the last few fetches of a partition.
type readAhead struct {
	// turn is taken over a fetch: whoever wants a neighbour waits for it. It is
	// no mutex, because a fetch may hang and those behind it have their own
	// time limits.
	turn   chan struct{}
	chunks []*chunk // the one that was used last is first
}

// readAheadChunks bounds what a partition keeps to as many MiB.
const readAheadChunks = 3

// chunk has the records of shipments from one offset of the log up to another, as
// it was when it had been begun so often.
type chunk struct {
	begun      int
	from, next int64
	records    map[int64]stored
}

// stored is a record of a shipment, and the outcome in it, nil if it has none.
type stored struct {
	shipment string
	outcome  []byte
}

// outcomeOf returns the outcome if it is one of the shipment.
func (r *stored) outcomeOf(shipment string) ([]byte, error) {
	if r.shipment != shipment || r.outcome == nil {
		return nil, errGone
	}
	return r.outcome, nil
}

func newReadAhead() *readAhead { return &readAhead{turn: make(chan struct{}, 1)} }

// get returns the record at an offset of the log that has been begun so often: what
// was kept of the one before is not of this one.
func (r *readAhead) get(ctx context.Context, begun int, offset int64, fetch func(from int64) (batch, error)) (stored, error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return stored{}, context.Cause(ctx)
	}
	c := r.find(begun, offset)
	if c == nil {
		b, err := fetch(offset)
		if err != nil {
			return stored{}, err
		}
		if b.next <= offset {
			// A leader that is new holds back what it cannot know yet that all
			// have. That is no sign that the record is gone.
			return stored{}, errors.New("nothing comes")
		}
		c = chunkOf(begun, offset, b)
		r.chunks = append([]*chunk{c}, r.chunks[:min(len(r.chunks), readAheadChunks-1)]...)
	}
	record, ok := c.records[offset]
	if !ok {
		return stored{}, errGone
	}
	return record, nil
}

// find returns the chunk that has an offset, and moves it to the front.
func (r *readAhead) find(begun int, offset int64) *chunk {
	for i, c := range r.chunks {
		if c.begun == begun && c.from <= offset && offset < c.next {
			copy(r.chunks[1:i+1], r.chunks[:i])
			r.chunks[0] = c
			return c
		}
	}
	return nil
}

func chunkOf(begun int, from int64, b batch) *chunk {
	c := &chunk{begun: begun, from: from, next: b.next, records: make(map[int64]stored, len(b.records))}
	for _, f := range b.records {
		if r, err := decode(f.value); err == nil && len(f.key) > 0 {
			c.records[f.offset] = stored{shipment: string(f.key), outcome: r.Outcome}
		}
	}
	return c
}
