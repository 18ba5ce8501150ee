package cli

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progress counts finished work and, on a terminal, shows the count in one line
// that is drawn over again.
type progress struct {
	w     io.Writer
	verb  string
	total int

	mu    sync.Mutex // guards the rest
	done  int
	drawn time.Time
	shown bool
}

func newProgress(w io.Writer, verb string, total int) *progress {
	if !isTerminal(w) {
		w = nil
	}
	return &progress{w: w, verb: verb, total: total}
}

func (p *progress) add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n
	const pause = 100 * time.Millisecond // nobody reads faster
	if p.w != nil && (time.Since(p.drawn) > pause || p.done == p.total) {
		p.drawn, p.shown = time.Now(), true
		_, _ = fmt.Fprintf(p.w, "\r\033[K%s %d of %d", p.verb, p.done, p.total)
	}
}

// clear takes the line away, for the end or for something else to be written.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		p.shown = false
		_, _ = fmt.Fprint(p.w, "\r\033[K")
	}
}
