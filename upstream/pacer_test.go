package upstream

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"packship/schema"
)

const testJitter = 15 * time.Millisecond

// busiest returns the most times that lie within any half-open second, after
// each has been delayed by at most jitter, as is worst.
func busiest(times []time.Time, jitter time.Duration) int {
	most, first := 0, 0
	for i := range times {
		for times[i].Sub(times[first]) >= time.Second+jitter {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// departures lets calls leave one after the other for a while, as fast as they
// may, and returns when they did.
func departures(p *pacer, d time.Duration, leave func() bool) []time.Time {
	stop := make(chan struct{})
	timer := time.AfterFunc(d, func() { close(stop) })
	defer timer.Stop()
	var times []time.Time
	for {
		dep := p.acquire(stop, leave)
		if dep == nil {
			return times
		}
		p.written(dep)
		times = append(times, time.Now())
	}
}

func yes() bool { return true }

// pass lets one call leave and be written.
func pass(p *pacer) {
	p.written(p.acquire(nil, yes))
}

// No second holds more than the rate, and hardly any of it is left unused.
func TestPacerRates(t *testing.T) {
	for _, tt := range []struct {
		rate float64
		span time.Duration
	}{
		{0.01, 1000 * time.Second},
		{0.1, 200 * time.Second},
		{0.5, 100 * time.Second},
		{1, 100 * time.Second},
		{1.5, 100 * time.Second},
		{2.5, 100 * time.Second},
		{9.9, 100 * time.Second},
		{10, 100 * time.Second},
		{50, 20 * time.Second},
		{333, 5 * time.Second},
		{999, 3 * time.Second},
		{1000, 3 * time.Second},
		{2000, 2 * time.Second},
	} {
		t.Run(fmt.Sprint(tt.rate), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				times := departures(newPacer(tt.rate, testJitter), tt.span, yes)
				if most, limit := busiest(times, 0), max(1, int(math.Ceil(tt.rate))); most > limit {
					t.Errorf("%d calls in one second, the rate is %g", most, tt.rate)
				}
				if got, want := float64(len(times)), 0.98*tt.rate*tt.span.Seconds(); got < math.Floor(want) {
					t.Errorf("%g calls in %s, want at least %.1f", got, tt.span, want)
				}
				if tt.rate == 10 {
					if most := busiest(times, testJitter); most > 10 {
						t.Errorf("%d calls in one second after a delay that varies by %s", most, testJitter)
					}
				}
			})
		})
	}
}

// On a busy machine timers fire late and writes take their time. The calls that
// are late must not end up too close to the next.
func TestPacerWithLateTimers(t *testing.T) {
	for _, rate := range []float64{0.5, 2, 2.5, 10, 100} {
		t.Run(fmt.Sprint(rate), func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 0))
				p := newPacer(rate, testJitter)
				late := func() bool {
					if rng.IntN(3) == 0 {
						time.Sleep(time.Duration(rng.Int64N(int64(90 * time.Millisecond))))
					}
					return true
				}
				times := departures(p, 300*time.Second, late)
				n := max(1, int(rate))
				gap := time.Duration(float64(n) / rate * float64(time.Second+testJitter))
				for i := n; i < len(times); i++ {
					if d := times[i].Sub(times[i-n]); d < gap {
						t.Fatalf("call %d left %s after call %d, want at least %s", i, d, i-n, gap)
					}
				}
				t.Logf("%.1f calls per second", float64(len(times))/300)
			})
		})
	}
}

// A call that takes long to write counts from when it was written.
func TestPacerCountsFromTheWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(1, testJitter)
		d := p.acquire(nil, yes)
		time.Sleep(400 * time.Millisecond)
		p.written(d)
		wrote := time.Now()
		pass(p)
		if gap := time.Since(wrote); gap < time.Second+testJitter/2 {
			t.Errorf("the next call left %s after the write", gap)
		}
	})
}

// A process that is stopped between the decision and the write may write much
// later. Until it has, the call counts as one that leaves just now.
func TestPacerWaitsForAPendingWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(1, testJitter)
		d := p.acquire(nil, yes)
		var wrote time.Time
		time.AfterFunc(5*time.Second, func() {
			wrote = time.Now()
			p.written(d)
		})
		pass(p)
		if gap := time.Since(wrote); wrote.IsZero() || gap < time.Second+testJitter/2 {
			t.Errorf("the next call left %s after the write", gap)
		}
	})
}

// Calls leave in the order in which they came, and those that give up take
// nothing with them.
func TestPacerLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(10, 0)
		start := time.Now()
		pass(p)
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		stops := make([]chan struct{}, 9)
		for i := range stops {
			stops[i] = make(chan struct{})
			wg.Go(func() {
				if d := p.acquire(stops[i], func() bool { return i != 7 }); d != nil {
					p.written(d)
					mu.Lock()
					defer mu.Unlock()
					order = append(order, i)
				}
			})
			synctest.Wait()
		}
		close(stops[0]) // the first in line
		close(stops[4]) // one further back; 7 is refused at the last moment
		wg.Wait()
		if want := []int{1, 2, 3, 5, 6, 8}; !slices.Equal(order, want) {
			t.Errorf("order: got %v, want %v", order, want)
		}
		if d := time.Since(start); d != 600*time.Millisecond {
			t.Errorf("six more calls took %s, want 600ms", d)
		}
	})
}

func TestPacerThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(10, testJitter)
		left := time.Now()
		pass(p)
		var wg sync.WaitGroup
		var at time.Time
		wg.Go(func() {
			pass(p)
			at = time.Now()
		})
		synctest.Wait()
		if !p.throttle(3*time.Second, left) {
			t.Error("the window did not grow")
		}
		// Those who were under way at that time are answered likewise.
		time.Sleep(time.Second)
		if p.throttle(time.Second, left) {
			t.Error("the window grew twice for one lesson")
		}
		wg.Wait()
		if d := at.Sub(left); d != 3*time.Second {
			t.Errorf("the call in line left after %s, want 3s", d)
		}
		pace := p.status()
		window, perSecond := pace.window, pace.perSecond
		if want := (time.Second + testJitter) * 21 / 20; window != want {
			t.Errorf("window: got %s, want %s", window, want)
		}
		if math.Abs(perSecond-10/1.05) > 1e-6 {
			t.Errorf("rate: got %g, want %g", perSecond, 10/1.05)
		}
		start := time.Now()
		for range 10 {
			pass(p)
		}
		if d := time.Since(start); d < window-time.Microsecond {
			t.Errorf("ten calls took %s, want a window of %s", d, window)
		}
		for range 100 {
			p.throttle(time.Millisecond, time.Now())
			time.Sleep(time.Second)
		}
		if window = p.status().window; window != maxWindow {
			t.Errorf("window after many throttlings: got %s", window)
		}
		for range cleanCalls - 1 {
			p.passed()
		}
		if w := p.status().window; w != maxWindow {
			t.Errorf("window shrank early: %s", w)
		}
		p.passed()
		if w := p.status().window; w != maxWindow-windowStep {
			t.Errorf("window after %d clean calls: got %s", cleanCalls, w)
		}
		for range 300 * cleanCalls {
			p.passed()
		}
		if w := p.status().window; w != time.Second+testJitter {
			t.Errorf("window in the end: got %s", w)
		}
	})
}

func TestPacerResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(10, testJitter)
		p.throttle(time.Hour, time.Now())
		start := time.Now()
		time.AfterFunc(time.Minute, p.resume)
		pass(p)
		if d := time.Since(start); d != time.Minute {
			t.Errorf("left after %s, want 1m", d)
		}
	})
}

func TestPacerForecast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(10, 0)
		check := func(what string, ahead int, want time.Duration) {
			t.Helper()
			if got := time.Until(p.forecast(ahead)); (got - want).Abs() > time.Millisecond {
				t.Errorf("%s: got %s, want %s", what, got, want)
			}
		}
		check("fresh", 0, 0)
		check("two ahead", 2, 200*time.Millisecond)
		pass(p)
		check("just left", 0, 100*time.Millisecond)
		time.Sleep(30 * time.Millisecond)
		check("left before", 1, 170*time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() { pass(p) })
		synctest.Wait()
		check("one in line", 1, 170*time.Millisecond)
		wg.Wait()
		p.throttle(2*time.Second, time.Time{})
		check("paused", 1, 2100*time.Millisecond)
		if newPacer(0.0001, 0).forecast(math.MaxInt32).Before(time.Now()) {
			t.Error("a far forecast lies in the past")
		}
	})
}

func BenchmarkPacer(b *testing.B) {
	p := newPacer(1e6, 0)
	p.limiter.SetBurst(math.MaxInt32)
	for b.Loop() {
		p.written(p.acquire(nil, yes))
	}
}

// arrivals serves like the API and notes when requests come in.
type arrivals struct {
	mu    sync.Mutex
	times []time.Time
	delay func() time.Duration
	body  func(n int) string
}

func (a *arrivals) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.times = append(a.times, time.Now())
	n := len(a.times)
	a.mu.Unlock()
	_ = r.ParseMultipartForm(1 << 20)
	time.Sleep(a.delay())
	body := success
	if a.body != nil {
		body = a.body(n)
	}
	_, _ = io.WriteString(w, body)
}

// load keeps an Upstream busy with orders from many goroutines for a while.
func load(t *testing.T, u *Upstream, workers int, d time.Duration, shop func(n int) string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for n := i; ctx.Err() == nil; n += workers {
				turn, err := u.Admit(ctx, shopOrder(shop(n), n+1), false)
				if err != nil {
					return
				}
				turn.Send(ctx, schema.Hold{StartBy: time.Now().Add(5 * time.Second)})
			}
		})
	}
	wg.Wait()
}

// The whole way through: under load, no second at the API holds more than ten
// calls, at least 98 % of the rate is used, and only a few orders are let in
// ahead of their tokens.
func TestRateUnderLoad(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 0))
		var mu sync.Mutex
		api := &arrivals{delay: func() time.Duration {
			mu.Lock()
			defer mu.Unlock()
			return 800*time.Millisecond + time.Duration(rng.Int64N(int64(800*time.Millisecond)))
		}}
		u, stop := inMemory(t, func(c *Config) {
			c.Accounts[0].RatePerSecond = 10
			c.RateJitter = testJitter
		}, api.ServeHTTP)
		defer stop()
		const span = 120 * time.Second
		most := 0
		ticker := time.NewTicker(7 * time.Millisecond)
		done := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-ticker.C:
					a := u.accounts[0]
					a.mu.Lock()
					most = max(most, len(a.unsent))
					a.mu.Unlock()
				case <-done:
					return
				}
			}
		})
		load(t, u, 40, span, func(int) string { return "S1" })
		close(done)
		wg.Wait()
		ticker.Stop()
		if n := busiest(api.times, 0); n > 10 {
			t.Errorf("%d calls within one second", n)
		}
		if n := float64(len(api.times)); n < 0.98*10*span.Seconds() {
			t.Errorf("%g calls in %s are only %.1f %% of the rate", n, span, n/span.Seconds()*10)
		}
		if most > 4 {
			t.Errorf("%d orders were let in ahead of their tokens", most)
		}
		t.Logf("%d calls, at most %d in one second, at most %d orders ahead", len(api.times), busiest(api.times, 0), most)
	})
}

// Where connections and orders take long to prepare, orders are let in earlier,
// so that the rate is still used.
func TestRateWithSlowPreparation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &arrivals{delay: func() time.Duration { return 1200 * time.Millisecond }}
		u, stop := inMemory(t, func(c *Config) {
			c.Accounts[0].RatePerSecond = 10
			c.RateJitter = testJitter
		}, api.ServeHTTP)
		defer stop()
		ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for i := range 60 {
			wg.Go(func() {
				for ctx.Err() == nil {
					turn, err := u.Admit(ctx, order(i+1), false)
					if err != nil {
						return
					}
					time.Sleep(700 * time.Millisecond) // a claim in a slow ledger
					turn.Send(ctx, schema.Hold{StartBy: time.Now().Add(5 * time.Second)})
				}
			})
		}
		wg.Wait()
		if n := busiest(api.times, 0); n > 10 {
			t.Errorf("%d calls within one second", n)
		}
		if n := len(api.times); n < 1150 {
			t.Errorf("%d calls in 120s, want almost 10 per second", n)
		}
	})
}

// At a slow rate an order is let in just before its token.
func TestAdmitAtSlowRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &arrivals{delay: func() time.Duration { return time.Second }}
		u, stop := inMemory(t, func(c *Config) { c.Accounts[0].RatePerSecond = 0.1 }, api.ServeHTTP)
		defer stop()
		send(t, u, order(1))
		for i := range 3 {
			turn, err := u.Admit(t.Context(), order(i+2), false)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			turn.Send(t.Context(), schema.Hold{StartBy: time.Now().Add(5 * time.Second)})
			if d := time.Since(start) - time.Second; d > lead+time.Millisecond {
				t.Errorf("order waited %s for its token", d)
			}
		}
	})
}

// Without a rate worth the name, the calls in flight are what is limited.
func TestInFlightLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &arrivals{delay: func() time.Duration { return time.Second }}
		u, stop := inMemory(t, func(c *Config) { c.MaxInFlight = 7 }, api.ServeHTTP)
		defer stop()
		load(t, u, 30, 10*time.Second+time.Millisecond, func(int) string { return "S1" })
		if n := len(api.times); n != 7*11 {
			t.Errorf("got %d calls in 10s, want 77", n)
		}
		if most := busiest(api.times, 0); most > 14 {
			t.Errorf("%d calls in one second", most)
		}
	})
}

func BenchmarkSend(b *testing.B) {
	network := newPipes()
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, success)
	})}
	go func() { _ = server.Serve(network) }()
	b.Cleanup(func() { _ = server.Close() })
	cfg := testConfig("http://api.test/")
	cfg.DialContext = network.dial
	cfg.Registerer = prometheus.NewRegistry()
	cfg.Accounts[0].RatePerSecond = 1e6
	u, err := New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(u.CloseIdleConnections)
	ctx := b.Context()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			turn, err := u.Admit(ctx, order(1), false)
			if err != nil {
				b.Error(err)
				return
			}
			turn.Send(ctx, schema.Hold{})
		}
	})
}

// A place is taken from a call's departure until a window has passed since its
// write, and all of them are when calls leave as fast as they may.
func TestPacerHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(10, testJitter)
		held := func(when string, want int) {
			t.Helper()
			if got := p.held(time.Now()); got != want {
				t.Errorf("%s: %d places are taken, want %d", when, got, want)
			}
		}
		held("at the start", 0)
		pass(p)
		held("after a call", 1)
		d := p.acquire(nil, yes)
		time.Sleep(p.window)
		held("while the second one is being written", 1)
		p.written(d)
		time.Sleep(p.window - time.Nanosecond)
		held("a moment before the window has passed", 1)
		time.Sleep(time.Nanosecond)
		held("a window later", 0)
		departures(p, 3*time.Second, yes)
		held("at full speed", 10)
		pass(p)
		p.throttle(0, time.Now())
		time.Sleep(p.base)
		held("in the window that throttling has made longer", 1)
		time.Sleep(p.window - p.base)
		held("after it", 0)
	})
}

// Where the bucket alone keeps the limit, its lack of tokens is what is taken.
func TestPacerHeldByTheBucket(t *testing.T) {
	for _, tt := range []struct {
		rate float64
		full int
	}{{2000, 15}} {
		synctest.Test(t, func(t *testing.T) {
			p := newPacer(tt.rate, testJitter)
			if got := p.held(time.Now()); got != 0 {
				t.Errorf("rate %g: %d places are taken at the start", tt.rate, got)
			}
			for range tt.full {
				pass(p)
			}
			if got := p.held(time.Now()); got != tt.full {
				t.Errorf("rate %g: %d places are taken, want %d", tt.rate, got, tt.full)
			}
			time.Sleep(2 * p.interval() * time.Duration(tt.full))
			if got := p.held(time.Now()); got != 0 {
				t.Errorf("rate %g: %d places are taken in the end", tt.rate, got)
			}
		})
	}
}

// together runs pacers side by side for a while and returns when calls left, in
// the order of time.
func together(d time.Duration, pacers ...*pacer) []time.Time {
	var (
		mu  sync.Mutex
		all []time.Time
		wg  sync.WaitGroup
	)
	for i, p := range pacers {
		wg.Go(func() {
			time.Sleep(time.Duration(i) * 7 * time.Millisecond)
			times := departures(p, d, yes)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, times...)
		})
	}
	wg.Wait()
	slices.SortFunc(all, time.Time.Compare)
	return all
}

// Processes that share a rate make together what one of them would make alone.
func TestPacersShareARate(t *testing.T) {
	for _, tt := range []struct {
		rate float64
		of   int
	}{{2, 2}, {2.5, 2}, {3, 3}, {10, 2}, {10, 3}, {10, 10}, {11, 4}, {333, 4}, {2000, 3}} {
		t.Run(fmt.Sprint(tt.rate, " among ", tt.of), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const span = 100 * time.Second
				var pacers []*pacer
				limit := 0.0
				for i := range tt.of {
					p := newPacer(tt.rate, testJitter)
					p.setShare(i, tt.of)
					limit += p.status().limit
					pacers = append(pacers, p)
				}
				want := math.Floor(tt.rate)
				if math.Abs(limit-want) > 1e-9 {
					t.Errorf("the shares of %g come to %g", tt.rate, limit)
				}
				times := together(span, pacers...)
				if most := busiest(times, testJitter-time.Microsecond); float64(most) > want && tt.rate < manyPerSecond {
					t.Errorf("%d calls in one second, the rate is %g", most, tt.rate)
				}
				if got, want := float64(len(times)), 0.98*want*span.Seconds(); got < math.Floor(want) {
					t.Errorf("%g calls in %s, want at least %.1f", got, span, want)
				}
			})
		})
	}
}

// A share changes while calls leave as fast as they may. Who gets more waits for a
// window before it calls, as the consumer's session does; who gets less goes on.
func TestPacerChangesItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, span = 10, 20 * time.Second
		a, b := newPacer(rate, testJitter), newPacer(rate, testJitter)
		all := together(span, a) // alone
		count := func(phase string, times []time.Time) {
			t.Helper()
			if got, want := len(times), int(0.97*rate*span.Seconds()); got < want {
				t.Errorf("%s: %d calls, want %d at least", phase, got, want)
			}
			all = append(all, times...)
		}

		a.setShare(0, 2)
		b.setShare(1, 2)
		var ofB []time.Time
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(b.base)
			ofB = departures(b, span, yes)
		})
		ofA := departures(a, span, yes)
		wg.Wait()
		if gap := ofA[0].Sub(all[len(all)-rate/2]); gap < a.base {
			t.Errorf("with half of the rate a call left %s after the one %d calls before it", gap, rate/2)
		}
		count("shared", append(ofA, ofB...))

		b.setShare(0, 1) // a is gone
		time.Sleep(b.base)
		count("alone again", departures(b, span, yes))
		slices.SortFunc(all, time.Time.Compare)
		if most := busiest(all, testJitter-time.Microsecond); most > rate {
			t.Errorf("%d calls in one second", most)
		}
	})
}

// A waiting call leaves earlier if its share grows.
func TestPacerIsWokenByItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(10, testJitter)
		p.setShare(9, 10)
		pass(p)
		begin := time.Now()
		left := make(chan time.Duration)
		go func() {
			pass(p)
			pass(p)
			left <- time.Since(begin)
		}()
		synctest.Wait()
		p.setShare(0, 1)
		if took := <-left; took > p.base+p.interval() {
			t.Errorf("two calls took %s", took)
		}
	})
}

// The slowest account says among how many the rates can be shared, and for how
// long a call counts.
func TestSharesOfAccounts(t *testing.T) {
	for _, tt := range []struct {
		rates  []float64
		shares int
		window time.Duration
	}{
		{[]float64{10}, 10, time.Second},
		{[]float64{10, 2.5}, 2, time.Second},
		{[]float64{10, 0.5}, 1, 2 * time.Second},
	} {
		u := &Upstream{cfg: Config{RateJitter: testJitter}}
		for _, rate := range tt.rates {
			u.cfg.Accounts = append(u.cfg.Accounts, Account{RatePerSecond: rate})
		}
		if shares, window := u.MaxShares(), u.Window(); shares != tt.shares || window != tt.window+testJitter {
			t.Errorf("%v: %d shares and %s, want %d and %s", tt.rates, shares, window, tt.shares, tt.window+testJitter)
		}
	}
}
