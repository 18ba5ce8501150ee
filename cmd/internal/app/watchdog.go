package app

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"packship/consumer"
	"packship/schema"
	"packship/upstream"
)

// watchdog looks for orders that are older than they should be although nothing
// holds them: their account may send, their shop is not parked, and what they do
// has long been over by its own time limits. There should be none, ever; if there
// is one, something is wrong that no other part has noticed.
//
// Since every look asks all parts how they are, its loop also stands still if one
// of them does. So the liveness probe asks the watchdog.
type watchdog struct {
	api *upstream.Upstream
	log *slog.Logger
	// grace is what an order is given beyond what it should need: the time in
	// which a call is made, answered, and can no longer take effect.
	grace   time.Duration
	overdue prometheus.Gauge
	turned  atomic.Int64 // when the loop last turned, in nanoseconds; 0 while it does not run

	paces map[string]*pace // by account; only the loop uses it

	mu     sync.Mutex
	found  []OverdueOrder // guarded by mu; the oldest first
	logged string         // guarded by mu; what was last logged of them
}

// pace is what an account has done while it was free to send.
type pace struct {
	free  time.Time // since when nothing holds it
	calls int64     // that were answered, when that last changed
	moved time.Time // and when that was
	most  int       // orders that have waited at the same time since it is free
}

// OverdueOrder is an order that should have been settled long ago.
type OverdueOrder struct {
	consumer.UnderWay
	// Due is when it should have gone on.
	Due time.Time `json:"due"`
}

func newWatchdog(s *Settings, api *upstream.Upstream, log *slog.Logger, reg prometheus.Registerer) *watchdog {
	w := &watchdog{
		api: api, log: log, grace: s.StartBy() + s.UpstreamTimeout + s.UpstreamSettle, paces: map[string]*pace{},
		overdue: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "packship_orders_overdue",
			Help: "Orders that should have been settled and are not, although neither their account nor their shop is held.",
		}),
	}
	reg.MustRegister(w.overdue)
	return w
}

// run looks again and again until ctx ends.
func (w *watchdog) run(ctx context.Context, reader *consumer.Consumer, shipper *consumer.Shipper) error {
	tick := time.NewTicker(min(max(w.grace/10, 100*time.Millisecond), 5*time.Second))
	defer tick.Stop()
	defer w.turned.Store(0)
	for {
		w.turned.Store(time.Now().UnixNano())
		reader.Status() // only to find out whether it still answers
		w.look(time.Now(), w.api.Accounts(), shipper.UnderWay)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// aliveWithin is how long the watchdog may take for a turn. It waits for nothing
// but locks.
const aliveWithin = 30 * time.Second

// alive reports whether the loop turns.
func (w *watchdog) alive() (bool, string) {
	at := w.turned.Load()
	if d := time.Since(time.Unix(0, at)); at != 0 && d > aliveWithin {
		return false, "a part of packship has not answered for " + d.Round(time.Second).String()
	}
	return true, ""
}

// look looks once.
func (w *watchdog) look(now time.Time, accounts []upstream.AccountStatus, underWay func(cond func(*consumer.UnderWay) bool) []consumer.UnderWay) {
	states := map[string]*upstream.AccountStatus{}
	for i := range accounts {
		a := &accounts[i]
		states[a.Name] = a
		w.follow(now, a)
	}
	var found []OverdueOrder
	for _, o := range underWay(func(o *consumer.UnderWay) bool { return now.Sub(o.Since) > w.grace || o.Trouble != "" }) {
		due := w.due(&o, states[w.api.AccountOf(o.ShopID)])
		if due.IsZero() || !now.After(due) {
			continue
		}
		if _, blocked := w.api.Blocked(&schema.Packed{ShopID: o.ShopID}); !blocked {
			found = append(found, OverdueOrder{UnderWay: o, Due: due})
		}
	}
	slices.SortStableFunc(found, func(a, b OverdueOrder) int { return a.Due.Compare(b.Due) })
	w.report(found)
}

// follow keeps the pace of an account.
func (w *watchdog) follow(now time.Time, a *upstream.AccountStatus) {
	p := w.paces[a.Name]
	if p == nil || a.Held() {
		p = &pace{free: now, moved: now}
		w.paces[a.Name] = p
	}
	if p.calls != a.Calls {
		p.calls, p.moved = a.Calls, now
	}
	p.most = max(p.most, a.Waiting)
}

// due returns by when an order should have gone on, zero if there is no telling.
// The account is nil if none serves its shop.
func (w *watchdog) due(o *consumer.UnderWay, a *upstream.AccountStatus) time.Time {
	if o.Trouble != "" {
		return o.TroubledSince.Add(w.grace)
	}
	switch o.Step {
	case consumer.StepGate:
		return time.Time{} // why the gate is closed is told elsewhere
	case consumer.StepTurn:
		if a == nil || a.Held() {
			return time.Time{}
		}
		// First come, first served: it has to wait for those before it, twice
		// that if others with their second attempts go first. But while orders
		// wait, calls must go on.
		p := w.paces[a.Name]
		queue := time.Duration(2 * float64(p.most) / a.Rate * float64(time.Second))
		served := latest(o.Since, p.free).Add(w.grace + queue)
		moving := latest(o.Since, p.free, p.moved).Add(w.grace)
		if served.Before(moving) {
			return served
		}
		return moving
	case consumer.StepRest, consumer.StepOther:
		return latest(o.Since, o.Until).Add(w.grace)
	default:
		return o.Since.Add(w.grace)
	}
}

func latest(times ...time.Time) time.Time {
	return slices.MaxFunc(times, func(a, b time.Time) int { return a.Compare(b) })
}

// report makes known which orders are overdue, and logs it when that is news:
// the first, another thing that they wait for, and the end of it.
func (w *watchdog) report(found []OverdueOrder) {
	w.overdue.Set(float64(len(found)))
	var kinds []string
	for i := range found {
		kinds = append(kinds, cmp.Or(found[i].Trouble, string(found[i].Step)))
	}
	slices.Sort(kinds)
	news := ""
	if kinds = slices.Compact(kinds); len(kinds) > 0 {
		news = kinds[0]
		for _, kind := range kinds[1:] {
			news += "; " + kind
		}
	}
	w.mu.Lock()
	before := w.logged
	w.found, w.logged = found, news
	w.mu.Unlock()
	switch news {
	case before:
	case "":
		w.log.Info("no order is overdue any more")
	default:
		o := &found[0]
		w.log.Warn("orders overdue although nothing holds them", "count", len(found), "waiting_for", news,
			"tid", o.TID, "partition", o.Partition, "offset", o.Offset, "since", o.Since)
	}
}

// list returns the orders that are overdue, the oldest first.
func (w *watchdog) list() []OverdueOrder {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.found
}
