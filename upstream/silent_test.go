package upstream

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// An API that stops to answer gets few calls more, whether it was busy before or
// not, and is called again as soon as it answers one of them.
func TestSilentAPI(t *testing.T) {
	for name, warm := range map[string]time.Duration{"from the start": 0, "under load": 20 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				silent := make(chan struct{})
				hung, begin := 0, time.Now()
				api := &arrivals{delay: func() time.Duration {
					mu.Lock()
					hang := time.Since(begin) >= warm
					if hang {
						hung++
					}
					mu.Unlock()
					if hang {
						<-silent
						return 0
					}
					return 1200 * time.Millisecond
				}}
				u, stop := inMemory(t, func(c *Config) {
					c.Accounts[0].RatePerSecond, c.RateJitter, c.Timeout = 10, testJitter, 30*time.Second
				}, api.ServeHTTP)
				defer stop()
				var wg sync.WaitGroup
				wg.Go(func() { load(t, u, 100, warm+25*time.Second, func(int) string { return "S1" }) })
				time.Sleep(warm + 20*time.Second)
				synctest.Wait()
				mu.Lock()
				n := hung
				mu.Unlock()
				if n < 5 || n > 30 {
					t.Errorf("%d calls to an API that is silent, want about those of one answer's time", n)
				}
				if warm == 0 && n > 14 {
					t.Errorf("%d calls to an API that never said a word, want at most 14", n)
				}
				count := func() int {
					api.mu.Lock()
					defer api.mu.Unlock()
					return len(api.times)
				}
				mu.Lock()
				begin = time.Now().Add(time.Hour) // it answers again
				mu.Unlock()
				before := count()
				close(silent)
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if got := count() - before; got < 18 {
					t.Errorf("%d calls in the 2s after it spoke again, want 20", got)
				}
				wg.Wait()
			})
		})
	}
}

// An API that was asked nothing for a while has not been silent.
func TestIdleAPIIsNotSilent(t *testing.T) {
	inBubble(t, func(c *Config) {
		c.Accounts[0].RatePerSecond, c.RateJitter = 10, testJitter
	}, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		send(t, u, order(1))
		time.Sleep(time.Hour)
		before := a.calls()
		for i := range 20 {
			sendLater(t, u, order(10+i))
		}
		time.Sleep(950 * time.Millisecond) // the first answer comes after 1s
		synctest.Wait()
		if got := a.calls() - before; got < 8 {
			t.Errorf("%d calls in the first second after an hour, want the full rate", got)
		}
		time.Sleep(time.Minute)
	})
}

// An API that answers, however slowly, is called at the full rate: the silence
// between two answers of a slow one is no silence.
func TestSlowAPIIsNotSilent(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for _, tt := range []struct {
		latency, spread time.Duration
	}{{200 * time.Millisecond, 0}, {1200 * time.Millisecond, 0}, {4 * time.Second, 0}, {500 * time.Millisecond, 4 * time.Second}} {
		t.Run(fmt.Sprintf("%s and up to %s", tt.latency, tt.spread), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 0))
				var mu sync.Mutex
				api := &arrivals{delay: func() time.Duration {
					mu.Lock()
					defer mu.Unlock()
					return tt.latency + time.Duration(rng.Int64N(int64(tt.spread)+1))
				}}
				u, stop := inMemory(t, func(c *Config) {
					c.Accounts[0].RatePerSecond, c.RateJitter, c.Timeout = 10, testJitter, 15*time.Second
				}, api.ServeHTTP)
				defer stop()
				const span, start = 120 * time.Second, 10 * time.Second
				begin := time.Now()
				load(t, u, 100, span, func(int) string { return "S1" })
				n := 0
				for _, at := range api.times {
					if at.Sub(begin) >= start {
						n++
					}
				}
				rate := float64(n) / (span - start).Seconds()
				t.Logf("%.2f calls a second", rate)
				if rate < 9.8 {
					t.Errorf("%.2f calls a second to an API that answers, want 9.8", rate)
				}
			})
		})
	}
}
