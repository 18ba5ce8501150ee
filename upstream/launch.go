package upstream

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// Why a call did not leave.
var (
	errConnLost    = errors.New("upstream: the connection was lost before the call left")
	errEarlyAnswer = errors.New("upstream: the api answered before it was asked")
	errNotAllowed  = errors.New("upstream: the account or the shop must not send any more")
)

// launch is the departure of one call: it ends either with the call's first
// byte on its way, or with the certainty that nothing of it ever will be.
// Whichever comes first is final.
type launch struct {
	pacer *pacer
	// ready ends when the call must not leave any more.
	ready context.Context //nolint:containedctx // the launch lives exactly as long
	// permit is asked at the very moment of leaving, and may still say no.
	permit func() bool

	mu    sync.Mutex
	state launchState
	why   error // of a refusal
	// arrived is when the connection was ready, left when the call departed.
	arrived, left time.Time
	stop          chan struct{} // closed by a refusal
}

type launchState int

const (
	launchWaiting launchState = iota
	launchRefused             // nothing was written, nothing will be
	launchLeft                // something may have been written
)

func newLaunch(ready context.Context, p *pacer, permit func() bool) *launch {
	return &launch{ready: ready, pacer: p, permit: permit, stop: make(chan struct{})}
}

// write writes the beginning of the call once it may leave.
func (l *launch) write(conn net.Conn, b []byte) (int, error) {
	l.mu.Lock()
	l.arrived = time.Now()
	l.mu.Unlock()
	departure := l.pacer.acquire(l.stop, l.leave)
	if departure == nil {
		return 0, l.refusal()
	}
	n, err := conn.Write(b)
	l.pacer.written(departure)
	if n == 0 && err != nil {
		// The connection took nothing of it.
		l.mu.Lock()
		defer l.mu.Unlock()
		l.state, l.why = launchRefused, errConnLost
	}
	return n, err
}

// leave lets the call go unless something speaks against it.
func (l *launch) leave() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state != launchWaiting {
		return false
	}
	why := context.Cause(l.ready)
	if at, ok := l.ready.Deadline(); ok && why == nil && passed(at, time.Now()) {
		why = errTooLate
	}
	if why == nil && !l.permit() {
		why = errNotAllowed
	}
	if why != nil {
		l.refuseLocked(why)
		return false
	}
	l.state, l.left = launchLeft, time.Now()
	return true
}

// passed reports whether a time is over, by either of the two clocks. A process
// that was frozen finds all its timers due at once, and the one of the pacer may
// be served before the one that ends ready. And where the whole machine slept,
// the monotonic clock has not seen it, but the other one may have: that it was
// set ahead is no harm, since the order is claimed anew.
func passed(at, now time.Time) bool {
	return !now.Before(at) || !now.Round(0).Before(at.Round(0))
}

// refuse makes sure that the call does not leave. It reports false if the call
// has left already.
func (l *launch) refuse(why error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == launchWaiting {
		l.refuseLocked(why)
	}
	return l.state == launchRefused
}

func (l *launch) refuseLocked(why error) {
	l.state, l.why = launchRefused, why
	close(l.stop)
}

// refusal returns why the call has not left, nil if it may have.
func (l *launch) refusal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.why
}

// times returns when the connection was ready and when the call left.
func (l *launch) times() (arrived, left time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.arrived, l.left
}

// departed reports whether the call was let go, even if the connection then
// took nothing of it.
func (l *launch) departed() bool {
	_, left := l.times()
	return !left.IsZero()
}
