package consumer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
	"unsafe"
)

// naiveMark is what a watermark should say: it remembers every offset and
// searches for the lowest unfinished one.
type naiveMark struct {
	unfinished []int64
	next       int64
}

func (n *naiveMark) mark() int64 {
	if len(n.unfinished) > 0 {
		return slices.Min(n.unfinished)
	}
	return n.next
}

func TestWatermarkAgainstNaiveModel(t *testing.T) {
	seed := rand.Uint64()
	steps := 0
	for round := range 300 {
		rng := rand.New(rand.NewPCG(seed, uint64(round)))
		start := rng.Int64N(1000)
		w, n := newWatermark(start), &naiveMark{next: start}
		// A low chance to finish lets many records pile up, a high one keeps
		// the watermark nearly empty.
		finishing := rng.Float64()
		stuck := int64(-1)
		last := w.mark()
		for range 400 {
			steps++
			switch {
			case rng.Float64() > finishing || len(n.unfinished) == 0:
				offset := n.next
				if rng.IntN(4) == 0 {
					offset += rng.Int64N(50) // a gap
				}
				w.add(offset, time.Unix(offset, 0))
				n.unfinished, n.next = append(n.unfinished, offset), offset+1
				if stuck < 0 && rng.IntN(20) == 0 {
					stuck = offset
				}
			case rng.IntN(10) == 0:
				to := n.next + rng.Int64N(5) - 2
				w.skip(to)
				n.next = max(n.next, to)
			default:
				i := rng.IntN(len(n.unfinished))
				offset := n.unfinished[i]
				if offset == stuck && rng.IntN(50) > 0 {
					continue
				}
				w.finish(offset)
				if rng.IntN(5) == 0 {
					w.finish(offset) // again: no effect
				}
				n.unfinished = slices.Delete(n.unfinished, i, i+1)
			}
			if got, want := w.mark(), n.mark(); got != want {
				t.Fatalf("seed %d round %d: mark is %d, want %d", seed, round, got, want)
			}
			if w.mark() < last {
				t.Fatalf("seed %d round %d: mark went back from %d to %d", seed, round, last, w.mark())
			}
			last = w.mark()
			if got, want := w.unfinished(), len(n.unfinished); got != want {
				t.Fatalf("seed %d round %d: %d unfinished, want %d", seed, round, got, want)
			}
			if first := w.first(); (first != nil) != (len(n.unfinished) > 0) || first != nil && int64(first.at) != n.mark() {
				t.Fatalf("seed %d round %d: first is %v with mark %d", seed, round, first, n.mark())
			}
			var left []int64
			for _, s := range w.from(0) {
				if s.place != finished {
					left = append(left, s.offset)
				}
			}
			if !slices.Equal(left, n.unfinished) {
				t.Fatalf("seed %d round %d: slots %v, want %v", seed, round, left, n.unfinished)
			}
			if slots := len(w.slots); slots > 2*w.unfinished()+squeezeAbove+2 {
				t.Fatalf("seed %d round %d: %d slots for %d unfinished records", seed, round, slots, w.unfinished())
			}
		}
	}
	t.Logf("seed %d: %d steps in 300 rounds", seed, steps)
}

func TestWatermark(t *testing.T) {
	tests := map[string]struct {
		do   func(w *watermark)
		want int64
	}{
		"starts where it begins":     {func(*watermark) {}, 10},
		"stands at the first record": {func(w *watermark) { w.add(10, time.Time{}); w.add(11, time.Time{}) }, 10},
		"passes what is finished in order": {func(w *watermark) {
			w.add(10, time.Time{})
			w.add(11, time.Time{})
			w.finish(10)
		}, 11},
		"does not pass the slow one": {func(w *watermark) {
			w.add(10, time.Time{})
			w.add(11, time.Time{})
			w.finish(11)
		}, 10},
		"passes both at once": {func(w *watermark) {
			w.add(10, time.Time{})
			w.add(11, time.Time{})
			w.finish(11)
			w.finish(10)
		}, 12},
		"passes a gap": {func(w *watermark) {
			w.add(10, time.Time{})
			w.add(500, time.Time{})
			w.finish(10)
		}, 500},
		"passes a marker at the end": {func(w *watermark) {
			w.add(10, time.Time{})
			w.finish(10)
			w.skip(12)
		}, 12},
		"is not moved back by a skip":    {func(w *watermark) { w.skip(3) }, 10},
		"ignores an offset it never had": {func(w *watermark) { w.add(10, time.Time{}); w.finish(9); w.finish(12) }, 10},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWatermark(10)
			test.do(w)
			if got := w.mark(); got != test.want {
				t.Errorf("mark is %d, want %d", got, test.want)
			}
		})
	}
}

// A record that stays unfinished must not make the watermark remember all that
// finished behind it.
func TestWatermarkForgetsWhatIsFinishedBehindAStuckRecord(t *testing.T) {
	w := newWatermark(0)
	w.add(0, time.Now())
	for offset := range int64(200_000) {
		w.add(offset+1, time.Now())
		w.finish(offset + 1)
	}
	if got := w.mark(); got != 0 {
		t.Errorf("mark is %d, want 0", got)
	}
	if n := cap(w.slots); n > 4*squeezeAbove {
		t.Errorf("room for %d slots is kept for one unfinished record", n)
	}
	w.finish(0)
	if got := w.mark(); got != 200_001 {
		t.Errorf("mark is %d, want 200001", got)
	}
}

func TestSlotIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(slot{}); size > 16 {
		t.Errorf("a slot takes %d bytes, want at most 16", size)
	}
}

func BenchmarkWatermark(b *testing.B) {
	for _, depth := range []int{1, 1000, 100_000} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			w := newWatermark(0)
			rng := rand.New(rand.NewPCG(1, 2))
			open := make([]int64, 0, depth)
			for i := range depth {
				w.add(int64(i), time.Time{})
				open = append(open, int64(i))
			}
			for b.Loop() {
				i := rng.IntN(depth)
				w.finish(open[i])
				open[i] = w.next
				w.add(w.next, time.Time{})
			}
		})
	}
}
