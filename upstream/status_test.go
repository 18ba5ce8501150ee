package upstream

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"packship/schema"
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
		if !st.Held() || st.Probing || st.Fault != "code 202, 系统错误,请稍后再试" {
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
		if st = status(); st.Fault != "" {
			t.Errorf("breaker closed, and a fault is told: %+v", st)
		}

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
		if !st.Held() || st.Probing || st.Advice != adviceWithoutFile {
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

// adviceFor is what the table advises.
func adviceFor(reason string) string {
	for _, r := range answers.rows {
		if r.slug == reason {
			return r.advice
		}
	}
	return "no row has the reason " + reason
}

// TestStatusAdvises checks what a halted account says of what to do: the token of
// one that reads it from a file is put there, and that of another is not.
func TestStatusAdvises(t *testing.T) {
	for reason, answer := range map[string]string{"access_token_invalid": tokenBad, "call_quota_exhausted": quotaGone} {
		inBubble(t, nil, func(b bubble) {
			t, a := b.t, b.u.accounts[0]
			a.file = "token"
			b.api.script(answer)
			send(t, b.u, order(1))
			if st := a.status(); st.Reason != reason || st.Advice != adviceFor(reason) {
				t.Errorf("got %s: %q, want %s: %q", st.Reason, st.Advice, reason, adviceFor(reason))
			}
		})
	}
}

// TestFaultText checks the words for what the API does when it fails.
func TestFaultText(t *testing.T) {
	long := strings.Repeat("错", 2*maxFault)
	for want, tt := range map[string]struct {
		x exchange
		f finding
	}{
		"HTTP status 503": {x: exchange{reply: reply{status: 503}}},
		"HTTP status 500": {exchange{reply: reply{status: 500}}, finding{Answer: schema.Answer{Exchange: &schema.Exchange{HTTPStatus: 500, Code: 0, Msg: "成功"}}}},
		"code 202, 系统错误":  {exchange{reply: reply{status: 200}}, finding{Answer: schema.Answer{Exchange: &schema.Exchange{HTTPStatus: 200, Code: 202, Msg: "系统错误"}}}},
		"HTTP status 200, and no answer that could be read": {x: exchange{reply: reply{status: 200}}},
		"calls are not answered in time":                    {x: exchange{err: errCallTimeout}},
		"no answer, unexpected EOF":                         {x: exchange{err: io.ErrUnexpectedEOF}},
		"no answer":                                         {},
		"no answer, " + strings.Repeat("错", maxFault) + "…": {x: exchange{err: errors.New(long)}},
	} {
		if got := faultOf(&tt.x, &tt.f); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestAttainable has an API that is too slow for the rate.
func TestAttainable(t *testing.T) {
	inBubble(t, func(c *Config) { c.Accounts[0].RatePerSecond, c.MaxInFlight = 10, 8 }, func(b bubble) {
		for usual, want := range map[time.Duration]float64{0: 10, 100 * time.Millisecond: 10, 2 * time.Second: 4} {
			b.u.accounts[0].usual = usual
			if st := b.u.Accounts()[0]; st.Attainable != want || st.Rate != 10 {
				b.t.Errorf("calls that take %s: %g a second of %g, want %g", usual, st.Attainable, st.Rate, want)
			}
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
