package consumer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"packship/schema"
)

// blockingHandler is a handler whose shops can be blocked.
type blockingHandler struct {
	fakeHandler

	bmu     sync.Mutex
	blocked map[string]chan struct{} // by shop
	asked   int
}

func (h *blockingHandler) Blocked(p *schema.Packed) (<-chan struct{}, bool) {
	h.bmu.Lock()
	defer h.bmu.Unlock()
	h.asked++
	ch, ok := h.blocked[p.ShopID]
	return ch, ok
}

func (h *blockingHandler) block(shop string) {
	h.bmu.Lock()
	defer h.bmu.Unlock()
	if h.blocked == nil {
		h.blocked = make(map[string]chan struct{})
	}
	if h.blocked[shop] == nil {
		h.blocked[shop] = make(chan struct{})
	}
}

func (h *blockingHandler) unblock(shop string) {
	h.bmu.Lock()
	defer h.bmu.Unlock()
	if ch := h.blocked[shop]; ch != nil {
		close(ch)
		delete(h.blocked, shop)
	}
}

func (h *blockingHandler) isBlocked(shop string) bool {
	_, ok := h.Blocked(&schema.Packed{ShopID: shop})
	return ok
}

// A hundred thousand orders of a parked shop stand in front of others. The
// others are shipped; the committed offset stays at the first parked order; and
// when the shop reopens, its orders are handled in their order, and so are those
// that came meanwhile.
func TestShelfLetsOthersPass(t *testing.T) {
	const others, window = 500, 100
	parked := 100_000
	if testing.Short() {
		parked = 5_000
	}
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("parked", 1, parked)...)
		w.produce(0, events("other", 1, others)...)
		h := new(blockingHandler)
		h.block("parked")
		before := heap()
		r := w.start("a", h, func(c *Config) { c.Window = window })
		h.awaitSettled(t, others)
		time.Sleep(5 * time.Second)
		if got := w.committedAt(0); got != 0 {
			t.Errorf("committed %d, want 0: the first parked order", got)
		}
		st := r.c.Status().Partitions[0]
		if st.Shelved != parked || st.Unsettled != parked {
			t.Errorf("status shows %d shelved and %d unsettled orders, want %d each", st.Shelved, st.Unsettled, parked)
		}
		if records, bytes := tenureOf(t, r, 0).inMemory(); records != 0 || bytes != 0 {
			t.Errorf("%d records with %d bytes are in memory", records, bytes)
		}
		tn := tenureOf(t, r, 0)
		tn.mu.Lock()
		perRecord := cap(tn.marks.slots) * int(unsafe.Sizeof(slot{})) / parked
		tn.mu.Unlock()
		if perRecord > 32 {
			t.Errorf("%d bytes are kept for each record", perRecord)
		}
		t.Logf("heap grew by %d KiB for %d records on the shelf", (heap()-before)>>10, parked)
		// A second event of the very first order, and more of other shops.
		w.produce(0, event("parked", 1), event("other", 9999))
		h.awaitSettled(t, others+1)
		h.unblock("parked")
		w.awaitCommit(0, int64(parked+others+2))
		h.inOrder(t)
		h.mu.Lock()
		if got := h.perOrder["parked/1"]; len(got) != 2 || got[1] != int64(parked+others) {
			t.Errorf("the first order was handled as %v", got)
		}
		h.mu.Unlock()
		if began, settled := h.count(); settled != parked+others+2 || began != settled {
			t.Errorf("began %d and settled %d records, want %d each", began, settled, parked+others+2)
		}
		if h.maxBusy > window {
			t.Errorf("%d records were handled at once with a window of %d", h.maxBusy, window)
		}
		tn.mu.Lock()
		defer tn.mu.Unlock()
		if s := tn.shelf; s.size != 0 || s.open != 0 || len(s.shops) != 0 || len(s.byID) != 0 || len(s.waits) != 0 {
			t.Errorf("the shelf is not empty: %+v", s)
		}
	})
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Orders that were started before their shop was blocked fill the window and
// wait. They are sent to the shelf when the window is needed.
func TestShelfTakesOrdersThatWaitAlready(t *testing.T) {
	const window = 20
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("parked", 1, window)...)
		w.produce(0, events("parked", 1, 5)...) // later events of the first orders
		w.produce(0, events("other", 1, 50)...)
		h := new(blockingHandler)
		turn := make(chan struct{})
		h.work = func(ctx context.Context, g *Gate, rec *schema.Record, p *schema.Packed) error {
			if p.ShopID != "parked" {
				return nil
			}
			return until(turn)(ctx, g, rec, p)
		}
		r := w.start("a", h, func(c *Config) { c.Window = window })
		await(t, "the window to be full", func() bool { began, _ := h.count(); return began == window })
		h.block("parked")
		h.awaitSettled(t, 50)
		await(t, "all of the shop to be on the shelf", func() bool { return r.c.Status().Partitions[0].Shelved == window+5 })
		close(turn)
		h.unblock("parked")
		w.awaitCommit(0, window+55)
		h.inOrder(t)
		if _, settled := h.count(); settled != window+55 {
			t.Errorf("settled %d records, want %d", settled, window+55)
		}
	})
}

// A shop reopens while others fill the window. Its orders wait until one of these
// leaves: what is in memory is bounded by the window alone.
func TestShelfStaysWithinTheWindow(t *testing.T) {
	const window = 20
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("parked", 1, 10)...)
		w.produce(0, events("other", 1, window)...)
		h := new(blockingHandler)
		h.block("parked")
		turn := make(chan struct{})
		h.work = until(turn)
		r := w.start("a", h, func(c *Config) { c.Window = window })
		await(t, "the window to be full", func() bool { began, _ := h.count(); return began == window })
		h.unblock("parked")
		tn := tenureOf(t, r, 0)
		time.Sleep(10 * time.Second)
		tn.mu.Lock()
		loaded, size := tn.loaded, tn.shelf.size
		tn.mu.Unlock()
		if loaded != window || size != 10 {
			t.Errorf("%d records in memory and %d on the shelf, want %d and 10", loaded, size, window)
		}
		close(turn)
		w.awaitCommit(0, window+10)
	})
}

// While records wait to come back from the shelf, new ones leave them their part of
// the window.
func TestShelfHasItsPartOfTheWindow(t *testing.T) {
	const window = 20
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("parked", 1, 10)...)
		h := new(blockingHandler)
		h.block("parked")
		turn := make(chan struct{})
		h.work = until(turn)
		r := w.start("a", h, func(c *Config) { c.Window = window })
		await(t, "the shop to be on the shelf", func() bool {
			all := r.c.Status().Partitions
			return len(all) == 1 && all[0].Shelved == 10
		})
		h.unblock("parked")
		await(t, "some to come back", func() bool { began, _ := h.count(); return began == window/4 })
		w.produce(0, events("other", 1, 2*window)...)
		time.Sleep(10 * time.Second)
		if began, _ := h.count(); began != window-window/4 {
			t.Errorf("%d records are in memory, want %d: a quarter is kept free", began, window-window/4)
		}
		close(turn)
		w.awaitCommit(0, 2*window+10)
	})
}

// onceBlocked is a handler that says once, when it is told to, that an order is
// blocked.
type onceBlocked struct {
	fakeHandler

	armed    atomic.Bool
	reopened chan struct{}
}

func (h *onceBlocked) Blocked(*schema.Packed) (<-chan struct{}, bool) {
	if h.armed.CompareAndSwap(true, false) {
		return h.reopened, true
	}
	return nil, false
}

// A shop may reopen right after one of its orders went to the shelf. The later
// records of that order, which wait in its lane, must not overtake it.
func TestShelfTakesTheWholeLane(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, event("s", 1), event("s", 1), event("s", 1), event("s", 1))
		release := make(chan struct{})
		h := &onceBlocked{reopened: make(chan struct{})}
		h.work = func(ctx context.Context, g *Gate, rec *schema.Record, p *schema.Packed) error {
			if rec.Offset == 0 {
				return until(release)(ctx, g, rec, p)
			}
			return nil
		}
		r := w.start("a", h)
		await(t, "all records to be read", func() bool { return tenureOf(t, r, 0).position() == 4 })
		h.armed.Store(true)
		close(release)
		w.awaitCommit(0, 1)
		w.produce(0, event("s", 1))
		time.Sleep(5 * time.Second)
		if st := r.c.Status().Partitions[0]; st.Shelved != 4 {
			t.Errorf("%d records are on the shelf, want the whole lane and the later record", st.Shelved)
		}
		close(h.reopened)
		w.awaitCommit(0, 5)
		h.inOrder(t)
	})
}

// Shops are blocked and reopened at random while their orders, several events
// of each, are under way. Every record is settled once, in the order of its
// order, and the window is kept.
func TestShelfAtRandom(t *testing.T) {
	seed := rand.Uint64()
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	for round := range rounds {
		rng := rand.New(rand.NewPCG(seed, uint64(round)))   // of the records
		chaos := rand.New(rand.NewPCG(uint64(round), seed)) // of handlers and blocks
		var mu sync.Mutex                                   // guards chaos
		roll := func(n int) int {
			mu.Lock()
			defer mu.Unlock()
			return chaos.IntN(n)
		}
		inWorld(t, 2, func(w *world) {
			t := w.t
			const records = 600
			window := 4 + rng.IntN(60)
			h := new(blockingHandler)
			h.work = func(ctx context.Context, _ *Gate, _ *schema.Record, p *schema.Packed) error {
				for h.isBlocked(p.ShopID) || roll(3) == 0 {
					if !sleep(ctx, 50*time.Millisecond) {
						return context.Cause(ctx)
					}
				}
				return nil
			}
			r := w.start("a", h, func(c *Config) { c.Window = window })
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			over := false
			wg.Go(func() {
				for sleep(ctx, 100*time.Millisecond) {
					shop := fmt.Sprintf("shop%d", roll(4))
					if roll(3) > 0 {
						h.block(shop)
					} else {
						h.unblock(shop)
					}
					if roll(200) == 0 {
						r.net.cut(false) // a new generation, a continuation
					}
					for p := range 2 {
						if n, _ := tenureOf(t, r, p).inMemory(); n > window {
							over = true
						}
					}
				}
			})
			for p := range 2 {
				var values []string
				for range records {
					values = append(values, event(fmt.Sprintf("shop%d", rng.IntN(4)), 1+2*rng.IntN(40)+p))
				}
				for len(values) > 0 {
					n := min(len(values), 1+rng.IntN(100))
					w.produce(p, values[:n]...)
					values = values[n:]
					time.Sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
				}
			}
			cancel()
			wg.Wait()
			for i := range 4 {
				h.unblock(fmt.Sprintf("shop%d", i))
			}
			for p := range 2 {
				w.awaitCommit(p, records)
			}
			h.inOrder(t)
			w.commits.neverBack(t)
			if _, settled := h.count(); settled != 2*records {
				t.Errorf("settled %d records, want %d", settled, 2*records)
			}
			if over {
				t.Errorf("more than %d records of a partition were in memory", window)
			}
			if t.Failed() {
				t.Logf("seed %d round %d window %d", seed, round, window)
			}
		})
		if t.Failed() {
			return
		}
	}
	t.Logf("seed %d: %d rounds", seed, rounds)
}

func TestShelfIsBounded(t *testing.T) {
	const limit = 50
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, events("parked", 1, 200)...)
		w.produce(0, event("other", 1))
		h := new(blockingHandler)
		h.block("parked")
		r := w.start("a", h, func(c *Config) { c.Shelf = limit })
		await(t, "the shelf to be full", func() bool { return tenureOf(t, r, 0).position() == limit })
		time.Sleep(time.Minute)
		if got := tenureOf(t, r, 0).position(); got != limit {
			t.Errorf("read up to %d with a shelf of %d", got, limit)
		}
		h.unblock("parked")
		w.awaitCommit(0, 201)
		h.inOrder(t)
	})
}

// What is on the shelf may leave the log before its shop reopens. That is a
// loss, and said so.
func TestShelvedRecordsThatLeaveTheLog(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		for i := range 20 {
			w.produce(0, event("parked", 1+i))
		}
		w.produce(0, event("other", 1))
		h := new(blockingHandler)
		h.block("parked")
		r := w.start("a", h)
		h.awaitSettled(t, 1)
		if err := w.cluster.DeleteRecords(testTopic, 0, 15); err != nil {
			t.Fatal(err)
		}
		h.unblock("parked")
		w.awaitCommit(0, 21)
		if _, settled := h.count(); settled != 6 {
			t.Errorf("settled %d records, want the 5 that were left and the other", settled)
		}
		if got := r.metric("packship_skipped_offsets_total", "partition=0"); got != 15 {
			t.Errorf("packship_skipped_offsets_total is %v, want 15", got)
		}
		if n := r.log.count("ERROR offsets skipped"); n != 15 {
			t.Errorf("%d log lines about lost records, want 15", n)
		}
	})
}

func TestStopWithRecordsOnTheShelf(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		w.produce(0, event("other", 1))
		w.produce(0, events("parked", 1, 20)...)
		w.produce(0, events("other", 2, 10)...)
		h := new(blockingHandler)
		h.block("parked")
		r := w.start("a", h)
		h.awaitSettled(t, 11)
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if got := w.committedAt(0); got != 1 {
			t.Errorf("committed %d, want 1", got)
		}
		h2 := new(fakeHandler)
		w.start("b", h2)
		w.awaitCommit(0, 31)
		if _, settled := h2.count(); settled != 30 {
			t.Errorf("the second run settled %d records, want 30", settled)
		}
	})
}

// The faults of the brokers must not lose or swap what comes back.
func TestShelfComesBackThroughLeaderMoves(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		t := w.t
		const parked = 3000
		w.produce(0, events("parked", 1, parked)...)
		h := new(blockingHandler)
		h.block("parked")
		h.work = func(ctx context.Context, _ *Gate, _ *schema.Record, _ *schema.Packed) error {
			sleep(ctx, 5*time.Millisecond)
			return ctx.Err()
		}
		r := w.start("a", h, func(c *Config) { c.Window = 40 })
		await(t, "all to be on the shelf", func() bool {
			st := r.c.Status().Partitions
			return len(st) == 1 && st[0].Shelved == parked
		})
		h.unblock("parked")
		for w.committedAt(0) < parked {
			time.Sleep(50 * time.Millisecond)
			w.cluster.ShufflePartitionLeaders()
		}
		h.inOrder(t)
		if began, settled := h.count(); settled != parked || began != parked {
			t.Errorf("began %d and settled %d records, want %d each", began, settled, parked)
		}
	})
}
