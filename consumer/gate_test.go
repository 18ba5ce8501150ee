package consumer

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestGateZeroValueIsClosed(t *testing.T) {
	var g Gate
	if g.IsOpen() {
		t.Error("gate is open")
	}
	ctx, cancel := g.Context(t.Context())
	defer cancel()
	if !errors.Is(context.Cause(ctx), errGateClosed) {
		t.Errorf("cause is %v, want %v", context.Cause(ctx), errGateClosed)
	}
}

func TestGateWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Gate
		generation, end := context.WithCancel(t.Context())
		var waited time.Duration
		var wg sync.WaitGroup
		begun := time.Now()
		wg.Go(func() {
			if err := g.Wait(t.Context()); err != nil {
				t.Error(err)
			}
			waited = time.Since(begun)
		})
		time.Sleep(3 * time.Second)
		g.open(generation)
		wg.Wait()
		if waited != 3*time.Second {
			t.Errorf("waited %s, want 3s", waited)
		}
		if err := g.Wait(t.Context()); err != nil {
			t.Errorf("wait at an open gate: %v", err)
		}
		end()
		g.shut(generation)
		cause := errors.New("had enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		wg.Go(func() {
			if err := g.Wait(ctx); !errors.Is(err, cause) {
				t.Errorf("wait returned %v, want %v", err, cause)
			}
		})
		synctest.Wait()
		cancel(cause)
		wg.Wait()
		if err := g.Wait(ctx); !errors.Is(err, cause) {
			t.Errorf("wait with an ended context returned %v, want %v", err, cause)
		}
	})
}

func TestGateContextEndsWithTheClosing(t *testing.T) {
	var g Gate
	generation, end := context.WithCancel(t.Context())
	g.open(generation)
	var contexts []context.Context
	for range 10 {
		ctx, cancel := g.Context(t.Context())
		defer cancel()
		contexts = append(contexts, ctx)
	}
	left, cancel := g.Context(t.Context())
	cancel()
	if err := left.Err(); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled context says %v", err)
	}
	end()
	g.shut(generation)
	for _, ctx := range contexts {
		// No wait: the contexts have ended by the time shut has returned.
		if !errors.Is(context.Cause(ctx), errGateClosed) {
			t.Errorf("cause is %v, want %v", context.Cause(ctx), errGateClosed)
		}
	}
	if n := len(g.cancels); n != 0 {
		t.Errorf("gate remembers %d contexts", n)
	}
}

func TestGateContextEndsWithItsParent(t *testing.T) {
	var g Gate
	g.open(t.Context())
	parent, endParent := context.WithCancel(t.Context())
	ctx, cancel := g.Context(parent)
	defer cancel()
	endParent()
	<-ctx.Done()
}

func TestGateLateOpenAndLateShut(t *testing.T) {
	var g Gate
	first, endFirst := context.WithCancel(t.Context())
	second, endSecond := context.WithCancel(t.Context())
	defer endSecond()
	endFirst()
	if g.open(first) || g.IsOpen() {
		t.Error("gate opened for a generation that has ended")
	}
	if !g.open(second) {
		t.Error("gate did not open for the present generation")
	}
	g.shut(first)
	if !g.IsOpen() {
		t.Error("a late shut of an earlier generation closed the gate")
	}
	third, endThird := context.WithCancel(t.Context())
	defer endThird()
	ctx, cancel := g.Context(t.Context())
	defer cancel()
	g.open(third)
	if ctx.Err() == nil {
		t.Error("a context of the second generation outlived it")
	}
	g.retire()
	if g.open(third) || g.IsOpen() {
		t.Error("a retired gate opened")
	}
}

// Whatever the order of opening and ending is, the gate is closed once a
// generation has ended and shut has returned.
func TestGateOpenRacesWithTheEnd(t *testing.T) {
	for range 2000 {
		var g Gate
		generation, end := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { g.open(generation) })
		wg.Go(func() {
			end()
			g.shut(generation)
		})
		wg.Wait()
		if g.IsOpen() {
			t.Fatal("the gate is open for a generation that has ended")
		}
	}
}

// A process that was frozen does what was due when it wakes up, and may do it
// before the group tells it that it is no member any more.
func TestGateShutsWhenTheProcessWasFrozen(t *testing.T) {
	const asleep = 3 * time.Second
	for name, notice := range map[string]func(g *Gate){
		"by whoever looks":    func(g *Gate) { g.look() },
		"by the sign of life": func(g *Gate) { g.alive(asleep) },
		"by the next opening": func(g *Gate) { g.look(); g.open(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g Gate
				g.open(context.Background())
				for range 5 {
					if !g.alive(asleep) {
						t.Fatal("taken for frozen")
					}
					time.Sleep(asleep)
				}
				if g.look(); !g.IsOpen() {
					t.Error("shut although nobody was away for too long")
				}
				ctx, cancel := g.Context(t.Context())
				defer cancel()
				time.Sleep(time.Millisecond)
				notice(&g)
				if g.IsOpen() || !errors.Is(context.Cause(ctx), errGateClosed) {
					t.Errorf("open %t, its context says %v", g.IsOpen(), context.Cause(ctx))
				}
				g.alive(asleep)
				if next := t.Context(); !g.open(next) || !g.IsOpen() {
					t.Error("not open for the next generation")
				}
			})
		})
	}
}
