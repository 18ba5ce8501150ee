package upstream

import (
	"context"
	"testing"
	"time"
)

// whenOf checks since when an account is held and when that ends by itself,
// counted from now; negative is never.
func whenOf(t *testing.T, since, until *time.Time, ago, in time.Duration) {
	t.Helper()
	if since == nil || time.Since(*since) != ago {
		t.Errorf("held since %v at %s, want since %s ago", since, time.Now(), ago)
	}
	switch {
	case in < 0 && until != nil:
		t.Errorf("it ends at %s, want at no known time", until)
	case in >= 0 && (until == nil || time.Until(*until) != in):
		t.Errorf("it ends at %v, now is %s, want in %s", until, time.Now(), in)
	}
}

// TestStatusSaysWhatEndsIt goes through what may hold an account, and checks
// that the status says when each of it ends.
func TestStatusSaysWhatEndsIt(t *testing.T) {
	inBubble(t, func(c *Config) { c.HaltProbe = 4 * time.Minute }, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		status := func() AccountStatus { return u.Accounts()[0] }
		if st := status(); st.Held() || st.Since != nil || st.Until != nil || st.Limit != 100000 {
			t.Errorf("idle: %+v", st)
		}
		a.script(unavailable)
		for i := range 5 {
			send(t, u, order(i+1))
		}
		time.Sleep(10 * time.Second)
		st := status()
		if !st.Held() || st.Probing {
			t.Errorf("breaker open: %+v", st)
		}
		whenOf(t, st.Since, st.Until, 10*time.Second, 20*time.Second)
		time.Sleep(20*time.Second + 2*time.Millisecond)
		st = status()
		if !st.Held() || !st.Probing || st.Breaker != "half_open" {
			t.Errorf("breaker half-open: %+v", st)
		}
		whenOf(t, st.Since, st.Until, 30*time.Second+2*time.Millisecond, -1)
		a.script(success)
		send(t, u, order(1))

		a.script("status 429")
		send(t, u, order(2))
		st = status()
		whenOf(t, st.Since, st.Until, 0, time.Second)
		if st.Rate >= st.Limit {
			t.Errorf("throttled, and the rate %g is not below the limit %g", st.Rate, st.Limit)
		}
		time.Sleep(2 * time.Second)

		a.script(tokenBad)
		send(t, u, order(3))
		time.Sleep(time.Minute)
		st = status()
		if !st.Held() || st.Probing {
			t.Errorf("halted: %+v", st)
		}
		whenOf(t, st.Since, st.Until, time.Minute, 3*time.Minute)
		u.Resume("default")
		st = status()
		if st.State != StateHalted || !st.Probing {
			t.Errorf("halted and resumed: %+v", st)
		}
		whenOf(t, st.Since, st.Until, time.Minute, -1)
		a.script(success)
		send(t, u, order(3))

		a.script(noShop)
		send(t, u, shopOrder("S9", 4))
		parked := u.ParkedShops()[0]
		whenOf(t, &parked.Since, parked.Until, 0, 4*time.Minute)
		u.Unpark("S9")
		if parked = u.ParkedShops()[0]; !parked.Probing || parked.Until != nil {
			t.Errorf("parked and unparked: %+v", parked)
		}

		time.Sleep(5 * time.Second)
		st = status()
		sent := 0
		for _, n := range st.Recent {
			sent += n
		}
		if sent != a.calls() {
			t.Errorf("%d calls on the time line of %d", sent, a.calls())
		}
	})
}

// TestAlive has the loop turn for an hour, end, and stand still.
func TestAlive(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u := b.t, b.u
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- u.Run(ctx) }()
		time.Sleep(time.Hour)
		if ok, why := u.Alive(); !ok {
			t.Errorf("not alive while it runs: %s", why)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		if ok, why := u.Alive(); !ok {
			t.Errorf("not alive after Run has ended: %s", why)
		}
		// A mutex that is never given back cannot be waited for in a bubble.
		u.turned.Store(time.Now().UnixNano())
		time.Sleep(aliveWithin)
		if ok, why := u.Alive(); !ok {
			t.Errorf("not alive in time: %s", why)
		}
		time.Sleep(time.Second)
		if ok, why := u.Alive(); ok || why == "" {
			t.Errorf("alive is %t, %q with a loop that stands still", ok, why)
		}
	})
}
