package upstream

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"packship/schema"
)

// account is one account at work: who may call for it, and when.
//
// Those who want to call wait in a queue. Whatever may let the first of them
// go calls dispatch: a new waiter, a call that ends, a timer, a repair. So
// nobody polls, and nobody sleeps on a lock.
//
// All calls of the breaker are made under mu, so that what it reports of its
// state changes is guarded by mu, too.
type account struct {
	name    string
	vvtype  int
	cfg     *Config
	metrics *metrics
	logger  *slog.Logger
	pacer   *pacer
	file    string // the token's, "" if it has none

	mu    sync.Mutex
	token string
	// fileTrouble is the last complaint about the token file, so that it is
	// logged once and not every two seconds.
	fileTrouble string
	// epoch grows when the token changes and when a halt ends. What a call of
	// an earlier epoch says of the account is no news.
	epoch     int
	halt      *hold // nil while the account is not halted
	shops     map[string]*shop
	breaker   *gobreaker.TwoStepCircuitBreaker[struct{}]
	state     gobreaker.State // the breaker's, as last reported
	openUntil time.Time
	// brokenSince is when the breaker left the closed state.
	brokenSince time.Time
	onTrial     bool // a call is trying the half-open breaker
	// recess is closed when the breaker is no longer open and the pause is
	// over; nil while nobody has asked to be told.
	recess chan struct{}
	// shared is true if there are other accounts, in whose way this one's
	// orders must not stand.
	shared bool
	// unreached is true while calls find no connection, so that this is logged
	// once and not every time.
	unreached bool
	// shopFaults is when the platform last failed for a shop.
	shopFaults map[string]time.Time
	// repaired is when the leave was given for the try that ended a shop's
	// parking. What a call that left before that says of the shop is no news.
	repaired map[string]time.Time

	queue    queue
	arrivals uint64
	// unsent are the turns whose request has not left, busy counts all turns
	// that are not over, inFlight the requests that have left.
	unsent         map[*Turn]struct{}
	busy, inFlight int
	// silentSince is when the API last answered anything, or the first of the
	// calls in flight left; usual is how long an answer takes, on average.
	silentSince time.Time
	usual       time.Duration
	// prepare is how long an order takes from its turn to the limiter, on
	// average: that much earlier it must be let in.
	prepare time.Duration
	wake    *time.Timer

	spending map[string]*Spending
	total    Spending
	balance  *forecast // nil if it is not known
	today    daySpending
	left     timeline // the requests that have left

	notes []func() // log lines to be written once mu is free
}

// hold is an account or a shop that must not call.
type hold struct {
	reason string
	since  time.Time
	url    string
	timer  *time.Timer
	next   time.Time // when the timer lets one order try
	// probe is true once one order may try, which is allowed since then, and
	// probing while it does. Then reopened is closed.
	probe, probing bool
	allowed        time.Time
	reopened       chan struct{}
}

func newHold(reason, url string) *hold {
	return &hold{reason: reason, since: time.Now(), url: url, reopened: make(chan struct{})}
}

// allow lets one order try. A nil hold needs no leave.
func (h *hold) allow() {
	if h != nil && !h.probe {
		h.probe, h.allowed = true, time.Now()
		close(h.reopened)
	}
}

// shop is what there is to know of a shop that does not just work.
type shop struct {
	hold    *hold // nil while it is not parked
	waiting []*waiter
	// faults counts refusals in a row that are likely the shop's.
	faults int
}

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
	// shopFaultLimit refusals in a row park a shop.
	shopFaultLimit = 5
	// silence is how long an API that has several calls to answer answers none
	// before it is taken for one that does not answer. It is no longer than the
	// usual answer, see [account.silent].
	silence = time.Second
)

func newAccount(cfg *Config, c *Account, m *metrics) (*account, error) {
	a := &account{
		name: c.Name, vvtype: c.VVType, cfg: cfg, metrics: m, logger: cfg.Logger.With("account", c.Name),
		pacer: newPacer(c.RatePerSecond, cfg.RateJitter), token: c.Token, file: c.TokenFile,
		shops: map[string]*shop{}, shopFaults: map[string]time.Time{}, repaired: map[string]time.Time{}, unsent: map[*Turn]struct{}{},
		shared:   len(cfg.Accounts) > 1,
		spending: map[string]*Spending{}, total: Spending{Account: c.Name}, balance: newForecast(c.Balance),
	}
	if b := a.balance; b != nil {
		m.balance.WithLabelValues(a.name).Set(float64(b.left))
		if old := time.Since(b.At); old > day {
			a.logger.Warn("balance is older than this process, which does not know what was spent in between", "balance", b.Points, "at", b.At)
		}
	}
	if a.file != "" {
		token, err := readToken(a.file)
		if err != nil {
			return nil, err
		}
		a.token = token
	}
	a.wake = time.AfterFunc(time.Hour, a.poke)
	a.wake.Stop()
	a.breaker = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:        c.Name,
		MaxRequests: 1,
		// Results of calls that began before the interval are dropped, so it
		// must be far longer than a call.
		Interval:      a.faultWindow(),
		BucketPeriod:  a.faultWindow() / 10,
		Timeout:       cfg.BreakerOpenFor,
		ReadyToTrip:   func(n gobreaker.Counts) bool { return int64(n.ConsecutiveFailures) >= int64(cfg.BreakerFailures) },
		OnStateChange: a.breakerChanged,
		IsExcluded:    func(err error) bool { return errors.Is(err, errExcluded) },
	})
	m.window.WithLabelValues(a.name).Set(a.pacer.base.Seconds())
	if err := m.slots(cfg.Registerer, a.name, func() int { return a.pacer.held(time.Now()) }); err != nil {
		return nil, err
	}
	return a, nil
}

// faultWindow is how long a fault is remembered.
func (a *account) faultWindow() time.Duration { return max(10*a.cfg.Timeout, time.Minute) }

// unlock releases mu and then writes the log lines that came up under it.
func (a *account) unlock() {
	notes := a.notes
	a.notes = nil
	a.mu.Unlock()
	for _, note := range notes {
		note()
	}
}

// note writes a log line, by a method of the logger, once mu is free. Callers
// hold mu.
func (a *account) note(log func(string, ...any), msg string, args ...any) {
	a.notes = append(a.notes, func() { log(msg, args...) })
}

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

// conclude draws the conclusions from the answer to a call. Doubt is true if it
// followed an attempt of which nobody knows the outcome.
func (a *account) conclude(t *Turn, x exchange, l *launch, doubt bool) schema.Answer {
	arrived, left := l.times()
	a.metrics.slotWait.WithLabelValues(a.name).Observe(left.Sub(arrived).Seconds())
	f := answers.read(x.reply, t.packed, policy{retryMax: a.cfg.RetryMax, backoff: a.cfg.RetryBackoff})
	a.metrics.called(a.name, &f, x.took, doubt)
	a.mu.Lock()
	defer a.unlock()
	if a.unreached {
		a.unreached = false
		a.note(a.logger.Info, "api reached again")
	}
	a.spend(t.packed.ShopID, f.Exchange)
	a.prepare = (7*a.prepare + arrived.Sub(t.granted)) / 8
	if x.status != 0 {
		a.silentSince = time.Now()
		if a.usual == 0 {
			a.usual = x.took
		}
		a.usual = (7*a.usual + x.took) / 8
	}
	if f.source == "" {
		a.pacer.passed()
	} else {
		grown := a.pacer.throttle(f.pause, left)
		log := a.logger.Debug
		if grown {
			log = a.logger.Warn
		}
		a.note(log, "api throttles", "told_by", f.source, "pause", f.pause)
	}
	a.metrics.window.WithLabelValues(a.name).Set(a.pacer.status().window.Seconds())
	a.judgeAccount(t, &f)
	a.judgeShop(t, &f, left)
	a.over(t, a.verdict(t, f.health))
	// An attempt made while the API is known to be down says nothing against
	// its order.
	f.Counted = f.Reached && f.Action != schema.ActHold && a.state == gobreaker.StateClosed
	if !f.Answered {
		// Each of them may have been paid for and has to be followed up; the
		// breaker sees to it that they are few.
		a.note(a.logger.Warn, "call not answered", "tid", t.packed.TID, "http_status", x.status, "err", x.err)
	}
	a.dispatch()
	return f.Answer
}

var (
	errFault    = errors.New("upstream fault")
	errExcluded = errors.New("says nothing of the upstream")
)

// verdict is what the breaker is told of a call. Callers hold mu.
func (a *account) verdict(t *Turn, h health) error {
	switch h {
	case healthGood:
		return nil
	case healthAlive:
		// An answer of any kind is what the half-open breaker waits for.
		if t.trial {
			return nil
		}
	case healthBad:
		return errFault
	case healthShop:
		now := time.Now()
		a.shopFaults[t.packed.ShopID] = now
		forget(a.shopFaults, now.Add(-a.faultWindow()))
		if len(a.shopFaults) > 1 {
			return errFault
		}
	case healthSilent:
	}
	return errExcluded
}

// judgeAccount halts the account, or ends its halt. Callers hold mu.
func (a *account) judgeAccount(t *Turn, f *finding) {
	switch {
	case f.halt != "":
		if t.epoch != a.epoch {
			return // it was sent with an old token, or before a repair
		}
		if a.halt == t.probe { // there is no halt, or it is the one that was tried
			a.haltFor(f.halt)
			if f.halt == quotaReason {
				a.broke()
			}
		}
	case t.probe != nil && a.halt == t.probe && (f.health == healthGood || f.health == healthAlive || f.health == healthShop):
		a.note(a.logger.Info, "account resumed", "reason", a.halt.reason, "halted", time.Since(a.halt.since))
		a.metrics.halted.WithLabelValues(a.name, a.halt.reason).Set(0)
		if a.halt.reason == quotaReason {
			a.toppedUp()
		}
		a.halt.timer.Stop()
		a.halt = nil
		a.epoch++
	}
}

// haltFor halts the account until a probe succeeds. Callers hold mu.
func (a *account) haltFor(reason string) {
	h := newHold(reason, "")
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

// forget drops the shops whose time is before the given one.
func forget(shops map[string]time.Time, before time.Time) {
	for shop, at := range shops {
		if at.Before(before) {
			delete(shops, shop)
		}
	}
}

// judgeShop parks the order's shop, or ends its parking. The left time is when
// the call had left. Callers hold mu.
func (a *account) judgeShop(t *Turn, f *finding, left time.Time) {
	id := t.packed.ShopID
	if left.Before(a.repaired[id]) {
		return // it was sent before the shop's repair
	}
	s := a.shops[id]
	reason := f.park
	switch {
	case f.shopFault:
		if s == nil {
			s = &shop{}
			a.shops[id] = s
		}
		if s.faults++; s.faults >= shopFaultLimit && reason == "" {
			reason = f.Reason
		}
	case f.health == healthGood, f.health == healthAlive && f.halt == "" && reason == "":
		if s != nil {
			s.faults = 0
		}
	}
	switch {
	case reason != "":
		if s == nil || s.hold == t.shopProbe { // it is not parked, or was tried
			a.park(id, reason, f.url)
		}
	case s != nil && s.hold != nil && s.hold == t.shopProbe && (f.health == healthGood || f.health == healthAlive && f.halt == ""):
		s.hold.timer.Stop()
		a.note(a.logger.Info, "shop unparked", "shop_id", id, "reason", s.hold.reason)
		// Calls that left before the repair can be answered for no longer
		// than they may take.
		now := time.Now()
		forget(a.repaired, now.Add(-a.cfg.Timeout))
		a.repaired[id] = s.hold.allowed
		a.metrics.parked.WithLabelValues(s.hold.reason).Dec()
		s.hold = nil
		a.readmit(s)
	}
	if s = a.shops[id]; s != nil && s.hold == nil && s.faults == 0 {
		delete(a.shops, id)
	}
}

// park holds a shop's orders. Callers hold mu.
func (a *account) park(id, reason, url string) {
	s := a.shops[id]
	if s == nil {
		s = &shop{}
		a.shops[id] = s
	}
	h := newHold(reason, url)
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

// breakerChanged is called by the breaker, under its own lock and mu.
func (a *account) breakerChanged(_ string, from, to gobreaker.State) {
	a.state = to
	if from == gobreaker.StateClosed {
		a.brokenSince = time.Now()
	}
	a.metrics.breaker.WithLabelValues(a.name).Set(float64(to))
	a.note(a.logger.Warn, "breaker changed", "from", breakerName(from), "to", breakerName(to))
	if to == gobreaker.StateOpen {
		a.openUntil = time.Now().Add(a.cfg.BreakerOpenFor)
		a.wake.Reset(a.cfg.BreakerOpenFor + time.Millisecond)
		a.revoke(func(*Turn) bool { return true })
	}
}

func breakerName(s gobreaker.State) string { return strings.ReplaceAll(s.String(), "-", "_") }

// readToken reads the token file again. Others are the accounts beside this one:
// a token that one of them has would be used at the sum of two rates.
func (a *account) readToken(others []*account) {
	if a.file == "" {
		return
	}
	token, err := readToken(a.file)
	for _, o := range others {
		if err == nil && o != a && o.hasToken(token) {
			err = fmt.Errorf("token file %s holds the token of account %s; give each account its own", a.file, o.name)
		}
	}
	a.mu.Lock()
	defer a.unlock()
	if err != nil {
		// A file that is being replaced may be missing for a moment: the
		// token that is known is still the best one.
		if a.fileTrouble != err.Error() {
			a.note(a.logger.Warn, "token file not usable", "err", err)
		}
		a.fileTrouble = err.Error()
		a.metrics.noToken.WithLabelValues(a.name).Set(1)
		return
	}
	a.fileTrouble = ""
	a.metrics.noToken.WithLabelValues(a.name).Set(0)
	if token == a.token {
		return
	}
	a.token = token
	a.epoch++
	a.halt.allow()
	a.note(a.logger.Info, "token changed")
	a.dispatch()
}

func (a *account) hasToken(token string) bool {
	a.mu.Lock()
	defer a.unlock()
	return a.token == token
}

// spend books a call. Callers hold mu.
func (a *account) spend(id string, x *schema.Exchange) {
	s := a.spending[id]
	if s == nil {
		s = &Spending{Account: a.name, ShopID: id}
		a.spending[id] = s
	}
	now := time.Now()
	points := int64(0)
	if x != nil {
		points = x.Withheld
	}
	for _, book := range []*Spending{s, &a.total, a.today.on(now)} {
		book.Calls++
		if points > 0 {
			book.Charged++
			book.Points += points
		}
	}
	if a.balance == nil {
		return
	}
	if a.balance.spend(points, now) {
		last, _ := a.balance.lasts(now)
		a.note(a.logger.Warn, "balance is running out", "points", a.balance.left, "lasts", last.Round(time.Minute))
	}
	a.metrics.balance.WithLabelValues(a.name).Set(float64(a.balance.left))
}

// broke notes that the API says that nothing is left. Callers hold mu.
func (a *account) broke() {
	if a.balance == nil {
		return
	}
	a.note(a.logger.Warn, "balance is used up", "points_expected", a.balance.left)
	a.balance.left = 0
	a.metrics.balance.WithLabelValues(a.name).Set(0)
}

// toppedUp notes that there are points again, nobody has said how many. Callers
// hold mu.
func (a *account) toppedUp() {
	if a.balance == nil {
		return
	}
	a.balance = nil
	a.metrics.balance.DeleteLabelValues(a.name)
	a.note(a.logger.Warn, "balance is not known since the top-up; set it in the accounts file and restart")
}

// daySpending is what was spent since the last midnight, by the process's own
// time zone.
type daySpending struct {
	Spending
	day int // the year and its day
}

// on returns the book of a day, which is new on another one.
func (d *daySpending) on(now time.Time) *Spending {
	if day := 1000*now.Year() + now.YearDay(); d.day != day {
		*d = daySpending{day: day}
	}
	return &d.Spending
}

func (a *account) status() AccountStatus {
	a.mu.Lock()
	defer a.unlock()
	now := time.Now()
	state := a.breaker.State()
	pace := a.pacer.status()
	waiting := a.queue.Len()
	for _, s := range a.shops {
		waiting += len(s.waiting)
	}
	today := a.today.on(now)
	st := AccountStatus{
		Name: a.name, State: StateSending, Breaker: breakerName(state), Rate: pace.perSecond, Limit: pace.limit, PerSecond: a.left.perSecond(now),
		InFlight: a.inFlight, Waiting: waiting, Calls: a.total.Calls, Charged: a.total.Charged, Spent: a.total.Points,
		Balance: a.balance.status(now),
		Today:   Spent{Calls: today.Calls, Charged: today.Charged, Points: today.Points}, Recent: a.left.slots(now),
	}
	switch {
	case a.halt != nil:
		st.State, st.Reason = StateHalted, a.halt.reason
		st.Since, st.Until, st.Probing = a.halt.times()
	case state != gobreaker.StateClosed:
		since := a.brokenSince
		st.State, st.Reason, st.Since = StatePaused, "breaker_"+breakerName(state), &since
		if state == gobreaker.StateOpen {
			until := a.openUntil
			st.Until = &until
		} else {
			st.Probing = true
		}
	case pace.paused.After(now):
		st.State, st.Reason, st.Since, st.Until = StatePaused, reasonThrottled, &pace.pausedAt, &pace.paused
	case a.busy == 0 && a.queue.Len() == 0:
		st.State = StateIdle
	}
	return st
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
			ShopID: id, Account: a.name, Reason: s.hold.reason, Since: s.hold.since, Until: until, Probing: probing,
			Waiting: len(s.waiting), URL: s.hold.url,
		})
	}
	return shops
}

func (a *account) spendings(all []Spending) []Spending {
	a.mu.Lock()
	defer a.unlock()
	first := len(all)
	for _, s := range a.spending {
		all = append(all, *s)
	}
	slices.SortFunc(all[first:], func(x, y Spending) int { return strings.Compare(x.ShopID, y.ShopID) })
	return all
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
