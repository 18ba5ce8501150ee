package ledger

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"packship/schema"
)

// partition is one partition of the ledger as far as this process has read it.
type partition struct {
	n int
	// turned is when the tail began the step that it is at, in nanoseconds; 0
	// while it is at none, or at one that may take as long as Kafka is away.
	turned atomic.Int64

	// looks counts the looks for the end of the log that have begun, and looking
	// holds the token of the one that is under way, which guards seen: the last
	// that has succeeded, and the end that it saw.
	looks   atomic.Int64
	looking chan struct{}
	seen    struct{ look, end int64 }

	mu      sync.Mutex
	fold    *fold
	charges charges
	next    int64 // the offset that is read next
	// begun counts how often the log has been read from its beginning.
	begun int
	// watched has a channel for every shipment that somebody waits for. It is
	// closed when a record of the shipment is read.
	watched map[schema.Key]*watch
	// moved is closed when next moves, nil if nobody waits for that.
	moved chan struct{}
	// newest is the newest timestamp of a record.
	newest time.Time
	// claiming has the attempts of this process that are on their way into the
	// log, and disowned those that it will certainly not call under, although
	// the log may show them as holders.
	claiming map[string]bool
	disowned map[string]bool
	recent   recent
	live     bool // what was in the log at the start has been read
	metas    metas
	// lostBefore is the time before which what is not known may have been lost,
	// and replaces lists the ledgers that this one has taken the place of. What
	// of it is not in metas is yet to be appended.
	lostBefore time.Time
	replaces   []string
	losses     []loss // found before the partition was live
	// promised is an offset before which the log must not end.
	promised int64
	// lost is set when the log was found to be another one than was read, so
	// that the tail starts again.
	lost bool
}

// watch is what the waiters for one shipment share.
type watch struct {
	changed chan struct{}
	waiters int
}

func newPartition(n int, lease time.Duration, charged func(schema.Charge, time.Time)) *partition {
	return &partition{
		n:        n,
		looking:  make(chan struct{}, 1),
		fold:     newFold(lease),
		charges:  charges{tell: charged},
		watched:  make(map[schema.Key]*watch),
		claiming: make(map[string]bool),
		disowned: make(map[string]bool),
	}
}

// apply folds in entries that were read one after the other, and moves on to the
// offset next. Whoever waits for a shipment that they are about is woken.
func (p *partition) apply(entries []entry, next int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range entries {
		e := &entries[i]
		// A timestamp is that of whoever wrote the record, whatever the topic
		// says: the client reads none of the broker's. One whose clock is behind
		// must not have its records expire before their time, so none is older
		// than those that stand before it, as far as these are not in the future.
		if e.time.After(p.newest) {
			p.newest = e.time
		} else if floor := earlier(p.newest, e.read); floor.After(e.time) {
			e.time = floor
		}
		switch e.Kind {
		case kindMeta:
			continue
		case kindBye:
			for _, key := range p.fold.bye(e) {
				p.wake(key)
			}
			continue
		case kindOutcome:
			if p.live {
				p.recent.keep(e.offset, e.Outcome)
			}
			delete(p.disowned, e.Attempt)
		case kindRelease:
			delete(p.disowned, e.Attempt)
		case kindIntent, kindTakeover:
		}
		p.charges.add(e, p.fold.apply(e))
		p.wake(e.key)
	}
	p.move(next)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// move sets the offset that is read next. The caller holds the mutex.
func (p *partition) move(next int64) {
	p.next = next
	if p.moved != nil {
		close(p.moved)
		p.moved = nil
	}
}

// wake wakes whoever waits for a shipment. The caller holds the mutex.
func (p *partition) wake(key schema.Key) {
	if w := p.watched[key]; w != nil {
		close(w.changed)
		delete(p.watched, key)
	}
}

// watch returns a channel that is closed when the next record of a shipment is
// read, and a function to call when it is no longer waited for. The caller holds
// the mutex; unwatch takes it.
func (p *partition) watch(key schema.Key) (changed <-chan struct{}, unwatch func()) {
	w := p.watched[key]
	if w == nil {
		w = &watch{changed: make(chan struct{})}
		p.watched[key] = w
	}
	w.waiters++
	return w.changed, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if w.waiters--; w.waiters == 0 && p.watched[key] == w {
			delete(p.watched, key)
		}
	}
}

// position returns the offset that is read next, and a channel that is closed
// when it moves. While the log is lost nothing of it has been read.
func (p *partition) position() (int64, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.moved == nil {
		p.moved = make(chan struct{})
	}
	if p.lost {
		return -1, p.moved
	}
	return p.next, p.moved
}

// reading is how far a log has been read.
type reading struct {
	begun int
	next  int64
}

func (p *partition) reading() reading {
	p.mu.Lock()
	defer p.mu.Unlock()
	return reading{p.begun, p.next}
}

// cutOff reports whether a record that was appended after a reading lies before
// it, so that it takes the place of one that was read and is gone.
func (p *partition) cutOff(before reading, offset int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return offset < before.next && p.begun == before.begun && !p.lost
}

// reset forgets everything and starts again at an offset: the log is another
// one than it was. All waiters are woken.
func (p *partition) reset(next int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun++
	horizon := p.fold.horizon
	p.fold = newFold(p.fold.lease)
	p.fold.horizon = horizon
	p.charges.restart()
	p.recent = recent{}
	p.metas = metas{}
	p.newest = time.Time{}
	p.lost = false
	for key := range p.watched {
		p.wake(key)
	}
	p.move(next)
}

// openAttempts lists the attempts of an incarnation that may still take effect:
// those that hold a shipment, and those that are about to.
func (p *partition) openAttempts(incarnation string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	attempts := slices.Collect(maps.Keys(p.claiming))
	for _, o := range p.fold.open {
		if strings.HasPrefix(o.holder, incarnation+"/") && !p.disowned[o.holder] && !p.claiming[o.holder] {
			attempts = append(attempts, o.holder)
		}
	}
	slices.Sort(attempts)
	return attempts
}

// goLive has the outcomes kept that are read from now on.
func (p *partition) goLive() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.live = true
}

// claim notes that an attempt is on its way into the log.
func (p *partition) claim(attempt string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.claiming[attempt] = true
}

// claimed notes that it has been read.
func (p *partition) claimed(attempt string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.claiming, attempt)
}

// disown notes that no call is or will be made under an attempt.
func (p *partition) disown(attempt string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.claiming, attempt)
	p.disowned[attempt] = true
}

// never notes that an attempt is not in the log and will not be.
func (p *partition) never(attempt string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.claiming, attempt)
	delete(p.disowned, attempt)
}

// recent keeps the outcomes that were read last, because they are about to be
// published.
type recent struct {
	byOffset map[int64][]byte
	offsets  [recentOutcomes]int64 // a ring, whose oldest is at next
	next     int
}

// recentOutcomes is how many outcomes a partition keeps: a few MiB for all, and
// some minutes at the pace of the API.
const recentOutcomes = 512

func (r *recent) keep(offset int64, outcome []byte) {
	if r.byOffset == nil {
		r.byOffset = make(map[int64][]byte, recentOutcomes)
	}
	if len(r.byOffset) >= recentOutcomes {
		delete(r.byOffset, r.offsets[r.next])
	}
	r.byOffset[offset] = slices.Clone(outcome) // not what came along with it
	r.offsets[r.next] = offset
	r.next = (r.next + 1) % recentOutcomes
}

// metas is what the meta records of a partition have shown.
type metas struct {
	epoch  string    // "" if none was read
	offset int64     // of the newest, gone if it was deleted
	newest time.Time // its timestamp
	// lostBefore and replaces are those of all of them.
	lostBefore time.Time
	replaces   []string
}

// gone is the offset of a record that was deleted.
const gone = -1
