package upstreamtest

import (
	"slices"
	"sort"
	"time"
)

// peak finds the largest number of arrivals in any second, from arrivals that
// come nearly, but not always, in order.
//
// A second is half open: two arrivals exactly one second apart are not in the
// same one. It is enough to look at the seconds that begin with an arrival: any
// other second can be moved to the right until it does, and loses none.
type peak struct {
	recent []time.Time // in order
	// tail is where the second that ends with the newest arrival begins.
	tail int
	most int
}

// memory is how late an arrival may be noted and still be counted exactly. It
// is longer than a server waits for the rest of a request.
const memory = time.Minute

// add notes an arrival.
func (p *peak) add(t time.Time) {
	if n := len(p.recent); n > 0 && t.Before(p.recent[n-1]) {
		p.insert(t)
		return
	}
	p.recent = append(p.recent, t)
	for t.Sub(p.recent[p.tail]) >= time.Second {
		p.tail++
	}
	// Of the seconds that hold the newest arrival, the one that ends with it
	// holds all the others that can be in one with it.
	p.most = max(p.most, len(p.recent)-p.tail)
	p.forget()
}

// insert notes an arrival that is not the newest.
func (p *peak) insert(t time.Time) {
	i := sort.Search(len(p.recent), func(k int) bool { return p.recent[k].After(t) })
	p.recent = slices.Insert(p.recent, i, t)
	switch newest := p.recent[len(p.recent)-1]; {
	case i > p.tail: // the last second began earlier
	case newest.Sub(t) < time.Second:
		p.tail = i
	default:
		p.tail++
	}
	// Only the seconds that hold the arrival may have become the fullest:
	// those that begin with an arrival within one second before it.
	begin := i
	for begin > 0 && t.Sub(p.recent[begin-1]) < time.Second {
		begin--
	}
	for end := begin; begin <= i; begin++ {
		for end < len(p.recent) && p.recent[end].Sub(p.recent[begin]) < time.Second {
			end++
		}
		p.most = max(p.most, end-begin)
	}
}

// forget drops what no late arrival will be compared with, in batches.
func (p *peak) forget() {
	newest := p.recent[len(p.recent)-1]
	if newest.Sub(p.recent[len(p.recent)/2]) > memory && len(p.recent) > 1000 {
		half := len(p.recent) / 2
		p.recent = slices.Clone(p.recent[half:])
		p.tail -= half
	}
}
