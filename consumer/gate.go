package consumer

import (
	"context"
	"errors"
	"sync"
	"time"
)

// errGateClosed is the cause of a context of [Gate.Context] that ended because
// the gate closed.
var errGateClosed = errors.New("consumer: the gate is closed")

// Gate is the right of this process to start calls. It is open while the
// process is a member of the group with partitions of its own, has read all
// that others wrote to the ledger, and was not told to stop; it closes the
// moment one of these ends, and opens again when all hold again.
//
// A closed gate stops no call that is under way. Most callers want [Gate.Wait]
// before they claim an order and [Gate.Context] round the start of a call.
//
// The zero value is a closed gate. A Gate is safe for concurrent use.
type Gate struct {
	mu         sync.Mutex
	generation context.Context                       // guarded by mu; for which the gate is open, nil if it is closed
	retired    bool                                  // guarded by mu; the gate never opens again
	opened     chan struct{}                         // guarded by mu; closed when the gate opens, nil until somebody waits
	cancels    map[*context.CancelCauseFunc]struct{} // guarded by mu; of the contexts that end with this opening
	// The process was seen running at this time. If it was not for longer than
	// asleep, another may have taken its place. Zero: nobody looks.
	seen   time.Time     // guarded by mu
	asleep time.Duration // guarded by mu
}

// Wait blocks until the gate is open, or returns the cause of the context's
// end.
func (g *Gate) Wait(ctx context.Context) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		g.mu.Lock()
		if g.generation != nil {
			g.mu.Unlock()
			return nil
		}
		if g.opened == nil {
			g.opened = make(chan struct{})
		}
		opened := g.opened
		g.mu.Unlock()
		select {
		case <-opened:
		case <-ctx.Done():
		}
	}
}

// Context returns a context that ends with the parent, or as soon as the gate
// closes; it has ended already if the gate is closed. By the time the closing
// of the gate is complete, every such context has ended. The cancel function
// must be called when the context is no longer needed.
func (g *Gate) Context(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.generation == nil {
		cancel(errGateClosed)
		return ctx, func() {}
	}
	if g.cancels == nil {
		g.cancels = make(map[*context.CancelCauseFunc]struct{})
	}
	g.cancels[&cancel] = struct{}{}
	return ctx, func() {
		g.mu.Lock()
		delete(g.cancels, &cancel)
		g.mu.Unlock()
		cancel(nil)
	}
}

// alive says that the process runs, and is to be called far more often than
// asleep. It closes the gate and returns false if the time since the last call
// was longer than that: the process was frozen. Then the gate stays closed for
// the generation that it was open for.
func (g *Gate) alive(asleep time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asleep = asleep
	woken := g.overslept()
	g.seen = time.Now()
	if woken {
		g.end()
	}
	return !woken
}

// look closes the gate if the process was frozen. Who has waited for anything
// asks it before the wait has consequences: a process that wakes up does what was
// due, in any order, and the news that it is no member any more comes later.
func (g *Gate) look() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.overslept() {
		g.end()
	}
}

// overslept reports whether the process was not seen running for too long. The
// caller holds mu.
func (g *Gate) overslept() bool { return !g.seen.IsZero() && time.Since(g.seen) > g.asleep }

// IsOpen reports whether the gate is open now.
func (g *Gate) IsOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.generation != nil
}

// open opens the gate for a generation and reports whether it did. It does not
// once the generation's context has ended: that context must be cancelled
// before shut is called, and then an opening that comes too late cannot outlive
// the closing, because both hold the mutex.
func (g *Gate) open(generation context.Context) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.retired || generation.Err() != nil || g.overslept() {
		return false
	}
	if g.generation != nil && g.generation != generation {
		g.end()
	}
	g.generation = generation
	if g.opened != nil {
		close(g.opened)
		g.opened = nil
	}
	return true
}

// shut closes the gate if it is open for the generation, and ends its contexts
// before it returns. A late shut of an earlier generation does nothing.
func (g *Gate) shut(generation context.Context) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.generation == generation {
		g.end()
	}
}

// retire closes the gate for good.
func (g *Gate) retire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.retired = true
	g.end()
}

// end closes the gate. The caller holds mu.
func (g *Gate) end() {
	g.generation = nil
	for cancel := range g.cancels {
		(*cancel)(errGateClosed)
	}
	clear(g.cancels)
}
