package upstream

import (
	"container/heap"
	"time"

	"github.com/sony/gobreaker/v2"
)

// hold is an account or a shop that must not call.
type hold struct {
	reason string
	advice string // what a person does about it
	since  time.Time
	url    string
	timer  *time.Timer
	next   time.Time // when the timer lets one order try
	// probe is true once one order may try, and probing while it does. Then
	// reopened is closed. The last leave for it was given at the time allowed.
	probe, probing bool
	allowed        time.Time
	reopened       chan struct{}
}

func newHold(reason, advice, url string) *hold {
	return &hold{reason: reason, advice: advice, since: time.Now(), url: url, reopened: make(chan struct{})}
}

// allow lets one order try. A nil hold needs no leave.
func (h *hold) allow() {
	if h == nil {
		return
	}
	h.allowed = time.Now()
	if !h.probe {
		h.probe = true
		h.timer.Stop()
		close(h.reopened)
	}
}

// outdated reports whether the try that left at the time says nothing of what
// is held: leave was given once more since, as it is after a repair. Nothing is
// outdated without a hold.
func (h *hold) outdated(left time.Time) bool { return h != nil && left.Before(h.allowed) }

// shop is what there is to know of a shop that does not just work.
type shop struct {
	hold    *hold // nil while it is not parked
	waiting []*waiter
	// faults counts refusals in a row that are likely the shop's.
	faults int
}

// closed reports whether nothing may be sent: there is a hold, and it does not
// wait for a try.
func (h *hold) closed() bool { return h != nil && (!h.probe || h.probing) }

// blocked reports whether the shop's orders have to wait for a repair, and
// returns the channel that is closed when one of them may be tried.
func (a *account) blocked(id string) (<-chan struct{}, bool) {
	a.mu.Lock()
	defer a.unlock()
	if a.halt != nil && !a.halt.probe {
		return a.halt.reopened, true
	}
	if s := a.shops[id]; s != nil && s.hold != nil && !s.hold.probe {
		return s.hold.reopened, true
	}
	if left := a.recessLeft(); a.shared && left > 0 {
		if a.recess == nil {
			a.recess = make(chan struct{})
			time.AfterFunc(left, a.endRecess)
		}
		return a.recess, true
	}
	return nil, false
}

// recessLeft returns for how long the account is certain to call nothing, apart
// from what a repair may bring. Callers hold mu.
func (a *account) recessLeft() time.Duration {
	until := a.pacer.status().paused
	if a.breaker.State() == gobreaker.StateOpen {
		until = later(until, a.openUntil)
	}
	return time.Until(until)
}

// endRecess lets the orders know that stood aside, once the time has come.
func (a *account) endRecess() {
	a.mu.Lock()
	defer a.unlock()
	if a.recess == nil {
		return
	}
	if left := a.recessLeft(); left > 0 {
		time.AfterFunc(left, a.endRecess)
		return
	}
	close(a.recess)
	a.recess = nil
}

// haltFor halts the account until a probe succeeds. Callers hold mu.
func (a *account) haltFor(reason, advice string) {
	h := newHold(reason, advice, "")
	if a.halt != nil {
		a.halt.timer.Stop()
		h.since = a.halt.since
		a.metrics.halted.WithLabelValues(a.name, a.halt.reason).Set(0)
	}
	a.halt = h
	h.next = time.Now().Add(a.cfg.HaltProbe)
	h.timer = time.AfterFunc(a.cfg.HaltProbe, func() {
		a.mu.Lock()
		defer a.unlock()
		h.allow()
		a.dispatch()
	})
	a.metrics.halted.WithLabelValues(a.name, reason).Set(1)
	a.note(a.logger.Error, "account halted", "reason", reason, "next_probe", a.cfg.HaltProbe)
	a.revoke(func(*Turn) bool { return true })
}

// resume lets a halted account try one order and ends a pause.
func (a *account) resume() {
	a.mu.Lock()
	defer a.unlock()
	a.pacer.resume()
	if a.recess != nil && a.recessLeft() <= 0 {
		close(a.recess)
		a.recess = nil
	}
	a.halt.allow()
	a.note(a.logger.Info, "account resume asked for")
	a.dispatch()
}

// park holds a shop's orders. Callers hold mu.
func (a *account) park(id, reason, advice, url string) {
	s := a.shops[id]
	if s == nil {
		s = &shop{}
		a.shops[id] = s
	}
	h := newHold(reason, advice, url)
	if s.hold != nil {
		s.hold.timer.Stop()
		h.since = s.hold.since
		a.metrics.parked.WithLabelValues(s.hold.reason).Dec()
	}
	s.hold = h
	a.metrics.parked.WithLabelValues(reason).Inc()
	h.next = time.Now().Add(a.cfg.HaltProbe)
	h.timer = time.AfterFunc(a.cfg.HaltProbe, func() { a.unpark(id) })
	a.note(a.logger.Warn, "shop parked", "shop_id", id, "reason", reason, "next_probe", a.cfg.HaltProbe)
	a.revoke(func(t *Turn) bool { return t.packed.ShopID == id })
}

// unpark lets a parked shop try one order. It reports false if it is not parked.
func (a *account) unpark(id string) bool {
	a.mu.Lock()
	defer a.unlock()
	s := a.shops[id]
	if s == nil || s.hold == nil {
		return false
	}
	s.hold.allow()
	a.readmit(s)
	a.dispatch()
	return true
}

// readmit puts the orders of a shop back into the queue, in their old places.
// Callers hold mu.
func (a *account) readmit(s *shop) {
	if s.hold.closed() {
		return
	}
	for _, w := range s.waiting {
		w.parked = nil
		heap.Push(&a.queue, w)
	}
	s.waiting = nil
}

// times says since when the hold lasts, and when it lets one order try by
// itself, nil if it does already.
func (h *hold) times() (since, until *time.Time, probing bool) {
	s, u := h.since, h.next
	if h.probe {
		return &s, nil, true
	}
	return &s, &u, false
}

func (a *account) parkedShops(shops []ParkedShop) []ParkedShop {
	a.mu.Lock()
	defer a.unlock()
	for id, s := range a.shops {
		if s.hold == nil {
			continue
		}
		_, until, probing := s.hold.times()
		shops = append(shops, ParkedShop{
			ShopID: id, Account: a.name, Reason: s.hold.reason, Advice: s.hold.advice, Since: s.hold.since, Until: until, Probing: probing,
			Waiting: len(s.waiting), URL: s.hold.url,
		})
	}
	return shops
}
