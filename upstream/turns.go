package upstream

import (
	"container/heap"
	"context"
	"slices"
	"time"

	"packship/schema"

	"github.com/sony/gobreaker/v2"
)

// waiter is an order that waits to be admitted.
type waiter struct {
	packed   *schema.Packed
	again    bool       // it had its turn before, so it goes first
	granted  chan *Turn // of one
	position uint64
	index    int   // in the queue, -1 if it is not there
	parked   *shop // where it waits instead
}

const (
	// lead is how long before its token an order is let in, beyond the time
	// that it needs to prepare.
	lead    = 300 * time.Millisecond
	maxLead = 3 * time.Second
	// silence is how long an API that has several calls to answer answers none
	// before it is taken for one that does not answer. It is no longer than the
	// usual answer, see [account.silent].
	silence = time.Second
)

// poke lets those go who may.
func (a *account) poke() {
	a.mu.Lock()
	defer a.unlock()
	a.breaker.State() // half-opens it even if nobody waits
	a.dispatch()
}

// enqueue adds a waiter.
func (a *account) enqueue(w *waiter) {
	a.mu.Lock()
	defer a.unlock()
	a.arrivals++
	w.position = a.arrivals
	heap.Push(&a.queue, w)
	a.dispatch()
}

// withdraw removes a waiter that gave up. If its turn came at the same moment,
// that is left.
func (a *account) withdraw(w *waiter) {
	a.mu.Lock()
	defer a.unlock()
	select {
	case t := <-w.granted:
		a.over(t, errExcluded)
	default:
		switch {
		case w.index >= 0:
			heap.Remove(&a.queue, w.index)
		case w.parked != nil:
			w.parked.waiting = slices.DeleteFunc(w.parked.waiting, func(o *waiter) bool { return o == w })
		}
	}
	a.dispatch()
}

// dispatch gives turns to those first in the queue for as long as it may, and
// sets the timer for the next one. Callers hold mu.
func (a *account) dispatch() {
	for a.queue.Len() > 0 {
		now := time.Now()
		wait, ok := a.mayGrant(now)
		if !ok {
			if wait > 0 {
				a.wake.Reset(wait)
			}
			return
		}
		w, _ := heap.Pop(&a.queue).(*waiter)
		s := a.shops[w.packed.ShopID]
		if s != nil && s.hold.closed() {
			w.parked = s
			s.waiting = append(s.waiting, w)
			continue
		}
		done, err := a.breaker.Allow()
		if err != nil {
			heap.Push(&a.queue, w)
			return // mayGrant looked just now: a call that is over will be back
		}
		a.grant(w, s, done, now)
	}
}

// mayGrant reports whether the first in the queue may have a turn. If not, wait
// is when to look again, 0 if there is nothing to wait for but news. Callers
// hold mu.
func (a *account) mayGrant(now time.Time) (wait time.Duration, ok bool) {
	if a.halt.closed() || a.busy >= a.cfg.MaxInFlight {
		return 0, false
	}
	switch a.breaker.State() {
	case gobreaker.StateOpen:
		// The breaker has no timer of its own. It half-opens when it is asked
		// after its pause, and not yet at the very end of it.
		return max(a.openUntil.Sub(now), 0) + time.Millisecond, false
	case gobreaker.StateHalfOpen:
		if a.onTrial {
			return 0, false
		}
	case gobreaker.StateClosed:
	}
	if a.silent(now) {
		return 0, false // an answer or a time limit will be news
	}
	early := min(lead+2*a.prepare, maxLead)
	if wait := a.pacer.forecast(len(a.unsent)).Sub(now) - early; wait > 0 {
		return wait, false
	}
	return 0, true
}

// silent reports whether as many calls as would open the breaker are in flight
// and none will have been answered, by the time that one more could leave, for
// longer than an answer usually takes. An API that has stopped to answer would
// otherwise be sent all that the rate allows until the first of them reaches its
// time limit, and each of these orders would be in doubt. Callers hold mu.
func (a *account) silent(now time.Time) bool {
	return a.inFlight >= a.cfg.BreakerFailures && now.Add(lead).Sub(a.silentSince) > max(silence, a.usual)
}

// grant gives a turn. Callers hold mu.
func (a *account) grant(w *waiter, s *shop, done func(error), now time.Time) {
	t := &Turn{account: a, packed: w.packed, granted: now, done: done}
	if a.halt != nil {
		t.probe, a.halt.probing = a.halt, true
	}
	if s != nil && s.hold != nil {
		t.shopProbe, s.hold.probing = s.hold, true
	}
	if a.state == gobreaker.StateHalfOpen {
		t.trial, a.onTrial = true, true
	}
	a.busy++
	a.unsent[t] = struct{}{}
	w.granted <- t
}

// begin starts a Send. It returns false if the turn was used before, or may not
// be used any more and is over.
func (a *account) begin(t *Turn, drop context.CancelCauseFunc) (token string, ok bool) {
	a.mu.Lock()
	defer a.unlock()
	if t.state != turnGranted {
		return "", false
	}
	if t.revoked {
		a.over(t, errExcluded)
		a.dispatch()
		return "", false
	}
	t.state, t.drop, t.epoch = turnSending, drop, a.epoch
	return a.token, true
}

// depart is asked when the request of a turn is about to leave.
func (a *account) depart(t *Turn) bool {
	a.mu.Lock()
	defer a.unlock()
	if t.revoked {
		return false
	}
	if t.state == turnSending {
		t.state = turnLeft
		delete(a.unsent, t)
		now := time.Now()
		if a.inFlight++; a.inFlight == 1 {
			a.silentSince = now
		}
		a.left.add(now)
		a.metrics.inFlight.WithLabelValues(a.name).Inc()
		a.dispatch()
	}
	return true
}

// revoke takes back all turns whose request has not left. Callers hold mu.
func (a *account) revoke(which func(*Turn) bool) {
	for t := range a.unsent {
		if !which(t) {
			continue
		}
		t.revoked = true
		if t.drop != nil {
			t.drop(errNotAllowed)
		}
	}
}

// over ends a turn. Callers hold mu and dispatch afterwards.
func (a *account) over(t *Turn, result error) {
	if t.state == turnOver {
		return
	}
	if t.state == turnLeft {
		a.inFlight--
		a.metrics.inFlight.WithLabelValues(a.name).Dec()
	}
	t.state = turnOver
	delete(a.unsent, t)
	a.busy--
	if t.probe != nil {
		t.probe.probing = false
	}
	if t.shopProbe != nil {
		t.shopProbe.probing = false
		if s := a.shops[t.packed.ShopID]; s != nil && s.hold == t.shopProbe {
			a.readmit(s)
		}
	}
	if t.trial {
		a.onTrial = false
	}
	t.done(result)
}

// leave gives a turn back that was not used.
func (a *account) leave(t *Turn) {
	a.mu.Lock()
	defer a.unlock()
	if t.state != turnGranted {
		return
	}
	a.over(t, errExcluded)
	a.dispatch()
}

// notSent is the answer of a call that did not leave, by our own doing.
func notSent() schema.Answer {
	return schema.Answer{
		Action: schema.ActHold, Reason: reasonNotSent, Class: classTransient, Redrivable: true,
		Advice: "Nothing was sent; the order waits for its next turn.",
	}
}

// giveUp ends a turn whose call certainly did not leave; trouble is what kept it
// from reaching the API, nil if it was our own doing.
func (a *account) giveUp(t *Turn, trouble error) schema.Answer {
	a.mu.Lock()
	defer a.unlock()
	answer, result := notSent(), errExcluded
	if trouble != nil {
		answer.Reason, answer.Wait, result = reasonUnreachable, a.cfg.RetryBackoff, errFault
		answer.Advice = "The API cannot be reached: check the URL and the network."
		a.fault = "it cannot be reached, " + cut(trouble.Error(), maxFault)
		a.metrics.unreachable.WithLabelValues(a.name).Inc()
		log := a.logger.Debug
		if !a.unreached {
			log, a.unreached = a.logger.Warn, true
		}
		a.note(log, "api not reached", "tid", t.packed.TID, "err", trouble)
	}
	a.over(t, result)
	a.dispatch()
	return answer
}

// queue is a heap of waiters, the first to come on top. One that had to wait
// for its shop goes back to its old place.
type queue []*waiter

func (q queue) Len() int { return len(q) }

func (q queue) Less(i, j int) bool {
	if q[i].again != q[j].again {
		return q[i].again
	}
	return q[i].position < q[j].position
}

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push implements heap.Interface.
func (q *queue) Push(x any) {
	w, _ := x.(*waiter)
	w.index = len(*q)
	*q = append(*q, w)
}

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	old := *q
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	w.index = -1
	return w
}
