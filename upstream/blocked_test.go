package upstream

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"packship/schema"
)

// closed reports whether a channel is closed.
func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// A halted account blocks all its orders until one may try; a failed try blocks
// them anew, a good one for no longer.
func TestBlockedByHalt(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		if _, blocked := u.Blocked(order(1)); blocked {
			t.Fatal("an account that sends is blocked")
		}
		a.script(tokenBad, tokenBad, success)
		send(t, u, order(1))
		for try := range 2 {
			reopened, blocked := u.Blocked(order(2))
			if !blocked || closed(reopened) {
				t.Fatalf("halt %d: blocked %t, reopened %t; want blocked and not reopened", try+1, blocked, closed(reopened))
			}
			if again, _ := u.Blocked(order(3)); again != reopened {
				t.Errorf("halt %d: another order has another channel", try+1)
			}
			u.Resume("default")
			if _, blocked := u.Blocked(order(2)); blocked || !closed(reopened) {
				t.Errorf("halt %d: blocked %t, reopened %t after the resume", try+1, blocked, closed(reopened))
			}
			send(t, u, order(2))
		}
		if _, blocked := u.Blocked(order(2)); blocked {
			t.Error("still blocked after a good try")
		}
	})
}

// A parked shop blocks its own orders only, and the slow timer reopens it.
func TestBlockedByParkedShop(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		a.script(answerText(103, "旺旺账号不存在"), success)
		send(t, u, shopOrder("S1", 1))
		reopened, blocked := u.Blocked(shopOrder("S1", 2))
		if !blocked || closed(reopened) {
			t.Fatalf("blocked %t, reopened %t; want blocked and not reopened", blocked, closed(reopened))
		}
		if _, blocked := u.Blocked(shopOrder("S2", 3)); blocked {
			t.Error("another shop is blocked")
		}
		start := time.Now()
		<-reopened
		if d := time.Since(start); d < 10*time.Minute || d > 11*time.Minute {
			t.Errorf("reopened after %s, want the slow timer's ten minutes", d)
		}
		send(t, u, shopOrder("S1", 2))
		if _, blocked := u.Blocked(shopOrder("S1", 2)); blocked {
			t.Error("still blocked after a good try")
		}
	})
}

// Orders that come again go before those that never had a turn, each kind in the
// order in which it came.
func TestAdmitThoseThatComeAgainFirst(t *testing.T) {
	inBubble(t, nil, func(b bubble) {
		t, u := b.t, b.u
		first, err := u.Admit(t.Context(), order(100), false)
		if err != nil {
			t.Fatal(err)
		}
		// Fill the places before the limiter, so that the others have to wait.
		turns := []*Turn{first}
		for range 1000 {
			if wait, ok := mayGrantNow(u); !ok || wait > 0 {
				break
			}
			turn, err := u.Admit(t.Context(), order(100), false)
			if err != nil {
				t.Fatal(err)
			}
			turns = append(turns, turn)
		}
		var (
			mu   sync.Mutex
			got  []string
			wg   sync.WaitGroup
			want = []string{"again 3", "again 4", "new 1", "new 2"}
		)
		for i, again := range []bool{false, false, true, true} {
			wg.Go(func() {
				turn, err := u.Admit(t.Context(), order(i+1), again)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				got = append(got, fmt.Sprintf("%s %d", map[bool]string{false: "new", true: "again"}[again], i+1))
				mu.Unlock()
				b.api.script(success)
				if a := turn.Send(t.Context(), schema.Hold{StartBy: time.Now().Add(time.Minute)}); a.Action != schema.ActSucceed {
					t.Errorf("order %d: %+v", i+1, a)
				}
			})
			synctest.Wait()
		}
		for _, turn := range turns {
			b.api.script(success)
			turn.Send(t.Context(), schema.Hold{StartBy: time.Now().Add(time.Minute)})
			synctest.Wait()
		}
		wg.Wait()
		if !slices.Equal(got, want) {
			t.Errorf("turns were given to %v, want %v", got, want)
		}
	})
}

func mayGrantNow(u *Upstream) (time.Duration, bool) {
	a := u.accounts[0]
	a.mu.Lock()
	defer a.unlock()
	return a.mayGrant(time.Now())
}

// An open breaker and a pause block the orders of their account where there are
// others, until the time has come or somebody ends the pause, and do not where
// the account is alone.
func TestBlockedByRecess(t *testing.T) {
	other := func(c *Config) {
		c.Accounts = append(c.Accounts, Account{Name: "other", Token: "other", RatePerSecond: 1, Shops: []string{"S9"}})
	}
	open := func(b bubble) {
		b.api.script("status 503")
		for i := range 5 {
			send(b.t, b.u, order(i+1))
		}
		b.api.script(success)
	}
	slow := func(b bubble) {
		b.api.script(answerText(614, "This ban will last for 29 more seconds"), success)
		send(b.t, b.u, order(1))
	}
	for name, trouble := range map[string]func(bubble){"breaker": open, "pause": slow} {
		t.Run(name+" of one of two", func(t *testing.T) {
			inBubble(t, other, func(b bubble) {
				trouble(b)
				begin := time.Now()
				reopened, blocked := b.u.Blocked(order(9))
				if !blocked || closed(reopened) {
					b.t.Fatalf("blocked %t, reopened %t; want blocked and not reopened", blocked, closed(reopened))
				}
				if again, _ := b.u.Blocked(shopOrder("S2", 10)); again != reopened {
					b.t.Error("another shop of the account has another channel")
				}
				if _, blocked := b.u.Blocked(shopOrder("S9", 11)); blocked {
					b.t.Error("another account is blocked")
				}
				<-reopened
				if d := time.Since(begin); d != 30*time.Second {
					b.t.Errorf("reopened after %s, want 30s", d)
				}
				if _, blocked := b.u.Blocked(order(9)); blocked {
					b.t.Error("still blocked")
				}
				if got := send(b.t, b.u, order(9)); got.Action != schema.ActSucceed {
					b.t.Errorf("got %+v", got)
				}
			})
		})
		t.Run(name+" of the only one", func(t *testing.T) {
			inBubble(t, nil, func(b bubble) {
				trouble(b)
				if _, blocked := b.u.Blocked(order(9)); blocked {
					b.t.Error("blocked, in nobody's way")
				}
			})
		})
	}
	t.Run("pause that is made longer", func(t *testing.T) {
		inBubble(t, other, func(b bubble) {
			slow(b)
			begin := time.Now()
			reopened, _ := b.u.Blocked(order(9))
			b.u.accounts[0].pacer.throttle(45*time.Second, time.Now())
			<-reopened
			if d := time.Since(begin); d != 45*time.Second {
				b.t.Errorf("reopened after %s, want 45s", d)
			}
		})
	})
	t.Run("pause that somebody ends", func(t *testing.T) {
		inBubble(t, other, func(b bubble) {
			slow(b)
			reopened, _ := b.u.Blocked(order(9))
			b.u.Resume("default")
			if _, blocked := b.u.Blocked(order(9)); blocked || !closed(reopened) {
				b.t.Errorf("blocked %t, reopened %t after the resume", blocked, closed(reopened))
			}
		})
	})
}
