package upstream

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"packship/schema"

	"github.com/sony/gobreaker/v2"
)

// shopFaultLimit refusals in a row park a shop.
const shopFaultLimit = 5

// adviceOnShop is what to do about a shop that is parked for them. What the
// table advises is for one order.
const adviceOnShop = "Five of its orders in a row were refused for that, so it is likely the shop: see whether shop_id is right and what its seller has set up, then unpark the shop."

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
	f.Charge = a.spend(t.packed.ShopID, f.Exchange)
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
	a.judgeAccount(t, &f, left)
	a.judgeShop(t, &f, left)
	if f.health == healthBad || f.health == healthShop {
		a.fault = faultOf(&x, &f)
	}
	a.over(t, a.verdict(t, f.health))
	// An attempt made while the API is known to be down says nothing against
	// its order, not even the one that closes the breaker.
	known := a.state != gobreaker.StateClosed || t.trial && f.health == healthShop
	f.Counted = f.Reached && f.Action != schema.ActHold && !known
	if !f.Answered && f.Reached {
		// Each of them may have been paid for and has to be followed up; the
		// breaker sees to it that they are few.
		a.note(a.logger.Warn, "call not answered", "tid", t.packed.TID, "http_status", x.status, "err", cmp.Or(x.err, errors.New(faultOf(&x, &f))))
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
		// The API is back, whatever ails this shop. Were the breaker left
		// half-open, this shop's orders would be tried over and over, and those
		// of others would wait behind them.
		if t.trial {
			return nil
		}
	case healthSilent:
	}
	return errExcluded
}

// judgeAccount halts the account, or ends its halt. The left time is when the
// call had left. Callers hold mu.
func (a *account) judgeAccount(t *Turn, f *finding, left time.Time) {
	switch {
	case f.halt != "":
		if t.epoch != a.epoch || t.probe.outdated(left) {
			return // it was sent with an old token, or before a repair
		}
		if a.halt == t.probe { // there is no halt, or it is the one that was tried
			a.haltFor(f.halt, f.Advice)
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

// maxFault bounds what others said in the words for a fault, in characters.
const maxFault = 200

// faultOf says in words what the API did.
func faultOf(x *exchange, f *finding) string {
	switch {
	case f.Exchange != nil && x.status == http.StatusOK:
		return fmt.Sprintf("code %d, %s", f.Exchange.Code, cut(f.Exchange.Msg, maxFault))
	case x.status == http.StatusOK:
		return "HTTP status 200, and no answer that could be read"
	case x.status != 0:
		return fmt.Sprintf("HTTP status %d", x.status)
	case errors.Is(x.err, errCallTimeout):
		return "calls are not answered in time"
	case x.err != nil:
		return "no answer, " + cut(x.err.Error(), maxFault)
	default:
		return "no answer"
	}
}

// faultWindow is how long a fault is remembered.
func (a *account) faultWindow() time.Duration { return max(10*a.cfg.Timeout, time.Minute) }

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
	reason, advice := f.park, f.Advice
	switch {
	case f.shopFault:
		if s == nil {
			s = &shop{}
			a.shops[id] = s
		}
		if s.faults++; s.faults >= shopFaultLimit && reason == "" {
			reason, advice = f.Reason, adviceOnShop
		}
	case f.health == healthGood, f.health == healthAlive && f.halt == "" && reason == "":
		if s != nil {
			s.faults = 0
		}
	}
	switch {
	case reason != "":
		if s == nil || s.hold == t.shopProbe && !t.shopProbe.outdated(left) { // it is not parked, or was tried
			a.park(id, reason, advice, f.url)
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

// breakerChanged is called by the breaker, under its own lock and mu.
func (a *account) breakerChanged(_ string, from, to gobreaker.State) {
	a.state = to
	if from == gobreaker.StateClosed {
		a.brokenSince = time.Now()
	}
	a.metrics.breaker.WithLabelValues(a.name).Set(float64(to))
	// An outage is news when it begins and when it is over, and not at every
	// call that tries the API.
	news := []any{"from", breakerName(from), "to", breakerName(to)}
	switch {
	case from == gobreaker.StateClosed:
		a.note(a.logger.Warn, "breaker changed", news...)
	case to == gobreaker.StateClosed:
		a.note(a.logger.Info, "breaker changed", append(news, "outage", time.Since(a.brokenSince))...)
	default:
		a.note(a.logger.Debug, "breaker changed", news...)
	}
	if to == gobreaker.StateOpen {
		a.openUntil = time.Now().Add(a.cfg.BreakerOpenFor)
		a.wake.Reset(a.cfg.BreakerOpenFor + time.Millisecond)
		a.revoke(func(*Turn) bool { return true })
	}
}

func breakerName(s gobreaker.State) string { return strings.ReplaceAll(s.String(), "-", "_") }
