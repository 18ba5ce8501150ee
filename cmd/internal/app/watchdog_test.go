package app

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"packship/consumer"
	"packship/upstream"
)

// kennel is a watchdog and what it looks at.
type kennel struct {
	*watchdog

	log     recorder
	account upstream.AccountStatus
	orders  []consumer.UnderWay
}

// newKennel returns a watchdog whose grace is 50 s, and an account that sends 10
// a second.
func newKennel(t *testing.T) *kennel {
	t.Helper()
	c := newConnector(t, nil)
	k := &kennel{account: upstream.AccountStatus{Name: "default", State: upstream.StateSending, Rate: 10}}
	k.watchdog = newWatchdog(&c.settings, c.api, slog.New(slog.NewTextHandler(&k.log, nil)), prometheus.NewRegistry())
	if k.grace != 50*time.Second {
		t.Fatalf("grace %s, want 5 s to start, 15 s to be answered, 30 s to settle", k.grace)
	}
	return k
}

// watch looks once a second for some time.
func (k *kennel) watch(d time.Duration) {
	for end := time.Now().Add(d); ; time.Sleep(time.Second) {
		k.look(time.Now(), []upstream.AccountStatus{k.account}, func(cond func(*consumer.UnderWay) bool) (list []consumer.UnderWay) {
			for i := range k.orders {
				if cond(&k.orders[i]) {
					list = append(list, k.orders[i])
				}
			}
			return list
		})
		if !time.Now().Before(end) {
			return
		}
	}
}

// TestWatchdog lets an order stand in each of its steps, and looks when it
// becomes overdue.
func TestWatchdog(t *testing.T) {
	const grace = 50 * time.Second
	tests := map[string]struct {
		change func(*kennel, *consumer.UnderWay)
		due    time.Duration // from now; 0 is never
	}{
		"a call":          {func(_ *kennel, o *consumer.UnderWay) { o.Step = consumer.StepCall }, grace},
		"its publication": {func(_ *kennel, o *consumer.UnderWay) { o.Step = consumer.StepPublish }, grace},
		"a rest": {func(_ *kennel, o *consumer.UnderWay) {
			o.Step, o.Until = consumer.StepRest, time.Now().Add(30*time.Second)
		}, 30*time.Second + grace},
		"another's attempt": {func(_ *kennel, o *consumer.UnderWay) {
			o.Step, o.Until = consumer.StepOther, time.Now().Add(time.Minute)
		}, time.Minute + grace},
		"the gate": {func(_ *kennel, o *consumer.UnderWay) { o.Step = consumer.StepGate }, 0},
		"trouble, while it rests again and again": {func(_ *kennel, o *consumer.UnderWay) {
			o.Step, o.Until = consumer.StepRest, time.Now().Add(24*time.Hour)
			o.Trouble, o.TroubledSince = "too large", time.Now()
		}, grace},
		"its turn, and no call is made":       {func(*kennel, *consumer.UnderWay) {}, grace},
		"its turn, and the account is paused": {func(k *kennel, _ *consumer.UnderWay) { k.account.State = upstream.StatePaused }, 0},
		"its turn, and the account is halted": {func(k *kennel, _ *consumer.UnderWay) { k.account.State = upstream.StateHalted }, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKennel(t)
				o := consumer.UnderWay{TID: "1", ShopID: "s", Step: consumer.StepTurn, Since: time.Now()}
				tt.change(k, &o)
				k.orders = append(k.orders, o)
				if tt.due == 0 {
					k.watch(time.Hour)
					if n := len(k.list()); n != 0 {
						t.Errorf("%d orders are overdue after an hour, want none", n)
					}
					return
				}
				k.watch(tt.due)
				if n := len(k.list()); n != 0 {
					t.Fatalf("overdue within its time: %+v", k.list())
				}
				k.watch(2 * time.Second)
				if n := len(k.list()); n != 1 {
					t.Fatalf("%d orders are overdue, want 1", n)
				}
				if n := testutil.ToFloat64(k.overdue); n != 1 {
					t.Errorf("packship_orders_overdue is %g", n)
				}
				k.watch(time.Hour)
				k.orders = nil
				k.watch(time.Minute)
				if n := testutil.ToFloat64(k.overdue); n != 0 || len(k.list()) != 0 {
					t.Errorf("packship_orders_overdue is %g after the order has gone on", n)
				}
				if n := strings.Count(k.log.String(), "level=WARN"); n != 1 || strings.Count(k.log.String(), "no order is overdue any more") != 1 {
					t.Errorf("logged, and not once for each change:\n%s", k.log.String())
				}
			})
		})
	}
}

// TestWatchdogKnowsTheQueue has an order wait behind many others, which are
// called for one after the other: that is no fault. One that waits longer than
// all of them need is one.
func TestWatchdogKnowsTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKennel(t)
		k.account.Waiting = 6000 // ten minutes
		k.orders = []consumer.UnderWay{{TID: "1", Step: consumer.StepTurn, Since: time.Now()}}
		for range 19 * 60 {
			k.account.Waiting = max(1, k.account.Waiting-10)
			k.account.Calls += 10
			k.watch(time.Second)
		}
		if n := len(k.list()); n != 0 {
			t.Errorf("overdue although the queue moves: %+v", k.list())
		}
		for range 3 * 60 {
			k.account.Calls += 10
			k.watch(time.Second)
		}
		if n := len(k.list()); n != 1 {
			t.Errorf("%d orders are overdue, want the one that everybody overtakes", n)
		}
		// After a pause of the account it has all its time again.
		k.account.State = upstream.StatePaused
		k.watch(time.Second)
		k.account.State = upstream.StateSending
		k.watch(40 * time.Second)
		if n := len(k.list()); n != 0 {
			t.Errorf("overdue right after a pause: %+v", k.list())
		}
	})
}

// TestWatchdogIsWatched checks that a loop that stands still is noticed, and one
// that was never begun, or is over, is not taken for one.
func TestWatchdogIsWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConnector(t, nil)
		w := c.watchdog
		time.Sleep(time.Hour)
		if ok, why := c.alive(); !ok {
			t.Errorf("not alive before it runs: %s", why)
		}
		w.turned.Store(time.Now().UnixNano())
		time.Sleep(aliveWithin)
		if ok, why := c.alive(); !ok {
			t.Errorf("not alive in time: %s", why)
		}
		time.Sleep(time.Second)
		if ok, why := c.alive(); ok || why == "" {
			t.Errorf("alive is %t, %q with a watchdog that stands still", ok, why)
		}
	})
}
