package upstream

import (
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// pacer decides when the next call of an account may leave.
//
// The obvious bucket of ten tokens lets twenty calls through in its first
// second. A bucket of one spaces them evenly, but a tenth of a second apart
// eleven fit into one second as soon as the way to the API varies a little. So:
//
//  1. The bucket holds one token, and rate tokens come in a window of one second
//     and the jitter that is to be absorbed.
//  2. A timer that fires late moves a call towards the next one. So a call also
//     waits until the one that left rate calls ago is a window old, by the time
//     at which that was really written.
//
// Calls leave in the order in which they came to the pacer. Only the first in
// line holds a reservation of the bucket, because a reservation gives its token
// back only while it is the latest one, and a change of the limit does not move
// it.
//
// A process may have to share the rate with others. Each of them then has a whole
// number of the calls of a second, so that together they make no more than one
// process would. What is left of a rate that is no whole number is not used then:
// two processes with 1.25 calls a second each can make four in one.
type pacer struct {
	rate  float64 // per second, as configured
	slots int     // how many whole calls the log covers, of all processes; 0 if there is none
	base  time.Duration
	jit   time.Duration
	// line lets one call at a time wait for the bucket. Go serves those who
	// wait to send on it first come, first served.
	line chan struct{}

	mu      sync.Mutex
	share   float64       // of the rate, that this process has
	per     float64       // how many windows the log covers
	window  time.Duration // what the limit counts as one second
	limiter *rate.Limiter
	// log holds the latest departures, next is where the oldest of them stands.
	// It is empty where the bucket alone is enough.
	log  []*departure
	next int
	// reserved is when the first in line may leave, zero if there is none.
	reserved time.Time
	paused   time.Time // no call leaves before it
	pausedAt time.Time // when that pause began
	// throttledAt is when the window last grew; calls that left before it say
	// nothing about it.
	throttledAt time.Time
	clean       int           // calls since then that were not throttled
	changed     chan struct{} // closed when the pause or the window changes
}

// departure is the moment at which a call left.
type departure struct {
	at  time.Time
	out bool // its first bytes are written; until then at is but a beginning
}

const (
	// A window grows by a twentieth with every throttling, to at most
	// maxWindow, and shrinks by windowStep after cleanCalls without one.
	maxWindow  = 2 * time.Second
	windowStep = 5 * time.Millisecond
	cleanCalls = 2000
	// From manyPerSecond on the departures are not remembered: what keeps the
	// limit is then the bucket alone.
	manyPerSecond = 1000
)

func newPacer(perSecond float64, jitter time.Duration) *pacer {
	p := &pacer{
		rate: perSecond, share: 1, per: 1, base: time.Second + jitter, jit: jitter, window: time.Second + jitter,
		line: make(chan struct{}, 1), changed: make(chan struct{}),
	}
	p.limiter = rate.NewLimiter(p.limit(), p.burst())
	if perSecond < manyPerSecond {
		// The log has as many places as whole calls fit into a second; of a
		// rate of 2.5 it covers the two calls of 0.8 s, and of one of 0.5 the
		// single call of two seconds.
		p.slots = max(1, int(perSecond))
		p.per = float64(p.slots) / perSecond
		p.log = make([]*departure, p.slots)
	}
	return p
}

func (p *pacer) limit() rate.Limit { return rate.Limit(p.rate * p.share / p.window.Seconds()) }

// burst is what the bucket holds. At high rates a timer's own lateness is longer
// than the time between two calls, so that the bucket must hold what comes in
// meanwhile. Half of what the jitter takes off the rate is left for that.
func (p *pacer) burst() int { return max(1, int(p.rate*p.share*p.jit.Seconds()/2)) }

// interval is the time between two calls.
func (p *pacer) interval() time.Duration {
	return time.Duration(float64(p.window) / (p.rate * p.share))
}

// setShare gives this process the index-th of so many shares of the rate. There
// must not be more of them than whole calls in a second.
func (p *pacer) setShare(index, of int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	share, per := 1/float64(of), 1.0
	if p.slots > 0 {
		mine := p.slots / of
		if index < p.slots%of {
			mine++
		}
		share = float64(mine) / p.rate
		if of == 1 {
			share, per = 1, float64(p.slots)/p.rate
		}
		// The latest departures still count.
		log := slices.Concat(p.log[p.next:], p.log[:p.next])
		if mine < len(log) {
			log = log[len(log)-mine:]
		}
		p.log, p.next = slices.Concat(make([]*departure, mine-len(log)), log), 0
	}
	if share == p.share {
		return
	}
	p.share, p.per = share, per
	p.limiter.SetBurst(p.burst())
	p.limiter.SetLimit(p.limit())
	p.signal()
}

// acquire blocks until a call may leave, then calls leave, and returns the
// departure if that returns true. It returns nil if leave returns false or stop
// is closed first; then no token is used up. The departure's written method is
// to be called once the first byte is out.
func (p *pacer) acquire(stop <-chan struct{}, leave func() bool) *departure {
	select {
	case p.line <- struct{}{}:
	case <-stop:
		return nil
	}
	defer func() { <-p.line }()
	var token *rate.Reservation
	cancel := func(now time.Time) {
		if token != nil {
			token.CancelAt(now)
			token = nil
		}
		p.reserved = time.Time{}
	}
	for {
		p.mu.Lock()
		now := time.Now()
		at := p.paused
		if at.After(now) {
			cancel(now)
		} else {
			if token == nil {
				token = p.limiter.ReserveN(now, 1)
				p.reserved = now.Add(token.DelayFrom(now))
			}
			at = later(p.reserved, p.guard(now))
			p.reserved = at
		}
		changed := p.changed
		p.mu.Unlock()
		if wait := at.Sub(now); wait > 0 {
			if !sleep(wait, stop, changed) {
				p.mu.Lock()
				cancel(time.Now())
				p.mu.Unlock()
				return nil
			}
			continue
		}
		ok := leave()
		p.mu.Lock()
		defer p.mu.Unlock()
		if !ok {
			cancel(time.Now())
			return nil
		}
		p.reserved = time.Time{}
		return p.depart(time.Now())
	}
}

// sleep waits for d, or until changed is closed. It returns false if stop is
// closed first.
func sleep(d time.Duration, stop, changed <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-changed:
	case <-stop:
		return false
	}
	return true
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// guard returns the earliest time at which the calls that left so far let
// another one leave. Callers hold mu.
func (p *pacer) guard(now time.Time) time.Time {
	if len(p.log) == 0 || p.log[p.next] == nil {
		return time.Time{}
	}
	oldest := p.log[p.next].at
	if !p.log[p.next].out {
		oldest = now // the process may have been stopped right before the write
	}
	return oldest.Add(time.Duration(p.per * float64(p.window)))
}

// depart notes a departure. Callers hold mu.
func (p *pacer) depart(now time.Time) *departure {
	d := &departure{at: now}
	if len(p.log) > 0 {
		p.log[p.next] = d
		p.next = (p.next + 1) % len(p.log)
	}
	return d
}

// written says that the first byte of a departed call is out, which may be
// later than it was meant to be.
func (p *pacer) written(d *departure) {
	if p.slots == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	d.at, d.out = time.Now(), true
}

// forecast returns when a call would leave that has the given number of calls
// before it, apart from those that have left.
func (p *pacer) forecast(ahead int) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	at := now
	switch {
	case p.paused.After(now):
		at = p.paused
	case !p.reserved.IsZero():
		at = p.reserved
	default:
		if missing := 1 - p.limiter.TokensAt(now); missing > 0 {
			at = now.Add(time.Duration(missing * float64(p.interval())))
		}
		at = later(at, p.guard(now))
	}
	return at.Add(time.Duration(min(float64(ahead)*float64(p.interval()), math.MaxInt64/4)))
}

// held returns how many places of the limit are taken: by the calls that left
// within the last window. Where no departures are remembered, it is the tokens
// that the bucket lacks.
func (p *pacer) held(now time.Time) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.log) == 0 {
		burst := p.limiter.Burst()
		return min(int(math.Ceil(float64(burst)-p.limiter.TokensAt(now))), burst)
	}
	n := 0
	for _, d := range p.log {
		if d != nil && (!d.out || now.Sub(d.at) < time.Duration(max(1, p.per)*float64(p.window))) {
			n++
		}
	}
	return n
}

// throttle lets no call leave for a while, and the calls after that more
// slowly. The left time is when the throttled call had left. It reports whether
// the window has grown.
func (p *pacer) throttle(pause time.Duration, left time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !p.paused.After(now) {
		p.pausedAt = now
	}
	p.paused = later(p.paused, now.Add(pause))
	p.clean = 0
	// The calls that were under way when the limit was first exceeded are all
	// answered alike; they are one lesson.
	grown := left.After(p.throttledAt)
	if grown {
		p.throttledAt = now
		p.setWindow(now, min(p.window+p.window/20, maxWindow))
	}
	p.signal()
	return grown
}

// passed says that a call was not throttled.
func (p *pacer) passed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.window == p.base {
		return
	}
	if p.clean++; p.clean < cleanCalls {
		return
	}
	p.clean = 0
	p.setWindow(time.Now(), max(p.window-windowStep, p.base))
	p.signal()
}

// resume ends a pause.
func (p *pacer) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = time.Time{}
	p.signal()
}

// setWindow changes the limit. Callers hold mu.
func (p *pacer) setWindow(now time.Time, window time.Duration) {
	p.window = window
	p.limiter.SetLimitAt(now, p.limit())
}

// signal wakes the first in line. Callers hold mu.
func (p *pacer) signal() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// pace is how a pacer goes at present.
type pace struct {
	window    time.Duration
	limit     float64 // the part of the configured rate that this process has
	perSecond float64 // that, as it is throttled
	// paused is when the pause ends and pausedAt when it began, zero if there
	// was none.
	paused, pausedAt time.Time
}

func (p *pacer) status() pace {
	p.mu.Lock()
	defer p.mu.Unlock()
	return pace{
		window: p.window, limit: p.rate * p.share, perSecond: p.rate * p.share * float64(p.base) / float64(p.window),
		paused: p.paused, pausedAt: p.pausedAt,
	}
}
