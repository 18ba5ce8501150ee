package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"packship/schema"
)

// Upstream is the shipping API, as packship calls it. It is safe for concurrent
// use.
type Upstream struct {
	cfg       Config
	transport *http.Transport
	endpoint  []attribute.KeyValue // of the spans
	metrics   *metrics
	accounts  []*account
	byShop    map[string]*account
	fallback  *account     // serves the shops in no account; nil if nobody does
	turned    atomic.Int64 // when the loop of Run last turned, in nanoseconds; 0 while it does not run
	// omniChannel are the shops that must name the store that ships.
	omniChannel map[string]bool
}

// New returns an Upstream. Calls can be made at once; Run keeps it up to date.
func New(cfg Config) (*Upstream, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.HaltProbe == 0 {
		cfg.HaltProbe = defaultHaltProbe
	}
	if cfg.UnknownShop == "" {
		cfg.UnknownShop = UnknownDefault
	}
	if cfg.WaybillCheck == "" {
		cfg.WaybillCheck = CheckWarn
	}
	if cfg.Carriers == nil {
		cfg.Carriers = builtIn
	}
	u := &Upstream{cfg: cfg, byShop: map[string]*account{}, omniChannel: map[string]bool{}, endpoint: endpoint(cfg.URL)}
	u.transport = newTransport(&u.cfg)
	var err error
	if u.metrics, err = newMetrics(cfg.Registerer, cfg.Accounts); err != nil {
		return nil, err
	}
	for i := range cfg.Accounts {
		a, err := newAccount(&u.cfg, &cfg.Accounts[i], u.metrics)
		if err != nil {
			return nil, err
		}
		u.accounts = append(u.accounts, a)
		for _, shop := range cfg.Accounts[i].Shops {
			u.byShop[shop] = a
		}
		for _, shop := range cfg.Accounts[i].OmniChannelShops {
			u.omniChannel[shop] = true
		}
		if cfg.fallback(&cfg.Accounts[i]) {
			u.fallback = a
		}
	}
	return u, nil
}

// Share gives this process the index-th of so many equal shares of every account's
// rate, counted from 0. There must not be more than [Upstream.MaxShares] of them.
func (u *Upstream) Share(index, of int) {
	for _, a := range u.accounts {
		a.pacer.setShare(index, of)
	}
}

// MaxShares returns among how many processes the rates of the accounts can be
// shared: each must have at least one call a second of every account.
func (u *Upstream) MaxShares() int {
	most := math.MaxInt
	for i := range u.cfg.Accounts {
		most = min(most, int(u.cfg.Accounts[i].RatePerSecond))
	}
	return max(1, most)
}

// Window returns the longest time for which a call counts against the rate of its
// account. Whoever takes over another process's part of a rate must wait for so
// long.
func (u *Upstream) Window() time.Duration {
	window := time.Second
	for i := range u.cfg.Accounts {
		window = max(window, time.Duration(float64(time.Second)/u.cfg.Accounts[i].RatePerSecond))
	}
	return window + u.cfg.RateJitter
}

// tokenPoll is how often the token files are read. A mounted secret is replaced
// by a symbolic link, which no file watcher sees everywhere alike.
const tokenPoll = 2 * time.Second

// Run follows the token files until ctx ends, and then returns nil.
func (u *Upstream) Run(ctx context.Context) error {
	defer u.CloseIdleConnections()
	ticker := time.NewTicker(tokenPoll)
	defer ticker.Stop()
	defer u.turned.Store(0)
	for {
		u.turned.Store(time.Now().UnixNano())
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			readTokens(u.accounts)
			for _, a := range u.accounts {
				a.poke() // nobody depends on it, but it shows that the account is not stuck
			}
		}
	}
}

// aliveWithin is how long the loop of Run may take for a turn.
const aliveWithin = 30 * time.Second

// Alive reports whether the loop of Run turns and the accounts can be used. It
// does not depend on the API.
func (u *Upstream) Alive() (bool, string) {
	at := u.turned.Load()
	if at == 0 {
		return true, ""
	}
	if d := time.Since(time.Unix(0, at)); d > aliveWithin {
		return false, "the loop that follows the accounts has not turned for " + d.Round(time.Second).String()
	}
	return true, ""
}

// AccountOf returns the name of the account that calls for a shop, "" if none
// does.
func (u *Upstream) AccountOf(shop string) string {
	if a := u.accountOf(shop); a != nil {
		return a.name
	}
	return ""
}

// Serves reports whether the event's shop is this deployment's business.
func (u *Upstream) Serves(p *schema.Packed) bool {
	return u.cfg.UnknownShop != UnknownSkip || u.accountOf(p.ShopID) != nil
}

// accountOf returns the account that calls for the shop, nil if none does.
func (u *Upstream) accountOf(shop string) *account {
	if a := u.byShop[shop]; a != nil {
		return a
	}
	return u.fallback
}

// Blocked reports whether no order of the event's shop may be sent for the time
// being, because its account is halted or the shop is parked, and returns a
// channel that is closed when one may be tried. A pause of the account and an
// open breaker end by themselves; they block only where there are other accounts,
// whose orders must not wait behind this one's.
func (u *Upstream) Blocked(p *schema.Packed) (reopened <-chan struct{}, blocked bool) {
	a := u.accountOf(p.ShopID)
	if a == nil {
		return nil, false
	}
	return a.blocked(p.ShopID)
}

// errNoAccount is what Admit returns for a shop that Serves or Validate turns
// away.
var errNoAccount = errors.New("its shop is in no account")

// Admit blocks until a call may be made for the event before long: its account
// and shop are not held, the breaker lets a call through, there is a place among
// the calls in flight, and the rate limit is about to let one more go. It serves
// those who wait first come, first served, except for orders of parked shops,
// which wait apart, and those that come again after an attempt, which go first:
// they are older than they look, and hold more than their place in the line. It returns an error only if ctx ends, or if no account
// serves the shop. The Turn is to be used or left without delay.
func (u *Upstream) Admit(ctx context.Context, p *schema.Packed, again bool) (*Turn, error) {
	a := u.accountOf(p.ShopID)
	if a == nil {
		return nil, fmt.Errorf("upstream: admit %s: %w", p.TID, errNoAccount)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("upstream: admit %s: %w", p.TID, err)
	}
	w := &waiter{packed: p, again: again, granted: make(chan *Turn, 1)}
	a.enqueue(w)
	select {
	case t := <-w.granted:
		t.upstream = u
		return t, nil
	case <-ctx.Done():
		a.withdraw(w)
		return nil, fmt.Errorf("upstream: admit %s: %w", p.TID, ctx.Err())
	}
}

// Classes returns the classes of failures that an answer of the API may have.
func Classes() []string { return answers.failureClasses() }

// Backoff returns the pause before the n-th retry of an order, n from 1. It
// doubles from one to the next up to a bound, and is drawn from the upper half,
// so that orders that failed together do not come back together.
func (u *Upstream) Backoff(n int) time.Duration {
	d := u.cfg.RetryBackoff
	for range max(n, 1) - 1 {
		if d >= u.cfg.RetryBackoffMax {
			break
		}
		d *= 2
	}
	d = min(d, u.cfg.RetryBackoffMax)
	return d/2 + rand.N(d/2+1)
}

// Accounts returns the state of all accounts, in the order of the settings.
func (u *Upstream) Accounts() []AccountStatus {
	all := make([]AccountStatus, len(u.accounts))
	for i, a := range u.accounts {
		all[i] = a.status()
	}
	return all
}

// ParkedShops returns the shops whose orders are held, sorted by id.
func (u *Upstream) ParkedShops() []ParkedShop {
	shops := []ParkedShop{}
	for _, a := range u.accounts {
		shops = a.parkedShops(shops)
	}
	slices.SortFunc(shops, func(a, b ParkedShop) int { return strings.Compare(a.ShopID, b.ShopID) })
	return shops
}

// Spending returns what was called and charged for each shop since the start,
// by account and shop.
func (u *Upstream) Spending() []Spending {
	all := []Spending{}
	for _, a := range u.accounts {
		all = a.spendings(all)
	}
	return all
}

// Resume lets a halted account try one order, after a repair, and ends a pause.
// It reports false if there is no such account.
func (u *Upstream) Resume(name string) bool {
	for _, a := range u.accounts {
		if a.name == name {
			a.resume()
			return true
		}
	}
	return false
}

// Unpark lets a parked shop try one order, after a repair. It reports false if
// the shop is neither parked nor listed in an account.
func (u *Upstream) Unpark(shop string) bool {
	a := u.accountOf(shop)
	return a != nil && a.unpark(shop) || u.byShop[shop] != nil
}

// CloseIdleConnections closes the connections that no call uses.
func (u *Upstream) CloseIdleConnections() { u.transport.CloseIdleConnections() }

// Turn is a place in front of the rate limiter. It is used once: Send makes the
// call, Leave gives the place back.
type Turn struct {
	upstream *Upstream
	account  *account
	packed   *schema.Packed
	granted  time.Time

	// The rest is guarded by the account's mu.

	done func(error) // of the breaker; nil once it is called
	// probe and shopProbe are the holds that this one order tries, of its
	// account and its shop; nil if there are none. A trial tries the half-open
	// breaker.
	probe, shopProbe *hold
	trial            bool
	state            turnState
	revoked          bool                    // it must not leave any more
	drop             context.CancelCauseFunc // ends the wait of a Send
	epoch            int                     // of the account when its token was read
}

type turnState int

const (
	turnGranted turnState = iota
	turnSending
	turnLeft // the request has left
	turnOver
)

var errTooLate = errors.New("upstream: the call could not leave in time")

// slowDial is how long a connection may take to be made before a call that
// could not leave in time for it counts as one that could not reach the API.
const slowDial = time.Second

// freshTries bounds how often a call that found its connection closed by the
// API takes another one. Nothing was sent on those.
const freshTries = 3

// Send makes one call for the hold that its caller has on the shipment. Until the
// first byte is written it gives up when gate ends or the hold's StartBy passes,
// or when the account or shop is held meanwhile, and answers that nothing was
// reached. From then on only the call's own time limit ends it. A zero StartBy
// sets no limit.
func (t *Turn) Send(gate context.Context, hold schema.Hold) schema.Answer {
	a, u := t.account, t.upstream
	deadline := func() {}
	if !hold.StartBy.IsZero() {
		gate, deadline = context.WithDeadlineCause(gate, hold.StartBy, errTooLate)
	}
	defer deadline()
	ready, drop := context.WithCancelCause(gate)
	defer drop(nil)
	token, ok := a.begin(t, drop)
	if !ok {
		return notSent()
	}
	body, contentType := form(t.packed, a.vvtype)
	start := time.Now()
	for try := 1; ; try++ {
		l := newLaunch(ready, a.pacer, func() bool { return a.depart(t) })
		x := u.do(ready, l, token, contentType, body)
		if x.left {
			answer := a.conclude(t, x, l, hold.Doubt)
			u.traceCall(gate, t, x, l, answer)
			return answer
		}
		why := context.Cause(ready)
		if why == nil && errors.Is(l.refusal(), errTooLate) {
			why = errTooLate // its timer is late
		}
		switch {
		case why == nil && errors.Is(l.refusal(), errNotAllowed):
			return a.giveUp(t, nil)
		case why == nil && x.reused && !l.departed() && try < freshTries:
			continue
		case why == nil:
			return a.giveUp(t, cmp.Or(x.err, l.refusal()))
		case errors.Is(why, errTooLate) && !x.connected && time.Since(start) >= slowDial:
			return a.giveUp(t, errTooLate)
		default:
			return a.giveUp(t, nil)
		}
	}
}

// Leave gives the place back if it has not been used. It may always be called.
func (t *Turn) Leave() { t.account.leave(t) }

// The states of an account.
const (
	StateSending = "sending"
	StatePaused  = "paused" // by the breaker or by throttling; ends by itself
	StateHalted  = "halted" // until a probe after a repair succeeds
	StateIdle    = "idle"   // it may send and has nothing to do
)

// AccountStatus is the state of an account.
type AccountStatus struct {
	Name string `json:"name"`
	// State is sending, paused, halted or idle; Reason says why it is paused or
	// halted, else it is "".
	State  string `json:"state"`
	Reason string `json:"reason"`
	// Advice says what a person has to do about a halt, and Fault what the API
	// did when the breaker was last told of a fault, while that does not let
	// the account send.
	Advice string `json:"advice,omitempty"`
	Fault  string `json:"fault,omitempty"`
	// Since is when a paused or halted account stopped sending.
	Since *time.Time `json:"since,omitempty"`
	// Until is when a pause ends, or one order is tried, without anybody doing
	// anything. While Probing is true that is now: the next order is tried.
	Until   *time.Time `json:"until,omitempty"`
	Probing bool       `json:"probing,omitempty"`
	// Breaker is closed, half_open or open.
	Breaker string `json:"breaker"`
	// Rate is the calls per second that the account may make; it is lower than
	// Limit, which is the setting, after the API has throttled.
	Rate  float64 `json:"rate"`
	Limit float64 `json:"limit"`
	// Attainable is Rate, or what comes about if as many calls as may be in
	// flight at once take as long as they do of late, if that is less.
	Attainable float64 `json:"attainable"`
	// PerSecond is how many calls have left in a second of late.
	PerSecond float64 `json:"per_second"`
	InFlight  int     `json:"in_flight"`
	Waiting   int     `json:"waiting"`
	// Calls counts the calls that were sent, Charged those whose answers say
	// that they cost something, and Spent the points that these say, since the
	// process started. What the other calls cost, the API does not say.
	Calls   int64 `json:"calls"`
	Charged int64 `json:"charged"`
	Spent   int64 `json:"spent"`
	// Balance is what is left of the configured balance, nil if none is
	// configured, or nobody knows since a top-up.
	Balance *BalanceStatus `json:"balance,omitempty"`
	// Today is what the calls of all processes have cost since midnight, as far
	// as the ledger is read.
	Today Spent `json:"today"`
	// Recent has the calls that left in the last ten minutes, by slots of five
	// seconds, oldest first.
	Recent []int `json:"recent"`
}

// Held reports whether something keeps the account from sending.
func (s *AccountStatus) Held() bool { return s.State == StatePaused || s.State == StateHalted }

// Spent is what was charged in a time.
type Spent struct {
	Charged int64 `json:"charged"` // calls that cost something
	Points  int64 `json:"points"`
}

// ParkedShop is a shop whose orders are held.
type ParkedShop struct {
	ShopID  string    `json:"shop_id"`
	Account string    `json:"account"`
	Reason  string    `json:"reason"`
	Advice  string    `json:"advice"` // what a person has to do about it
	Since   time.Time `json:"since"`
	// Until is when one of its orders is tried without anybody doing anything.
	// While Probing is true that is now.
	Until   *time.Time `json:"until,omitempty"`
	Probing bool       `json:"probing,omitempty"`
	Waiting int        `json:"waiting"`
	// URL is where the shop's owner authorises it. It is for the operator's
	// eyes, and must not get into logs or events.
	URL string `json:"url,omitempty"`
}

// Spending is what was called and charged for one shop.
type Spending struct {
	Account string `json:"account"`
	ShopID  string `json:"shop_id"`
	Calls   int64  `json:"calls"`
	Charged int64  `json:"charged"`
	Points  int64  `json:"points"`
}
