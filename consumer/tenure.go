package consumer

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"packship/schema"
)

// The causes with which the context of a tenure or of one of its records ends.
var (
	errRevoked  = errors.New("consumer: the partition was taken away")
	errMoved    = errors.New("consumer: somebody else has committed for the partition")
	errLogReset = errors.New("consumer: the partition's log begins anew")
	errStopped  = errors.New("consumer: told to stop")
	errShelved  = errors.New("consumer: the order is blocked and goes on the shelf")
)

// errAboveEnd means that a partition is to be read from beyond its end.
var errAboveEnd = errors.New("consumer: the offset is beyond the end of the log")

// tenure is the time for which a partition stays with this member, and what
// the member knows of the partition in that time: how far it has been read, what
// is unsettled, what is committed.
//
// A tenure outlives generations: if the next generation gives the partition to
// the same member, it goes on undisturbed. Once the partition has gone to
// another member the tenure is over for good. If the partition comes back, it
// gets a new tenure that begins at the committed offset, and handlers of the old
// one that still run can finish what they do but have no say in what is
// committed.
type tenure struct {
	c         *Consumer
	partition int
	log       *slog.Logger

	// ctx ends with the tenure, for one of the causes above. It is here
	// because it belongs to no single call: it is the tenure.
	ctx    context.Context
	cancel context.CancelCauseFunc

	roomToFetch  signal // a record has left the window
	roomToRecall signal // a record has left the window, or a shop has reopened

	mu       sync.Mutex
	marks    *watermark         // guarded by mu
	shelf    *shelf             // guarded by mu
	loaded   int                // guarded by mu; unsettled records in memory
	recalled int                // guarded by mu; those of them that came from the shelf
	bytes    int                // guarded by mu; of the records in memory
	started  map[*item]struct{} // guarded by mu; records with a running handler
	swept    time.Time          // guarded by mu; when blocked orders were last looked for
	commits  commitState        // guarded by mu
}

// commitState is what a tenure knows of its committed offset.
type commitState struct {
	// session is the generation as whose member the tenure may commit. While
	// a new generation has not been seen to leave the offsets to this member,
	// it is the one before, which no longer commits.
	session *session
	// generation is the last generation in which the partition was this
	// member's.
	generation int32
	// acked is the last offset of which the broker has said that it is
	// committed, and sent the highest that may be.
	acked, sent int64
	at          time.Time // when acked was committed by this tenure
	// again is the time up to which the offset is committed even if it has not
	// changed.
	again time.Time
}

// signal wakes one waiting goroutine. A signal that nobody waits for is kept,
// once.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) raise() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// newTenure returns a tenure that begins at an offset which is committed.
func newTenure(c *Consumer, partition int, start int64) *tenure {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &tenure{
		c: c, partition: partition, log: c.log.With("partition", partition),
		ctx: ctx, cancel: cancel,
		roomToFetch: newSignal(), roomToRecall: newSignal(),
		marks: newWatermark(start), shelf: newShelf(),
		started: make(map[*item]struct{}),
		commits: commitState{acked: start, sent: start},
	}
}

// end ends the tenure. It takes the mutex so that whoever has found the tenure
// alive under it is finished with what follows from that.
func (t *tenure) end(cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cancel(cause)
}

// position returns the offset to be fetched next.
func (t *tenure) position() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.marks.next
}

// skip says that there are no further records below the offset.
func (t *tenure) skip(offset int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.marks.skip(offset)
}

// fetch reads the partition until the tenure ends. It reads only while the
// gate is open: a member that may not call has no use for more records.
func (t *tenure) fetch() {
	tr := t.c.trouble(t.log, requestFetch)
	var above beyond
	for t.c.gate.Wait(t.ctx) == nil && t.awaitRoom() {
		next, err := t.read(t.position(), t.take)
		if errors.Is(err, kafka.OffsetOutOfRange) {
			err = t.outOfRange(&above)
		} else if err == nil {
			if !above.since.IsZero() {
				t.grownAgain(above.end)
				return
			}
			t.skip(next)
		}
		switch {
		case t.ctx.Err() != nil:
			return
		case err == nil:
			tr.over()
		default:
			tr.note(err)
			if !tr.pause(t.ctx) {
				return
			}
		}
	}
}

// awaitRoom blocks until another record may be loaded, and returns false if the
// tenure ends first.
func (t *tenure) awaitRoom() bool {
	for {
		t.mu.Lock()
		ok := t.hasRoom(0)
		t.mu.Unlock()
		if ok {
			return t.ctx.Err() == nil
		}
		if !t.awaitChange(t.roomToFetch) {
			return false
		}
	}
}

// awaitChange blocks until the signal is raised, but a second at most, and
// returns false if the tenure ends first. While the window stays full, the
// orders in it that are blocked by now are sent to the shelf once a second.
func (t *tenure) awaitChange(s signal) bool {
	tick := time.NewTimer(sweepEvery)
	defer tick.Stop()
	select {
	case <-s:
	case <-tick.C:
	case <-t.ctx.Done():
		return false
	}
	t.mu.Lock()
	due := time.Since(t.swept) >= sweepEvery
	if due {
		t.swept = time.Now()
	}
	t.mu.Unlock()
	if due {
		t.interruptBlocked()
	}
	return true
}

// sweepEvery is how often a full window is searched for blocked orders.
const sweepEvery = time.Second

// hasRoom reports whether a record of the given size fits into the window. The
// caller holds mu. A record that is larger than the whole window fits if it is
// alone. While records wait to come back from the shelf a part of the window is
// kept for them, or new records might never let them in.
func (t *tenure) hasRoom(size int) bool {
	window := t.c.cfg.Window
	if t.shelf.open > 0 {
		window -= t.recallShare()
	}
	return t.loaded < window && t.shelf.size < t.c.cfg.Shelf &&
		(t.bytes+size <= t.c.cfg.WindowBytes || t.loaded == 0)
}

// take takes in a record that was fetched: into its lane, or onto the shelf if
// its order is blocked or others of its shop are there. It blocks until there is
// room.
func (t *tenure) take(rec *schema.Record) error {
	it := t.newItem(rec)
	t.c.metrics.consumed.Inc()
	for {
		reopened, blocked := t.c.blocked(it)
		t.mu.Lock()
		taken := t.admit(it, reopened, blocked)
		t.mu.Unlock()
		if taken {
			return nil
		}
		if !t.awaitChange(t.roomToFetch) {
			return context.Cause(t.ctx)
		}
	}
}

// admit takes a new record in and reports whether it could. The caller holds
// mu.
func (t *tenure) admit(it *item, reopened <-chan struct{}, blocked bool) bool {
	at := it.rec.Time
	if at.Unix() <= 0 {
		at = time.Now() // a producer may have set no time
	}
	switch {
	case blocked || t.shelf.holds(it):
		// The later records of a shop follow the earlier ones to the shelf
		// even if the shop has just reopened: they must not overtake them.
		if t.shelf.size >= t.c.cfg.Shelf {
			return false
		}
		t.marks.add(it.rec.Offset, at)
		t.put(it, reopened)
	case t.hasRoom(it.size):
		t.marks.add(it.rec.Offset, at)
		t.load(it)
	default:
		return false
	}
	return true
}

// load puts a record into the window and its lane. The caller holds mu, so that
// the records of a lane come into it in their order.
func (t *tenure) load(it *item) {
	t.loaded++
	t.bytes += it.size
	if it.recalled {
		t.recalled++
	}
	t.c.lanes.push(it)
}

// unload takes a record out of the window. The caller holds mu.
func (t *tenure) unload(it *item) {
	t.loaded--
	t.bytes -= it.size
	if it.recalled {
		t.recalled--
	}
	delete(t.started, it)
	t.roomToFetch.raise()
	t.roomToRecall.raise()
}

// newItem decodes a record.
func (t *tenure) newItem(rec *schema.Record) *item {
	it := &item{tenure: t, rec: rec}
	it.packed, it.decodeErr = schema.DecodePacked(rec)
	const overhead = 512 // of the structures round a record, roughly
	it.size = overhead + len(rec.Key) + 2*len(rec.Value)
	for _, h := range rec.Headers {
		it.size += len(h.Key) + len(h.Value)
	}
	return it
}

// serve sees one record through. It is called by the record's lane.
func (t *tenure) serve(it *item) {
	for {
		ctx, ok := t.start(it)
		if !ok {
			return
		}
		err := t.handle(ctx, it)
		if t.ended(it, err) {
			return
		}
	}
}

// start marks a record as being handled and returns the context for it. It
// returns false if there is nothing to be handled: the tenure is over, or the
// record has gone to the shelf, and all later records of its order with it.
func (t *tenure) start(it *item) (context.Context, bool) {
	reopened, blocked := t.c.blocked(it)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.ctx.Err() != nil:
		t.unload(it)
		return nil, false
	case blocked && t.shelf.size < t.c.cfg.Shelf:
		t.putBack(it, reopened)
		return nil, false
	}
	ctx, cancel := context.WithCancelCause(t.ctx)
	it.interrupt = cancel
	t.started[it] = struct{}{}
	return ctx, true
}

// handlerRetry is the pause after a handler that gave up although it was not
// told to.
const handlerRetry = time.Second

// handle calls the handler until the record is settled or the context ends.
func (t *tenure) handle(ctx context.Context, it *item) error {
	for {
		err := t.c.cfg.Handler.Handle(ctx, &t.c.gate, it.rec, it.packed, it.decodeErr)
		if err == nil || ctx.Err() != nil {
			return err
		}
		t.log.Error("record not settled, trying again", "offset", it.rec.Offset, "err", err)
		if !sleep(ctx, handlerRetry) {
			return err
		}
	}
}

// ended notes what a handler came to, and reports whether the record needs no
// further handling by its lane.
func (t *tenure) ended(it *item, err error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	it.interrupt(nil)
	it.interrupt = nil
	if err == nil {
		t.marks.finish(it.rec.Offset)
	} else if t.ctx.Err() == nil {
		delete(t.started, it)
		return false // interrupted for the shelf: start puts it there, if it is still blocked
	}
	t.unload(it)
	return true
}

// outOfRange decides what to do when the broker says that the position is not
// in the log. The leader is asked for the ends of the log first, because a
// follower that lags behind says so too.
func (t *tenure) outOfRange(above *beyond) error {
	at := t.position()
	b, err := t.c.boundsOf(t.ctx, t.partition)
	switch {
	case err != nil:
		return err
	case at < b.first:
		t.reportHole(at, b.first, "retention has removed records before they were read")
		t.skip(b.first)
		return nil
	case at > b.last:
		// The log is shorter than it was: it was truncated, or its topic was
		// made anew. What stands in it now may all be new, and the ledger
		// knows what is not, so it is read from its beginning. A new leader
		// may be behind for a moment, therefore the wait.
		if above.since.IsZero() {
			*above = beyond{time.Now(), b.last}
		}
		above.end = min(above.end, b.last)
		if time.Since(above.since) < truncatedAfter {
			return errAboveEnd
		}
		t.reportHole(b.last, at, "the log was truncated or its topic was made anew; reading it from its beginning")
		t.c.restart(t, b.first)
		return nil
	default:
		return kafka.OffsetOutOfRange
	}
}

// beyond is since when the position has been beyond the end of the log, and where
// that was at the lowest.
type beyond struct {
	since time.Time
	end   int64
}

// grownAgain has the partition read once more from somewhat before an end that its
// log had although it had been read further. What stands behind that now took the
// place of what was read; what stands before it, at least a few seconds' worth, may
// be all new as well. The ledger knows what is not.
func (t *tenure) grownAgain(end int64) {
	b, err := t.c.boundsOf(t.ctx, t.partition)
	for err != nil {
		if !sleep(t.ctx, handlerRetry) {
			return
		}
		b, err = t.c.boundsOf(t.ctx, t.partition)
	}
	start := max(b.first, end-int64(t.c.cfg.Window))
	t.log.Error("log was cut off and has grown again, reading that part once more", "topic", t.c.cfg.Topic, "end", end, "read", t.position(), "from", start)
	t.c.restart(t, start)
}

// truncatedAfter is how long a log must have been too short before it is
// believed.
const truncatedAfter = 10 * time.Second

// reportHole says which offsets of the partition were never read, and why. It
// must not be silent: records may have been lost.
func (t *tenure) reportHole(from, to int64, why string) {
	t.log.Error("offsets skipped", "topic", t.c.cfg.Topic, "from", from, "to", to-1, "count", to-from, "reason", why)
	t.c.metrics.skipped.WithLabelValues(t.c.cfg.Topic, partitionLabel(t.partition)).Add(float64(to - from))
}

// read makes one fetch at an offset, gives every record at or after it to
// visit, and returns the offset to go on at.
func (t *tenure) read(offset int64, visit func(*schema.Record) error) (int64, error) {
	res, err := t.request(offset)
	if err != nil {
		return offset, err
	}
	return res.Each(visit)
}

// request makes one fetch.
func (t *tenure) request(offset int64) (*Fetched, error) {
	ctx, cancel := request(t.ctx)
	defer cancel()
	defer t.c.pulse.begin()()
	return Fetch(ctx, t.c.cfg.Client, t.c.cfg.Topic, t.partition, offset)
}
