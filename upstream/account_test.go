package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"packship/schema"
)

// api is a scripted API: the n-th call gets the n-th answer, and calls after
// the last one get that.
type api struct {
	mu      sync.Mutex
	answers []string // a body, or "status N", or "hang"
	delay   time.Duration
	shops   []string
	tokens  []string
	now     int // calls at present
	most    int
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	shop := r.FormValue("shop_id")
	a.mu.Lock()
	a.shops = append(a.shops, shop)
	a.tokens = append(a.tokens, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	n := min(len(a.shops), len(a.answers)) - 1
	answer := a.answers[n]
	a.now++
	a.most = max(a.most, a.now)
	delay := a.delay
	a.mu.Unlock()
	time.Sleep(delay)
	a.mu.Lock()
	a.now--
	a.mu.Unlock()
	var status int
	switch {
	case answer == "hang":
		time.Sleep(time.Minute)
	case func() bool { n, _ := fmt.Sscanf(answer, "status %d", &status); return n == 1 }():
		w.WriteHeader(status)
	default:
		_, _ = io.WriteString(w, answer)
	}
}

// script replaces the answers from now on.
func (a *api) script(answers ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answers = append(make([]string, len(a.shops)), answers...)
}

func (a *api) calls() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.shops)
}

var (
	waybillUsed = answerText(614, "您填写的运单号已被使用,不允许用此物流运单号发货")
	tokenBad    = answerText(401, "身份凭证无效")
	quotaGone   = answerText(204, "请求异常:API 调用次数不足,请前往网站兑换次数。")
	unavailable = answerText(202, "系统错误,请稍后再试")
	noShop      = `{"code":302,"msg":"未授权店铺","url":"https://auth.example/secret","data":[]}`
	notFound    = answerText(614, "物流订单不存在")
	platformBad = answerText(614, "系统异常")
	banned      = answerText(614, "This ban will last for 3 more seconds")
)

// logBuffer is a buffer that may be read while others write.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// bubble is what a test has that runs with a clock of its own.
type bubble struct {
	t   *testing.T
	u   *Upstream
	api *api
}

// inBubble runs a test with an Upstream, a scripted API, and a clock of its own.
func inBubble(t *testing.T, change func(*Config), test func(bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := &api{answers: []string{success}, delay: time.Second}
		u, stop := inMemory(t, change, a.ServeHTTP)
		defer stop()
		test(bubble{t, u, a})
	})
}

// sendLater admits and sends in the background.
func sendLater(t *testing.T, u *Upstream, p *schema.Packed) <-chan schema.Answer {
	t.Helper()
	done := make(chan schema.Answer, 1)
	go func() {
		turn, err := u.Admit(t.Context(), p, false)
		if err != nil {
			return
		}
		done <- turn.Send(t.Context(), schema.Hold{StartBy: time.Now().Add(time.Minute)})
	}()
	return done
}

func state(t *testing.T, u *Upstream, want, reason string) {
	t.Helper()
	if got := u.Accounts()[0]; got.State != want || got.Reason != reason {
		t.Errorf("account: got %s (%s), want %s (%s)", got.State, got.Reason, want, reason)
	}
}

// waiting fails the test unless nothing has come of the call yet.
func waiting(t *testing.T, what string, done <-chan schema.Answer) {
	t.Helper()
	synctest.Wait()
	select {
	case a := <-done:
		t.Errorf("%s: got an answer: %+v", what, a)
	default:
	}
}

func TestBreaker(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(unavailable)
		for i := range 5 {
			state(t, u, "idle", "")
			got := send(t, u, order(i+1))
			if got.Action != schema.ActRetry || got.MaxRetries != 3 || got.Effect != schema.EffectUnknown {
				t.Fatalf("call %d: got %+v", i+1, got)
			}
			if want := i < 4; got.Counted != want {
				t.Errorf("call %d: counted %t, want %t", i+1, got.Counted, want)
			}
		}
		state(t, u, "paused", "breaker_open")
		opened := time.Now()
		// Nothing is called until the pause is over; then one order tries.
		a.script(unavailable, success)
		first, second, third := sendLater(t, u, order(11)), sendLater(t, u, order(12)), sendLater(t, u, order(13))
		time.Sleep(29 * time.Second)
		waiting(t, "open breaker", first)
		if n := a.calls(); n != 5 {
			t.Errorf("calls while open: got %d", n-5)
		}
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		if n := a.calls(); n != 6 {
			t.Errorf("calls while half-open: got %d, want 1", n-5)
		}
		if got := u.Accounts()[0].Breaker; got != "half_open" {
			t.Errorf("breaker: got %s", got)
		}
		var failed schema.Answer
		select {
		case failed = <-first:
		case failed = <-second:
		case failed = <-third:
		}
		if failed.Counted || failed.Action != schema.ActRetry {
			t.Errorf("failed try: got %+v, want one that does not count", failed)
		}
		state(t, u, "paused", "breaker_open")
		time.Sleep(35 * time.Second)
		synctest.Wait()
		state(t, u, "idle", "")
		if n := a.calls(); n != 8 {
			t.Errorf("calls in the end: got %d, want 8", n)
		}
		if d := time.Since(opened); d < 60*time.Second {
			t.Errorf("took %s", d)
		}
	})
}

// 30 bad waybills in a row (case 22) and 401s are no faults of the API.
func TestBreakerIgnoresBusiness(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(waybillUsed)
		for i := range 30 {
			if got := send(t, u, order(i+1)); got.Action != schema.ActFail || !got.Counted || !got.Reached {
				t.Fatalf("got %+v", got)
			}
		}
		state(t, u, "idle", "")
		// Neither do they make up for faults.
		for i := range 5 {
			a.script(unavailable)
			send(t, u, order(100+i))
			if i < 4 {
				a.script(waybillUsed)
				send(t, u, order(200+i))
			}
		}
		state(t, u, "paused", "breaker_open")
		// But they show a half-open breaker that the API is back.
		a.script(waybillUsed)
		send(t, u, order(300))
		state(t, u, "idle", "")
	})
}

// Faults that one shop may be the reason for count once another shop sees them.
func TestBreakerNeedsTwoShopsForPlatformFaults(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(platformBad)
		for i := range 20 {
			got := send(t, u, shopOrder("S1", i+1))
			if got.Action != schema.ActRetry || got.MaxRetries != 1 || !got.Counted {
				t.Fatalf("got %+v", got)
			}
		}
		state(t, u, "idle", "")
		for i := range 5 {
			state(t, u, "idle", "")
			send(t, u, shopOrder(fmt.Sprintf("S%d", i%2+2), 100+i))
		}
		state(t, u, "paused", "breaker_open")
		time.Sleep(time.Minute)
		a.script(success)
		send(t, u, order(1))
		// What was long ago is forgotten.
		time.Sleep(2 * u.accounts[0].faultWindow())
		a.script(platformBad)
		for i := range 10 {
			send(t, u, shopOrder("S9", 200+i))
		}
		state(t, u, "idle", "")
	})
}

// Unanswered calls that were under way when the breaker opened do not count
// against their orders.
func TestBreakerAndCallsInFlight(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script("hang")
		var calls []<-chan schema.Answer
		for i := range 12 {
			calls = append(calls, sendLater(t, u, order(i+1)))
		}
		counted := 0
		for _, c := range calls {
			got := <-c
			if got.Effect != schema.EffectUnknown || got.Answered {
				t.Errorf("got %+v", got)
			}
			if got.Counted {
				counted++
			}
		}
		if counted != 4 {
			t.Errorf("%d attempts counted, want the 4 before the breaker opened", counted)
		}
	})
}

// The breaker's state is shown as it is, even if nobody waits to call.
func TestBreakerGauge(t *testing.T) {
	reg := prometheus.NewRegistry()
	inBubble(t, func(c *Config) { c.Registerer = reg }, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		gauge := func() float64 { return series(t, reg)[`packship_breaker_state{account="default"}`] }
		a.script("status 500")
		for i := range 5 {
			send(t, u, order(i+1))
		}
		if got := gauge(); got != 2 {
			t.Errorf("open: got %g", got)
		}
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if got := gauge(); got != 1 {
			t.Errorf("half-open: got %g", got)
		}
		a.script(success)
		send(t, u, order(9))
		if got := gauge(); got != 0 {
			t.Errorf("closed: got %g", got)
		}
	})
}

// A half-open breaker is not blocked by an order that is let in and then not
// sent (D2.4).
func TestBreakerTrialIsLeft(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script("status 500")
		for i := range 5 {
			send(t, u, order(i+1))
		}
		a.script(success)
		for range 3 {
			turn, err := u.Admit(t.Context(), order(9), false)
			if err != nil {
				t.Fatal(err)
			}
			if got := u.Accounts()[0].Breaker; got != "half_open" {
				t.Errorf("breaker: got %s", got)
			}
			turn.Leave()
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		turn, err := u.Admit(t.Context(), order(9), false)
		if err != nil {
			t.Fatal(err)
		}
		if got := turn.Send(ended, schema.Hold{}); got.Reason != "not_sent" {
			t.Errorf("got %+v", got)
		}
		if got := send(t, u, order(9)); got.Action != schema.ActSucceed {
			t.Errorf("got %+v", got)
		}
		state(t, u, "idle", "")
	})
}

// A fault that may be one shop's own is an answer all the same: the API is back.
// The breaker closes, and only from then on the fault counts against its order.
func TestTrialMeetsTheFaultOfAShop(t *testing.T) {
	down := func(b bubble) {
		b.api.script("status 500")
		for i := range 5 {
			send(b.t, b.u, order(i+1))
		}
		b.api.script(platformBad)
	}
	breaker := func(b bubble, want string) {
		b.t.Helper()
		if got := b.u.Accounts()[0].Breaker; got != want {
			b.t.Errorf("breaker: got %s, want %s", got, want)
		}
	}
	inBubble(t, nil, func(b bubble) {
		down(b)
		for _, counted := range []bool{false, true, true} {
			if got := send(b.t, b.u, order(9)); got.Counted != counted {
				b.t.Errorf("got %+v, want counted: %t", got, counted)
			}
			breaker(b, "closed")
		}
	})
	inBubble(t, nil, func(b bubble) {
		down(b)
		send(b.t, b.u, shopOrder("S1", 9))
		for i := range 5 {
			send(b.t, b.u, shopOrder("S2", 10+i))
		}
		breaker(b, "open") // it is not one shop alone
		if got := send(b.t, b.u, shopOrder("S1", 20)); got.Counted {
			b.t.Errorf("a second shop's fault: got %+v, want one that does not count", got)
		}
		breaker(b, "open")
	})
}

// An outage is told when it begins and when it is over, however long it lasts.
func TestBreakerLog(t *testing.T) {
	var logs logBuffer
	inBubble(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&logs, nil))
	}, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script("status 500")
		began := time.Now()
		for i := range 5 {
			send(t, u, order(i+1))
		}
		for i := range 20 {
			send(t, u, order(i+6)) // tries the API
		}
		a.script(success)
		send(t, u, order(99))
		if took := time.Since(began); took < 10*time.Minute {
			t.Fatalf("the outage took only %s", took)
		}
	})
	var got []string
	for line := range strings.Lines(logs.String()) {
		if _, change, found := strings.Cut(strings.TrimSpace(line), "level="); found && strings.Contains(line, "breaker changed") {
			change, _, _ = strings.Cut(change, " outage=1") // ten minutes and something
			got = append(got, change)
		}
	}
	if d := cmp.Diff([]string{
		`WARN msg="breaker changed" account=default from=closed to=open`,
		`INFO msg="breaker changed" account=default from=half_open to=closed`,
	}, got); d != "" {
		t.Errorf("lines of the breaker (-want +got):\n%s", d)
	}
}

// A call without an answer is told with the reason, whatever it is. One that the
// API says it has not taken is none: nothing was paid for it, and what it means
// for the account is told.
func TestUnansweredLog(t *testing.T) {
	for answer, want := range map[string]string{
		"status 503": `http_status=503 err="HTTP status 503"`,
		"<html>":     `http_status=200 err="HTTP status 200, and no answer that could be read"`,
		"hang":       `http_status=0 err="upstream: the call took too long"`,
		"status 429": "",
		"status 302": "",
		"status 401": "",
	} {
		var logs logBuffer
		inBubble(t, func(c *Config) {
			c.Logger = slog.New(slog.NewTextHandler(&logs, nil))
		}, func(b bubble) {
			b.api.script(answer)
			send(b.t, b.u, order(1))
		})
		var got string
		for line := range strings.Lines(logs.String()) {
			if _, rest, found := strings.Cut(line, `msg="call not answered" account=default tid=1 `); found {
				got += strings.TrimSpace(rest)
			}
		}
		if got != want {
			t.Errorf("%s: logged %q, want %q, of\n%s", answer, got, want, logs.String())
		}
	}
}

// A quota that runs out (case 5): nothing is called any more but one order
// after a top-up, and nothing fails.
func TestHaltAndResume(t *testing.T) {
	inBubble(t, func(c *Config) { c.Accounts[0].RatePerSecond = 10 }, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(success, success, quotaGone)
		var mu sync.Mutex
		var shipped, held int
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				for {
					turn, err := u.Admit(ctx, order(i+1), false)
					if err != nil {
						return
					}
					got := turn.Send(ctx, schema.Hold{StartBy: time.Now().Add(time.Minute)})
					mu.Lock()
					switch got.Action {
					case schema.ActSucceed:
						shipped++
						mu.Unlock()
						return
					case schema.ActHold:
						held++
						if got.Reached || got.Counted || got.Effect != schema.EffectNone {
							t.Errorf("held: got %+v", got)
						}
					default:
						t.Errorf("got %+v", got)
					}
					mu.Unlock()
				}
			})
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		state(t, u, "halted", "call_quota_exhausted")
		n := a.calls()
		if n > 3+11 { // those that had left before the first answer came
			t.Errorf("%d calls", n)
		}
		if shipped != 2 {
			t.Errorf("shipped %d, want 2", shipped)
		}
		// Nothing helps before the top-up, and each try costs one call.
		if !u.Resume("default") || u.Resume("other") {
			t.Error("resume knows the wrong accounts")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := a.calls() - n; got != 1 {
			t.Errorf("calls after a resume in vain: got %d, want 1", got)
		}
		state(t, u, "halted", "call_quota_exhausted")
		a.script(success)
		n = a.calls()
		u.Resume("default")
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		if got := a.calls() - n; got != 1 {
			t.Errorf("calls before the probe is answered: got %d, want 1", got)
		}
		time.Sleep(time.Minute)
		wg.Wait()
		cancel()
		if shipped != 50 {
			t.Errorf("shipped %d, want 50", shipped)
		}
		state(t, u, "idle", "")
	})
}

// A halted account tries one order by itself after a long while.
func TestHaltProbesByItself(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script("status 403")
		send(t, u, order(1))
		state(t, u, "halted", "access_token_invalid")
		since := *u.Accounts()[0].Since
		a.script("status 405", success)
		start := time.Now()
		got := send(t, u, order(2))
		if d := time.Since(start); got.Action != schema.ActHold || d < 10*time.Minute || d > 11*time.Minute {
			t.Errorf("first try after %s: %+v", d, got)
		}
		state(t, u, "halted", "bad_path_or_method")
		if got := *u.Accounts()[0].Since; !got.Equal(since) {
			t.Errorf("halted since %s, want still %s", got, since)
		}
		start = time.Now()
		got = send(t, u, order(2))
		if d := time.Since(start); got.Action != schema.ActSucceed || d < 10*time.Minute || d > 11*time.Minute {
			t.Errorf("second try after %s: %+v", d, got)
		}
		state(t, u, "idle", "")
	})
}

// A probe that gets no answer says nothing of the account: the next order
// tries.
func TestHaltProbeWithoutAnswer(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(tokenBad, "hang", "status 429", unavailable, waybillUsed, success)
		send(t, u, order(1))
		u.Resume("default")
		for i, want := range []schema.Action{schema.ActRetry, schema.ActHold, schema.ActRetry, schema.ActFail} {
			state(t, u, "halted", "access_token_invalid")
			if got := send(t, u, order(i+2)); got.Action != want {
				t.Errorf("try %d: got %+v", i+1, got)
			}
		}
		state(t, u, "idle", "") // a waybill that is refused was looked at
		if got := send(t, u, order(9)); got.Action != schema.ActSucceed {
			t.Errorf("got %+v", got)
		}
	})
}

// A probe that is not used does not use up the permission to probe.
func TestHaltProbeIsLeft(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(tokenBad, success)
		send(t, u, order(1))
		u.Resume("default")
		turn, err := u.Admit(t.Context(), order(2), false)
		if err != nil {
			t.Fatal(err)
		}
		other := sendLater(t, u, order(3))
		waiting(t, "second probe", other)
		turn.Leave()
		if got := <-other; got.Action != schema.ActSucceed {
			t.Errorf("got %+v", got)
		}
	})
}

// Eight calls in flight meet a displaced token (case 7). A new token in the file
// lets one order try; the old token's answers that come late halt nothing.
func TestNewToken(t *testing.T) {
	dir := t.TempDir()
	// Kubernetes mounts a secret as a link to a link, and swaps the inner one.
	write := func(version, token string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, version, "token"), []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		tmp := filepath.Join(dir, "tmp")
		if err := os.Symlink(version, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	write("v1", "old\n")
	file := filepath.Join(dir, "token")
	if err := os.Symlink(filepath.Join("..data", "token"), file); err != nil {
		t.Fatal(err)
	}
	var logs logBuffer
	inBubble(t, func(c *Config) {
		c.Accounts[0].Token, c.Accounts[0].TokenFile = "", file
		c.BreakerFailures = 100 // more than the calls whose answers come late
		c.Logger = slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = u.Run(ctx) })
		defer wg.Wait()
		defer cancel()

		a.script(tokenBad)
		a.delay = 10 * time.Second
		u.cfg.Timeout = time.Minute
		var calls []<-chan schema.Answer
		for i := range 8 {
			calls = append(calls, sendLater(t, u, order(i+1)))
			time.Sleep(time.Second)
		}
		time.Sleep(4 * time.Second) // the first is answered now, the last are not
		synctest.Wait()
		state(t, u, "halted", "access_token_invalid")
		a.script(success)
		write("v2", "new")
		probe := sendLater(t, u, order(100))
		rest := sendLater(t, u, order(101))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if n := a.calls(); n != 9 {
			t.Errorf("calls 5s after the new token: got %d, want one more than 8", n)
		}
		for _, c := range calls {
			if got := <-c; got.Action != schema.ActHold || got.Reached {
				t.Errorf("got %+v", got)
			}
		}
		for _, c := range []<-chan schema.Answer{probe, rest} {
			if got := <-c; got.Action != schema.ActSucceed {
				t.Errorf("after the new token: got %+v", got)
			}
		}
		state(t, u, "idle", "")
		want := append(slices.Repeat([]string{"old"}, 8), "new", "new")
		if d := cmp.Diff(want, a.tokens); d != "" {
			t.Errorf("tokens (-want +got):\n%s", d)
		}

		// A file that is gone or nonsense changes nothing, and is said once.
		if err := os.Remove(filepath.Join(dir, "v2", "token")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := strings.Count(logs.String(), "token file not usable"); n != 1 {
			t.Errorf("complaints about the token file: got %d, want 1", n)
		}
		send(t, u, order(102))
		if got := a.tokens[len(a.tokens)-1]; got != "new" {
			t.Errorf("token: got %q", got)
		}

		// When the API refuses the token, that the file which should bring a
		// new one cannot be used stands with what to do, as long as it is so.
		a.script(tokenBad)
		held := sendLater(t, u, order(103))
		time.Sleep(time.Minute)
		if got := <-held; got.Action != schema.ActHold {
			t.Errorf("with a dead token: got %+v", got)
		}
		const trouble = "Put a good one into the token file; the account then goes on by itself. As it is, that file cannot be used: token file cannot be read: "
		if st := u.Accounts()[0]; !strings.Contains(st.Advice, trouble) || strings.HasSuffix(st.Advice, "..") {
			t.Errorf("advice %q, want one with %q", st.Advice, trouble)
		}
		write("v3", "new")
		time.Sleep(time.Minute)
		if st := u.Accounts()[0]; st.State != StateHalted || strings.Contains(st.Advice, "cannot be used") {
			t.Errorf("with a file that can be used: %s, advice %q", st.State, st.Advice)
		}
	})
	if text := logs.String(); strings.Contains(text, "old") || strings.Contains(text, "=new") {
		t.Errorf("a token is in the log:\n%s", text)
	}
}

// An answer to a call that left before the account was resumed halts nothing.
func TestLateHaltIsNoNews(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(quotaGone)
		a.delay = 4 * time.Second
		early := sendLater(t, u, order(1))
		time.Sleep(2 * time.Second)
		late := sendLater(t, u, order(2))
		<-early
		u.Resume("default")
		a.mu.Lock()
		a.delay = time.Second
		a.mu.Unlock()
		a.script(success)
		if got := send(t, u, order(3)); got.Action != schema.ActSucceed {
			t.Errorf("probe: got %+v", got)
		}
		if got := <-late; got.Action != schema.ActHold {
			t.Errorf("late call: got %+v", got)
		}
		state(t, u, "idle", "")
	})
}

// Neither does it take back the permission to try.
func TestLateHaltKeepsTheProbe(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(quotaGone)
		early := sendLater(t, u, order(1))
		time.Sleep(500 * time.Millisecond)
		late := sendLater(t, u, order(2))
		<-early
		u.Resume("default")
		a.script(success)
		<-late
		start := time.Now()
		if got := send(t, u, order(3)); got.Action != schema.ActSucceed || time.Since(start) > 2*time.Second {
			t.Errorf("got %+v after %s", got, time.Since(start))
		}
	})
}

// A shop that is not authorised is parked after one call; the others go on
// (case 6).
func TestPark(t *testing.T) {
	var logs logBuffer
	inBubble(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
		c.Accounts[0].Shops = []string{"S2"}
	}, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(noShop, success)
		got := send(t, u, shopOrder("S1", 1))
		if got.Action != schema.ActHold || got.Reached || got.Counted || got.Reason != "shop_not_authorized" {
			t.Errorf("got %+v", got)
		}
		parked := time.Now()
		var first, second <-chan schema.Answer
		first = sendLater(t, u, shopOrder("S1", 1))
		synctest.Wait()
		second = sendLater(t, u, shopOrder("S1", 2))
		for i := range 5 {
			if got := send(t, u, shopOrder("S2", i+1)); got.Action != schema.ActSucceed {
				t.Errorf("other shop: got %+v", got)
			}
		}
		waiting(t, "parked shop", first)
		want := []ParkedShop{{
			ShopID: "S1", Account: "default", Reason: "shop_not_authorized", Advice: adviceFor("shop_not_authorized"), Since: parked, Waiting: 2, URL: "https://auth.example/secret",
		}}
		if d := cmp.Diff(want, u.ParkedShops(), cmpopts.EquateApproxTime(time.Second), cmpopts.IgnoreFields(ParkedShop{}, "Until")); d != "" {
			t.Errorf("parked (-want +got):\n%s", d)
		}
		if st := u.Accounts()[0]; st.State != "idle" || st.Waiting != 2 {
			t.Errorf("account: got %+v", st)
		}

		// Nothing helps before the seller authorises the shop.
		n := a.calls()
		a.script(noShop)
		if !u.Unpark("S1") || !u.Unpark("S2") || u.Unpark("S3") {
			t.Error("unpark knows the wrong shops")
		}
		if got := <-first; got.Action != schema.ActHold {
			t.Errorf("probe in vain: got %+v", got)
		}
		first = sendLater(t, u, shopOrder("S1", 1))
		time.Sleep(time.Minute)
		waiting(t, "parked shop", second)
		if got := a.calls() - n; got != 1 {
			t.Errorf("calls of the probe: got %d, want 1", got)
		}
		a.script(success)
		u.Unpark("S1")
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		if got := a.calls() - n; got != 2 {
			t.Errorf("calls before the probe is answered: got %d, want 1", got-1)
		}
		for _, c := range []<-chan schema.Answer{first, second} {
			if got := <-c; got.Action != schema.ActSucceed {
				t.Errorf("got %+v", got)
			}
		}
		if got := u.ParkedShops(); len(got) != 0 {
			t.Errorf("still parked: %+v", got)
		}
		if len(u.accounts[0].shops) != 0 {
			t.Errorf("the shop is still remembered")
		}
	})
	if text := logs.String(); strings.Contains(text, "secret") {
		t.Errorf("the link is in the log:\n%s", text)
	}
}

func TestParkProbesByItself(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(answerText(614, "没有用户 ID"), success)
		got := send(t, u, order(1))
		if got.Action != schema.ActHold || !got.Reached || got.Counted {
			t.Errorf("got %+v", got)
		}
		start := time.Now()
		if got := send(t, u, order(1)); got.Action != schema.ActSucceed {
			t.Errorf("got %+v", got)
		}
		if d := time.Since(start); d < 10*time.Minute || d > 11*time.Minute {
			t.Errorf("tried after %s", d)
		}
	})
}

// Five refusals in a row that are likely the shop's park it.
func TestParkAfterShopFaults(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(notFound)
		tid := 0
		fail := func(n int) {
			t.Helper()
			for range n {
				tid++
				if got := send(t, u, order(tid)); got.Action != schema.ActFail || !got.Counted {
					t.Errorf("got %+v", got)
				}
			}
		}
		fail(4)
		a.script(waybillUsed, notFound) // the shop exists, after all
		fail(5)
		if got := u.ParkedShops(); len(got) != 0 {
			t.Fatalf("parked: %+v", got)
		}
		a.script(unavailable, notFound) // no answer of the platform: not a word on the shop
		send(t, u, order(99))
		fail(1)
		want := []ParkedShop{{ShopID: "S1", Account: "default", Reason: "logistics_order_not_found", Advice: adviceOnShop}}
		if d := cmp.Diff(want, u.ParkedShops(), cmpopts.IgnoreFields(ParkedShop{}, "Since", "Until")); d != "" {
			t.Fatalf("parked (-want +got):\n%s", d)
		}
		n := a.calls()
		u.Unpark("S1")
		fail(1) // the probe meets the same: its own order fails, the others wait
		later := sendLater(t, u, order(100))
		time.Sleep(time.Minute)
		waiting(t, "parked shop", later)
		if got := a.calls() - n; got != 1 {
			t.Errorf("calls: got %d, want 1", got)
		}
		a.script(success)
		u.Unpark("S1")
		if got := <-later; got.Action != schema.ActSucceed {
			t.Errorf("got %+v", got)
		}
		if got := u.ParkedShops(); len(got) != 0 {
			t.Errorf("parked: %+v", got)
		}
	})
}

func TestParkWithoutDefaultAddress(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(answerText(614, "地址库不存在或该地址库不属于当前用户"))
		if got := send(t, u, order(1)); got.Action != schema.ActHold || !got.Reached {
			t.Errorf("got %+v", got)
		}
		if got := u.ParkedShops(); len(got) != 1 || got[0].Reason != "address_book_entry_invalid" {
			t.Errorf("parked: %+v", got)
		}
		p := shopOrder("S2", 2)
		p.SenderID = "1"
		if got := send(t, u, p); got.Action != schema.ActFail {
			t.Errorf("got %+v", got)
		}
	})
}

// A shop and its account are held at once: the account's probe may not be an
// order of the parked shop.
func TestHaltAndPark(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(noShop, quotaGone)
		send(t, u, shopOrder("S1", 1))
		send(t, u, shopOrder("S2", 1))
		parked := sendLater(t, u, shopOrder("S1", 1))
		synctest.Wait()
		other := sendLater(t, u, shopOrder("S2", 1))
		a.script(success)
		u.Resume("default")
		if got := <-other; got.Action != schema.ActSucceed {
			t.Errorf("got %+v", got)
		}
		waiting(t, "parked shop", parked)
		state(t, u, "idle", "")
		u.Unpark("S1")
		if got := <-parked; got.Action != schema.ActSucceed {
			t.Errorf("got %+v", got)
		}
	})
}

// A throttled account pauses and goes on more slowly; the breaker stays closed
// and nothing counts (case 4).
func TestThrottle(t *testing.T) {
	inBubble(t, func(c *Config) { c.Accounts[0].RatePerSecond, c.RateJitter = 10, testJitter }, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		for _, tt := range []struct {
			answer string
			pause  time.Duration
		}{{"status 429", time.Second}, {banned, 4 * time.Second}} {
			before := u.Accounts()[0]
			a.script(tt.answer, success)
			start := time.Now()
			got := send(t, u, order(1))
			if got.Action != schema.ActHold || got.Wait != min(tt.pause, time.Second) || got.Reached || got.Counted || got.Effect != schema.EffectNone {
				t.Errorf("got %+v", got)
			}
			state(t, u, "paused", "throttled")
			if got := send(t, u, order(1)); got.Action != schema.ActSucceed {
				t.Errorf("got %+v", got)
			}
			if d := time.Since(start); d != tt.pause+2*time.Second {
				t.Errorf("the second call was answered after %s, want a pause of %s between two calls of 1s", d, tt.pause)
			}
			after := u.Accounts()[0]
			if after.Breaker != "closed" || after.Rate >= before.Rate {
				t.Errorf("got %+v after %+v", after, before)
			}
		}
	})
}

// An operator who ends a pause ends it for the order that brought it, too.
func TestResumeLetsTheThrottledOrderGo(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(answerText(614, "This ban will last for 3000 more seconds"), success)
		start := time.Now()
		got := send(t, u, order(1))
		if got.Action != schema.ActHold || got.Wait != time.Second {
			t.Errorf("got %+v, want an order that rests for a moment", got)
		}
		again := sendLater(t, u, order(1))
		time.Sleep(time.Minute)
		waiting(t, "the pause", again)
		u.Resume("default")
		synctest.Wait()
		if got := <-again; got.Action != schema.ActSucceed {
			t.Errorf("got %+v", got)
		}
		if d := time.Since(start); d > 63*time.Second {
			t.Errorf("took %s", d)
		}
	})
}

// An order whose context ends at the very moment of its turn gives that back.
func TestWithdrawnTurnIsOver(t *testing.T) {
	u := newUpstream(t, testConfig("http://127.0.0.1:1/"))
	a := u.accounts[0]
	w := &waiter{packed: order(1), granted: make(chan *Turn, 1)}
	a.enqueue(w)
	if len(w.granted) != 1 {
		t.Fatal("no turn")
	}
	a.withdraw(w)
	if a.busy != 0 || len(a.unsent) != 0 {
		t.Errorf("busy %d, unsent %d", a.busy, len(a.unsent))
	}
}

// A turn that was taken back is over once it is used, also if it is not left.
func TestRevokedTurnIsOver(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		turn, err := u.Admit(t.Context(), order(1), false)
		if err != nil {
			t.Fatal(err)
		}
		a.script(tokenBad)
		send(t, u, order(2))
		if got := turn.Send(t.Context(), schema.Hold{}); got.Reason != "not_sent" || a.calls() != 1 {
			t.Errorf("got %+v after %d calls", got, a.calls())
		}
		acc := u.accounts[0]
		acc.mu.Lock()
		defer acc.mu.Unlock()
		if acc.busy != 0 || len(acc.unsent) != 0 {
			t.Errorf("busy %d, unsent %d", acc.busy, len(acc.unsent))
		}
	})
}

// Nobody is let in before those who came earlier.
func TestAdmitIsFair(t *testing.T) {
	inBubble(t, func(c *Config) { c.Accounts[0].RatePerSecond = 10 }, func(b bubble) {
		t, u := b.t, b.u
		granted := make([]time.Time, 60)
		var wg sync.WaitGroup
		for i := range granted {
			wg.Go(func() {
				turn, err := u.Admit(t.Context(), shopOrder(fmt.Sprintf("S%d", i%3), i+1), false)
				if err != nil {
					t.Error(err)
					return
				}
				granted[i] = turn.granted
				turn.Send(t.Context(), schema.Hold{})
			})
			synctest.Wait()
		}
		wg.Wait()
		if !slices.IsSortedFunc(granted, time.Time.Compare) {
			t.Errorf("let in at %v", granted)
		}
		if d := granted[59].Sub(granted[0]); d < 5*time.Second {
			t.Errorf("60 orders at 10/s were let in within %s", d)
		}
	})
}

func TestAdmitEndsWithItsContext(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(noShop, quotaGone)
		send(t, u, shopOrder("S1", 1))
		send(t, u, shopOrder("S2", 1))
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error, 40)
		for i := range 40 {
			go func() {
				_, err := u.Admit(ctx, shopOrder(fmt.Sprintf("S%d", i%2+1), i), false)
				errs <- err
			}()
		}
		synctest.Wait()
		cancel()
		for range 40 {
			if err := <-errs; err == nil || !strings.Contains(err.Error(), "context canceled") {
				t.Errorf("got %v", err)
			}
		}
		if _, err := u.Admit(ctx, order(1), false); err == nil {
			t.Error("admitted with a context that has ended")
		}
		acc := u.accounts[0]
		acc.mu.Lock()
		defer acc.mu.Unlock()
		if acc.queue.Len() != 0 || len(acc.shops["S1"].waiting) != 0 || acc.busy != 0 {
			t.Errorf("queue %d, parked %d, busy %d", acc.queue.Len(), len(acc.shops["S1"].waiting), acc.busy)
		}
	})
}

// Whatever happens, in the end nothing is left over and every order was served.
func TestStorm(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	inBubble(t, func(c *Config) {
		c.Accounts[0].RatePerSecond, c.RateJitter = 50, testJitter
		c.HaltProbe, c.BreakerOpenFor, c.MaxInFlight = 20*time.Second, 5*time.Second, 20
		c.Timeout = 3 * time.Second
	}, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		rng := rand.New(rand.NewPCG(seed, 0))
		var mu sync.Mutex
		pick := func(n int) int {
			mu.Lock()
			defer mu.Unlock()
			return rng.IntN(n)
		}
		kinds := []string{
			success, success, success, success, success, success, waybillUsed, tokenBad, quotaGone, unavailable, noShop, notFound, platformBad,
			banned, "hang", "status 429", "status 500", "status 404", "<html>",
		}
		var script []string
		for range 4000 {
			script = append(script, kinds[pick(len(kinds))])
		}
		a.script(append(script, success)...)
		a.delay = 300 * time.Millisecond
		stop := make(chan struct{})
		var wg, helpers sync.WaitGroup
		helpers.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(pick(10)+1) * time.Second):
					u.Resume("default")
					u.Unpark(fmt.Sprintf("S%d", pick(5)))
					u.Accounts()
					u.ParkedShops()
				}
			}
		})
		for i := range 400 {
			wg.Go(func() {
				for {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(pick(60)+1)*time.Second)
					turn, err := u.Admit(ctx, shopOrder(fmt.Sprintf("S%d", i%5), i+1), false)
					if err != nil {
						cancel()
						continue
					}
					time.Sleep(time.Duration(pick(50)) * time.Millisecond)
					if pick(10) == 0 {
						turn.Leave()
						cancel()
						continue
					}
					if pick(20) == 0 {
						cancel()
					}
					got := turn.Send(ctx, schema.Hold{StartBy: time.Now().Add(time.Duration(pick(3000)) * time.Millisecond)})
					turn.Leave()
					cancel()
					if got.Action == schema.ActSucceed || got.Action == schema.ActFail {
						return
					}
				}
			})
		}
		wg.Wait()
		close(stop)
		helpers.Wait()
		acc := u.accounts[0]
		acc.mu.Lock()
		defer acc.mu.Unlock()
		if acc.busy != 0 || acc.inFlight != 0 || len(acc.unsent) != 0 || acc.queue.Len() != 0 || acc.onTrial || len(acc.pacer.line) != 0 {
			t.Errorf("left over: busy %d, in flight %d, unsent %d, queue %d, trial %t, line %d",
				acc.busy, acc.inFlight, len(acc.unsent), acc.queue.Len(), acc.onTrial, len(acc.pacer.line))
		}
		if a.most > 20 {
			t.Errorf("%d calls at once, the limit is 20", a.most)
		}
		t.Logf("%d calls for 400 orders, at most %d at once", len(a.shops), a.most)
	})
}

func TestAccountsOfShops(t *testing.T) {
	two := func(c *Config) {
		c.Accounts = []Account{
			{Name: "north", Token: "n", RatePerSecond: 100, Shops: []string{"S1"}},
			{Name: "default", Token: "d", RatePerSecond: 100},
		}
	}
	named := func(c *Config) { two(c); c.Accounts[1].Name, c.Accounts[1].Shops = "south", []string{"S2"} }
	for name, tt := range map[string]struct {
		change  func(*Config)
		unknown UnknownShop
		want    map[string]string // shop to account, or to what becomes of it
	}{
		"default account": {two, UnknownDefault, map[string]string{"S1": "north", "S9": "default"}},
		"fail":            {two, UnknownFail, map[string]string{"S1": "north", "S9": "V02"}},
		"skip":            {two, UnknownSkip, map[string]string{"S1": "north", "S9": "skip"}},
		"no default":      {named, UnknownDefault, map[string]string{"S1": "north", "S2": "south", "S9": "V02"}},
		"one account":     {func(c *Config) { c.Accounts[0].Name = "only" }, "", map[string]string{"S1": "only"}},
		"one that fails":  {func(c *Config) { c.Accounts[0].Shops = []string{"S1"} }, UnknownFail, map[string]string{"S1": "default", "S9": "V02"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig("http://api.test/")
			tt.change(&cfg)
			cfg.UnknownShop = tt.unknown
			u := newUpstream(t, cfg)
			got := map[string]string{}
			for shop := range tt.want {
				p := shopOrder(shop, 1)
				a := u.accountOf(shop)
				broken := u.Validate(p)
				switch {
				case !u.Serves(p):
					got[shop] = "skip"
				case len(broken) > 0:
					got[shop] = broken[0].Rule
				default:
					got[shop] = a.name
				}
				if _, err := u.Admit(t.Context(), p, false); (err == nil) != (a != nil) {
					t.Errorf("admit %s: %v", shop, err)
				}
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// One dead account does not slow the others down (F49).
func TestAccountsAreApart(t *testing.T) {
	inBubble(t, func(c *Config) {
		c.Accounts = []Account{
			{Name: "dead", Token: "dead", RatePerSecond: 10, Shops: []string{"D"}},
			{Name: "live", Token: "live", RatePerSecond: 10, Shops: []string{"L"}},
		}
		c.RateJitter = testJitter
	}, func(b bubble) {
		t, u := b.t, b.u
		halt(u.accounts[0])
		held := sendLater(t, u, shopOrder("D", 1))
		load(t, u, 40, 30*time.Second, func(int) string { return "L" })
		waiting(t, "halted account", held)
		if got := u.Accounts(); got[0].Calls != 0 || got[1].Calls < 290 {
			t.Errorf("got %+v", got)
		}
		u.Resume("dead")
		<-held
	})
}

func TestSpending(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(success, `{"code":0,"data":[{"success":false,"withholding_money":3}]}`, waybillUsed, "hang")
		var charged []schema.Charge
		for i, shop := range []string{"S1", "S2", "S1", "S1"} { // the second is case 3: refused and charged
			charged = append(charged, send(t, u, shopOrder(shop, i+1)).Charge)
		}
		if d := cmp.Diff([]schema.Charge{{Account: "default", Points: 1}, {Account: "default", Points: 3}, {Account: "default"}, {Account: "default"}}, charged); d != "" {
			t.Errorf("charged (-want +got):\n%s", d)
		}
		want := []Spending{
			{Account: "default", ShopID: "S1", Calls: 3, Charged: 1, Points: 1},
			{Account: "default", ShopID: "S2", Calls: 1, Charged: 1, Points: 3},
		}
		if d := cmp.Diff(want, u.Spending()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		if got := u.Accounts()[0]; got.Calls != 4 || got.Charged != 2 || got.Spent != 4 {
			t.Errorf("account: got %+v", got)
		}
	})
}

func TestBackoff(t *testing.T) {
	u := newUpstream(t, testConfig("http://api.test/"))
	for n, most := range map[int]time.Duration{-1: time.Second, 1: time.Second, 2: 2 * time.Second, 3: 4 * time.Second, 6: 30 * time.Second, 1 << 40: 30 * time.Second} {
		for range 100 {
			if got := u.Backoff(n); got < most/2 || got > most {
				t.Errorf("retry %d: got %s, want %s to %s", n, got, most/2, most)
			}
		}
	}
}

func TestStatusJSON(t *testing.T) {
	u := newUpstream(t, testConfig("http://api.test/"))
	halt(u.accounts[0])
	parkShop(u.accounts[0], "S1")
	idle := newUpstream(t, testConfig("http://api.test/"))
	for name, tt := range map[string]struct {
		value any
		keys  []string
	}{
		"account": {u.Accounts()[0], []string{"name", "state", "reason", "breaker", "rate", "in_flight", "calls", "spent"}},
		"idle":    {idle.Accounts()[0], []string{"name", "state", "reason", "breaker", "rate", "in_flight", "calls", "spent"}},
		"shop":    {u.ParkedShops()[0], []string{"shop_id", "account", "reason", "since"}},
	} {
		raw, err := json.Marshal(tt.value)
		if err != nil {
			t.Fatal(err)
		}
		var fields map[string]any
		if err := json.Unmarshal(raw, &fields); err != nil {
			t.Fatal(err)
		}
		for _, key := range tt.keys {
			if _, ok := fields[key]; !ok {
				t.Errorf("%s: no %s in %s", name, key, raw)
			}
		}
	}
	if raw, _ := json.Marshal(idle.ParkedShops()); string(raw) != "[]" {
		t.Errorf("no parked shops: got %s", raw)
	}
	if got := u.Accounts()[0].Rate; got != 100000 {
		t.Errorf("rate: got %g", got)
	}
}

// All series exist from the start, and calls move only series that did.
func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	inBubble(t, func(c *Config) { c.Registerer = reg; c.BreakerFailures = 2 }, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		before := series(t, reg)
		for _, want := range []string{
			`packship_calls_total{account="default",class="success",outcome="shipped"}`,
			`packship_calls_total{account="default",class="transient",outcome="unknown"}`,
			`packship_calls_total{account="default",class="throttled",outcome="not_shipped"}`,
			`packship_call_duration_seconds{account="default",outcome="unknown"}`,
			`packship_calls_in_flight{account="default"}`,
			`packship_breaker_state{account="default"}`,
			`packship_throttled_total{account="default",source="http_429"}`,
			`packship_throttled_total{account="default",source="text"}`,
			`packship_slot_wait_seconds{account="default"}`,
			`packship_withheld_points_total{account="default",charged_for="ship"}`,
			`packship_withheld_points_total{account="default",charged_for="repeat"}`,
			`packship_slots_held{account="default"}`,
			`packship_account_halted{account="default",reason="access_token_invalid"}`,
			`packship_account_halted{account="default",reason="http_redirect"}`,
			`packship_unreachable_total{account="default"}`,
			`packship_unrecognised_answers_total{account="default"}`,
			`packship_waybill_mismatches_total{}`,
			`packship_shops_parked{reason="shop_not_authorized"}`,
			`packship_shops_parked{reason="address_book_entry_invalid"}`,
		} {
			if v, ok := before[want]; !ok || v != 0 {
				t.Errorf("%s: got %g, %t, want 0 from the start", want, v, ok)
			}
		}
		if got := before[`packship_slot_window_seconds{account="default"}`]; got != 1 {
			t.Errorf("window: got %g, want 1", got)
		}
		if got := before[`packship_rate_limit_calls_per_second{account="default"}`]; got != u.cfg.Accounts[0].RatePerSecond {
			t.Errorf("rate: got %g, want %g", got, u.cfg.Accounts[0].RatePerSecond)
		}
		a.script(success, waybillUsed, noShop, answerText(614, "isv.some-new-thing:ZZ9 神秘错误"), "status 429", "hang", "<html>")
		for i := range 7 {
			send(t, u, shopOrder(fmt.Sprintf("S%d", i), i+1))
		}
		a.script(tokenBad)
		send(t, u, order(9))
		after := series(t, reg)
		for name := range after {
			if _, ok := before[name]; !ok {
				t.Errorf("%s is new", name)
			}
		}
		want := map[string]float64{
			`packship_calls_total{account="default",class="success",outcome="shipped"}`:              1,
			`packship_calls_total{account="default",class="waybill_rejected",outcome="not_shipped"}`: 1,
			`packship_calls_total{account="default",class="needs_human",outcome="unknown"}`:          2,
			`packship_throttled_total{account="default",source="http_429"}`:                          1,
			`packship_unrecognised_answers_total{account="default"}`:                                 1,
			`packship_withheld_points_total{account="default",charged_for="ship"}`:                   1,
			`packship_withheld_points_total{account="default",charged_for="repeat"}`:                 0,
			`packship_shops_parked{reason="shop_not_authorized"}`:                                    1,
			`packship_account_halted{account="default",reason="access_token_invalid"}`:               1,
			`packship_breaker_state{account="default"}`:                                              0,
			`packship_calls_in_flight{account="default"}`:                                            0,
			`packship_slot_window_seconds{account="default"}`:                                        1.05,
			`packship_call_duration_seconds{account="default",outcome="unknown"}`:                    2,
		}
		for name, v := range want {
			if after[name] != v {
				t.Errorf("%s: got %g, want %g", name, after[name], v)
			}
		}
	})
}

// TestMetricsOfACall makes a call that follows one without a known outcome, and
// one that does not: their points are told apart, and each takes a place of the
// rate limit for a window.
func TestMetricsOfACall(t *testing.T) {
	reg := prometheus.NewRegistry()
	inBubble(t, func(c *Config) { c.Registerer = reg; c.Accounts[0].RatePerSecond = 10 }, func(b bubble) {
		t, u := b.t, b.u
		b.api.delay = 100 * time.Millisecond
		shows := func(when string, ship, repeat, held float64) {
			t.Helper()
			got := series(t, reg)
			for name, want := range map[string]float64{
				`packship_withheld_points_total{account="default",charged_for="ship"}`:   ship,
				`packship_withheld_points_total{account="default",charged_for="repeat"}`: repeat,
				`packship_slots_held{account="default"}`:                                 held,
			} {
				if got[name] != want {
					t.Errorf("%s: %s is %g, want %g", when, name, got[name], want)
				}
			}
		}
		send(t, u, order(1))
		shows("after a call", 1, 0, 1)
		turn, err := u.Admit(t.Context(), order(2), true)
		if err != nil {
			t.Fatal(err)
		}
		turn.Send(t.Context(), schema.Hold{Doubt: true})
		shows("after a repeated one", 1, 1, 2)
		time.Sleep(time.Second)
		shows("a second later", 1, 1, 0)
	})
}

// TestParkedIsCounted parks a shop, has its probe meet another reason, and then
// succeed: it is counted once all the time, and under the reason of that time.
func TestParkedIsCounted(t *testing.T) {
	reg := prometheus.NewRegistry()
	inBubble(t, func(c *Config) { c.Registerer = reg }, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		const unauthorised, noUser = `packship_shops_parked{reason="shop_not_authorized"}`, `packship_shops_parked{reason="user_session_missing"}`
		counted := func(when string, want1, want2 float64) {
			t.Helper()
			if got := series(t, reg); got[unauthorised] != want1 || got[noUser] != want2 {
				t.Errorf("%s: got %g and %g, want %g and %g", when, got[unauthorised], got[noUser], want1, want2)
			}
		}
		a.script(noShop, answerText(614, "没有用户ID"), success)
		send(t, u, order(1))
		counted("parked", 1, 0)
		u.Unpark("S1")
		send(t, u, order(2))
		counted("the probe meets another reason", 0, 1)
		u.Unpark("S1")
		if got := send(t, u, order(3)); got.Action != schema.ActSucceed {
			t.Errorf("got %+v", got)
		}
		counted("unparked", 0, 0)
	})
}

// series returns the value of every counter and gauge, and the count of every
// histogram.
func series(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			v := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			values[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = v
		}
	}
	return values
}
