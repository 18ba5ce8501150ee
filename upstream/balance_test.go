package upstream

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

func TestForecast(t *testing.T) {
	begin := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	type spent struct {
		after  time.Duration
		points int64
	}
	evenly := func(hours int, points int64) (all []spent) {
		for h := range hours {
			all = append(all, spent{time.Duration(h) * time.Hour, points})
		}
		return all
	}
	for name, tt := range map[string]struct {
		points int64
		spent  []spent
		at     time.Duration
		left   int64
		days   float64 // 0: nobody knows
	}{
		"nothing spent":            {1000, nil, time.Hour, 1000, 0},
		"a minute counts as hour":  {1010, []spent{{time.Minute, 10}}, 2 * time.Minute, 1000, 1000.0 / 240},
		"half a day":               {1240, evenly(12, 20), 12 * time.Hour, 1000, 1000.0 / 480},
		"a day has night and noon": {2000, []spent{{2 * time.Hour, 500}, {20 * time.Hour, 500}}, 24 * time.Hour, 1000, 1},
		"yesterday is forgotten":   {2000, []spent{{2 * time.Hour, 500}, {40 * time.Hour, 500}}, 41 * time.Hour, 1000, 2},
		"long ago":                 {2000, []spent{{2 * time.Hour, 500}}, 240 * time.Hour, 1500, 0},
		"for a century":            {1 << 40, []spent{{0, 1}}, 20 * time.Hour, 1<<40 - 1, 36500},
		"more than there was":      {10, []spent{{0, 25}}, time.Hour, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForecast(&Balance{Points: tt.points, At: begin})
			f.began = begin
			for _, s := range tt.spent {
				f.spend(s.points, begin.Add(s.after))
			}
			st := f.status(begin.Add(tt.at))
			days := 0.0
			if st.DaysLeft != nil {
				days = *st.DaysLeft
			}
			if st.Points != tt.left || days < tt.days*0.999 || days > tt.days*1.001 {
				t.Errorf("%d points for %g days, want %d for %g", st.Points, days, tt.left, tt.days)
			}
		})
	}
}

// The end of a balance is seen coming and said once an hour, the API's own word
// is taken when it comes, and after a top-up nobody pretends to know.
func TestBalance(t *testing.T) {
	reg := prometheus.NewRegistry()
	var logs logBuffer
	begin := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // of every bubble
	inBubble(t, func(c *Config) {
		c.Registerer = reg
		c.Logger = slog.New(slog.NewTextHandler(&logs, nil))
		c.Accounts = append(c.Accounts, Account{Name: "other", Token: "other", RatePerSecond: 1, Shops: []string{"S9"}})
		c.Accounts[0].Balance = &Balance{Points: 100, At: begin.Add(-2 * day)}
	}, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		const series0 = `packship_balance_points{account="default"}`
		said := func(what string, want int) {
			t.Helper()
			if n := strings.Count(logs.String(), what); n != want {
				t.Errorf("%q was said %d times, want %d:\n%s", what, n, want, logs.String())
			}
		}
		said("balance is older than this process", 1)
		if got, all := series(t, reg)[series0], u.Accounts(); got != 100 || all[0].Balance.Points != 100 || all[0].Balance.DaysLeft != nil || all[1].Balance != nil {
			t.Errorf("at the start: %g, %+v, %+v", got, all[0].Balance, all[1].Balance)
		}
		// Four points in the first hour are 96 a day.
		for i := range 4 {
			said("balance is running out", 0)
			send(t, u, order(i+1))
		}
		said("balance is running out", 0) // 96 are left, for just one day
		send(t, u, order(5))
		said("balance is running out", 1)
		send(t, u, order(6))
		said("balance is running out", 1)
		time.Sleep(30 * time.Hour)
		send(t, u, order(7)) // the pace of today is one point
		said("balance is running out", 1)
		st := u.Accounts()[0]
		if st.Balance.Points != 93 || *st.Balance.DaysLeft != 93 || st.Spent != 7 || series(t, reg)[series0] != 93 {
			t.Errorf("got %+v for %+v", st.Balance, st)
		}

		a.script(quotaGone)
		send(t, u, order(8))
		said("balance is used up", 1)
		if st := u.Accounts()[0]; st.Balance.Points != 0 || series(t, reg)[series0] != 0 {
			t.Errorf("used up: got %+v", st.Balance)
		}
		a.script(success)
		u.Resume("default")
		send(t, u, order(8))
		said("balance is not known since the top-up", 1)
		if _, there := series(t, reg)[series0]; there || u.Accounts()[0].Balance != nil {
			t.Error("after the top-up there is still a balance")
		}
		send(t, u, order(9))
	})
}

// A token file that comes to hold another account's token is not followed.
func TestTokenOfAnotherAccount(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first")
	var logs logBuffer
	inBubble(t, func(c *Config) {
		c.Accounts = append(c.Accounts, Account{Name: "north", TokenFile: file, RatePerSecond: 100, Shops: []string{"N"}})
		c.Logger = slog.New(slog.NewTextHandler(&logs, nil))
	}, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		for _, token := range []string{"token-1", "token-1", "second"} {
			write(token)
			for _, acc := range u.accounts {
				acc.readToken(u.accounts)
			}
			send(t, u, shopOrder("N", 1))
		}
		if d := cmp.Diff([]string{"first", "first", "second"}, a.tokens); d != "" {
			t.Errorf("tokens (-want +got):\n%s", d)
		}
	})
	if n := strings.Count(logs.String(), "holds the token of account default"); n != 1 || strings.Contains(logs.String(), "token-1") {
		t.Errorf("said %d times, want once and without the token:\n%s", n, logs.String())
	}
}
