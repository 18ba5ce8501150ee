package upstream

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
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
	// fault is what the breaker was last told of, in words for a person.
	fault   string
	onTrial bool // a call is trying the half-open breaker
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
	today    daySpent
	left     timeline // the requests that have left

	notes []func() // log lines to be written once mu is free
}

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
		if time.Since(b.At) > cfg.Remembered {
			a.logger.Warn("balance is older than the ledger's horizon: what was spent before is not known", "balance", b.Points, "at", b.At, "horizon", cfg.Remembered)
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

// readTokens reads the token files again. A token that two accounts would have is
// not taken over: it would be used at the sum of two rates. But tokens may change
// places.
func readTokens(accounts []*account) {
	type found struct {
		token string
		err   error
	}
	next := make([]found, len(accounts))
	for i, a := range accounts {
		next[i].token = a.currentToken()
		if a.file == "" {
			continue
		}
		if token, err := readToken(a.file); err == nil {
			next[i].token = token
		} else {
			next[i].err = err
		}
	}
	for again := true; again; {
		again = false
		for i, a := range accounts {
			for j, o := range accounts {
				if now := a.currentToken(); i != j && next[i].token == next[j].token && next[i].token != now {
					next[i] = found{now, fmt.Errorf("token file %s holds the token of account %s; give each account its own", a.file, o.name)}
					again = true // what it keeps may be what another has found
				}
			}
		}
	}
	for i, a := range accounts {
		a.useToken(next[i].token, next[i].err)
	}
}

func (a *account) currentToken() string {
	a.mu.Lock()
	defer a.unlock()
	return a.token
}

// useToken takes over what was read of the token file. With an error, that says
// why the token is still the one before.
func (a *account) useToken(token string, err error) {
	if a.file == "" {
		return
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

// adviceWithoutFile is what to do about a wrong token that is not in a file.
const adviceWithoutFile = "The token is wrong, was replaced by a newer one, or was used from another address. It is in no file that could be read again: set a good one and restart."

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
	attainable := pace.perSecond
	if a.usual > 0 {
		attainable = min(attainable, float64(a.cfg.MaxInFlight)/a.usual.Seconds())
	}
	st := AccountStatus{
		Name: a.name, State: StateSending, Breaker: breakerName(state), Rate: pace.perSecond, Limit: pace.limit, Attainable: attainable, PerSecond: a.left.perSecond(now),
		InFlight: a.inFlight, Waiting: waiting, Calls: a.total.Calls, Charged: a.total.Charged, Spent: a.total.Points,
		Balance: a.balance.status(now),
		Today:   *a.today.on(now), Recent: a.left.slots(now),
	}
	switch {
	case a.halt != nil:
		st.State, st.Reason, st.Advice = StateHalted, a.halt.reason, a.halt.advice
		if st.Reason == answers.row(rowToken).slug {
			switch {
			case a.file == "":
				st.Advice = adviceWithoutFile
			case a.fileTrouble != "":
				// The repair has been tried, and went wrong.
				st.Advice += " As it is, that file cannot be used: " + a.fileTrouble + "."
			}
		}
		st.Since, st.Until, st.Probing = a.halt.times()
	case state != gobreaker.StateClosed:
		since := a.brokenSince
		st.State, st.Reason, st.Since, st.Fault = StatePaused, "breaker_"+breakerName(state), &since, a.fault
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
