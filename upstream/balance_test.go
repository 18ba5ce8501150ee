package upstream

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"packship/schema"
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
		"a day has night and noon": {2000, []spent{{2 * time.Hour, 500}, {20 * time.Hour, 500}}, 26*time.Hour - time.Second, 1000, 1},
		"yesterday is forgotten":   {2000, []spent{{2 * time.Hour, 500}, {40 * time.Hour, 500}}, 41 * time.Hour, 1000, 2},
		"long ago":                 {2000, []spent{{2 * time.Hour, 500}}, 240 * time.Hour, 1500, 0},
		"for a century":            {1 << 40, []spent{{0, 1}}, 20 * time.Hour, 1<<40 - 1, 36500},
		"more than there was":      {10, []spent{{0, 25}}, time.Hour, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForecast(&Balance{Points: tt.points, At: begin})
			for _, s := range tt.spent {
				f.charge(s.points, begin.Add(s.after), begin.Add(min(s.after, tt.at)))
			}
			st := f.status(begin.Add(tt.at))
			days := 0.0
			if st.DaysLeft != nil {
				days = *st.DaysLeft
			}
			if st.Points != tt.left || days < tt.days*0.999 || days > tt.days*1.001 {
				t.Errorf("%d points for %g days, want %d for %g", st.Points, days, tt.left, tt.days)
			}

			// A restarted process is told of everything late, and partitions
			// of the ledger are read side by side.
			late := newForecast(&Balance{Points: tt.points, At: begin})
			for _, s := range slices.Backward(tt.spent) {
				late.charge(s.points, begin.Add(s.after), begin.Add(tt.at))
			}
			if diff := cmp.Diff(st, late.status(begin.Add(tt.at))); diff != "" {
				t.Errorf("after a restart (-without +with):\n%s", diff)
			}
		})
	}
}

// What a process with a clock that is ahead was charged belongs to the present
// hour, and is still known in the next one.
func TestForecastOfAnothersClock(t *testing.T) {
	begin := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	f := newForecast(&Balance{Points: 1010, At: begin})
	f.charge(10, begin.Add(61*time.Minute), begin.Add(59*time.Minute))
	st := f.status(begin.Add(100 * time.Minute))
	if st.Points != 1000 || st.DaysLeft == nil {
		t.Errorf("got %+v, want 1000 points and how long they last", st)
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
		c.Accounts[0].Balance = &Balance{Points: 101, At: begin.Add(-30 * time.Minute)}
		c.Remembered = 10 * time.Minute
	}, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		spend := func(id int) { // what a call costs comes back from the ledger
			t.Helper()
			u.Charged(send(t, u, order(id)).Charge, time.Now())
		}
		const series0 = `packship_balance_points{account="default"}`
		said := func(what string, want int) {
			t.Helper()
			if n := strings.Count(logs.String(), what); n != want {
				t.Errorf("%q was said %d times, want %d:\n%s", what, n, want, logs.String())
			}
		}
		said("balance is older than the ledger's horizon", 1)
		if got, all := series(t, reg)[series0], u.Accounts(); got != 101 || all[0].Balance.Points != 101 || all[0].Balance.DaysLeft != nil || all[1].Balance != nil {
			t.Errorf("at the start: %g, %+v, %+v", got, all[0].Balance, all[1].Balance)
		}
		// What was spent before the start counts if it was after the balance was
		// read.
		u.Charged(schema.Charge{Account: "default", Points: 1000}, begin.Add(-40*time.Minute))
		u.Charged(schema.Charge{Account: "default", Points: 1}, begin.Add(-20*time.Minute))
		u.Charged(schema.Charge{Account: "other", Points: 1000}, begin)
		u.Charged(schema.Charge{Account: "gone", Points: 1000}, begin)
		if got, st := series(t, reg)[series0], u.Accounts()[0]; got != 100 || st.Balance.Points != 100 || st.Today != (Spent{}) {
			t.Errorf("after the ledger is read: %g, %+v, today %+v", got, st.Balance, st.Today)
		}
		// Four points in the first hour are 96 a day.
		for i := range 3 {
			spend(i + 1)
			said("balance is running out", 0)
		}
		spend(4) // 96 are left, for less than a day
		said("balance is running out", 1)
		spend(5)
		said("balance is running out", 1)
		time.Sleep(30 * time.Hour)
		spend(6) // the pace of today is one point
		said("balance is running out", 1)
		st := u.Accounts()[0]
		if st.Balance.Points != 94 || *st.Balance.DaysLeft != 94 || st.Spent != 6 || st.Today != (Spent{Charged: 1, Points: 1}) || series(t, reg)[series0] != 94 {
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
		spend(8)
		said("balance is not known since the top-up", 1)
		if _, there := series(t, reg)[series0]; there || u.Accounts()[0].Balance != nil {
			t.Error("after the top-up there is still a balance")
		}
		spend(9)
	})
}

// Two accounts whose tokens were mixed up are set right by an exchange of their
// files, whichever is replaced first.
func TestTokensChangePlaces(t *testing.T) {
	dir := t.TempDir()
	write := func(name, token string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("north", "token-of-south")
	write("south", "token-of-north")
	inBubble(t, func(c *Config) {
		c.Accounts = []Account{
			{Name: "north", TokenFile: filepath.Join(dir, "north"), RatePerSecond: 100, Shops: []string{"N"}},
			{Name: "south", TokenFile: filepath.Join(dir, "south"), RatePerSecond: 100, Shops: []string{"S"}},
		}
	}, func(b bubble) {
		t, u, a := b.t, b.u, b.api
		look := func() {
			t.Helper()
			readTokens(u.accounts)
			send(t, u, shopOrder("N", 1))
			send(t, u, shopOrder("S", 2))
		}
		write("north", "token-of-north")
		look() // south still goes by it
		write("south", "token-of-south")
		look()
		want := []string{"token-of-south", "token-of-north", "token-of-north", "token-of-south"}
		if d := cmp.Diff(want, a.tokens); d != "" {
			t.Errorf("tokens (-want +got):\n%s", d)
		}
	})
}

// An account whose new token is refused keeps the one it has, and so nobody else
// gets that, also who was looked at before.
func TestTokenThatIsKeptAfterAll(t *testing.T) {
	dir := t.TempDir()
	write := func(name, token string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := testConfig("http://127.0.0.1:1/")
	cfg.Accounts = nil
	for _, name := range []string{"north", "south", "west"} {
		write(name, "token-of-"+name)
		cfg.Accounts = append(cfg.Accounts, Account{Name: name, TokenFile: filepath.Join(dir, name), RatePerSecond: 100})
	}
	u := newUpstream(t, cfg)
	write("north", "token-of-south")
	write("south", "token-of-west")
	readTokens(u.accounts)
	for _, a := range u.accounts {
		if a.token != "token-of-"+a.name {
			t.Errorf("account %s goes by %s", a.name, a.token)
		}
	}
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
			readTokens(u.accounts)
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
