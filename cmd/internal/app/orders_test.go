package app

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"packship/schema"
	"packship/upstream"
)

// TestLoadWithoutToken loads settings for a command that calls nobody.
func TestLoadWithoutToken(t *testing.T) {
	for name, tt := range map[string]struct {
		env  map[string]string
		want string // of the error
	}{
		"no token":        {nil, ""},
		"token":           {map[string]string{"UPSTREAM_TOKEN": "t"}, ""},
		"no token file":   {map[string]string{"UPSTREAM_TOKEN_FILE": "/nonexistent"}, ""},
		"nothing else":    {map[string]string{"RATE_PER_SECOND": "0", "KAFKA_START": "now"}, "PACKSHIP_KAFKA_START is \"now\" but must be one of first, last; PACKSHIP_RATE_PER_SECOND is 0 but must be"},
		"server settings": {map[string]string{"LOG_LEVEL": "loud"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			setenv(t, map[string]string{"KAFKA_BROKERS": "k:1"})
			setenv(t, tt.env)
			s, err := LoadWithoutToken()
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.Orders(); err != nil {
					t.Error(err)
				}
				return
			}
			if _, ok := errors.AsType[*SettingsError](err); !ok || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// setenv sets packship's variables for a test.
func setenv(t *testing.T, env map[string]string) {
	t.Helper()
	for name, value := range env {
		t.Setenv(variable(name), value)
	}
}

// TestOrders holds the account that a shop is said to have to what the upstream
// makes of the shop's orders.
func TestOrders(t *testing.T) {
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	overwrite(t, token, []byte("hush"))
	overwrite(t, token+"-2", []byte("hush, too"))
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		overwrite(t, path, []byte(strings.ReplaceAll(text, "TOKEN", token)))
		return path
	}
	one := file("one.yaml", "accounts:\n  - {name: north, token_file: TOKEN, rate_per_second: 4, shops: [a]}\n")
	two := file("two.yaml", "accounts:\n  - {name: north, token_file: TOKEN, shops: [a]}\n  - {name: default, token_file: TOKEN-2, shops: [b]}\n")
	for name, tt := range map[string]struct {
		change func(*Settings)
		want   map[string]string // account by shop
	}{
		"no accounts":       {func(*Settings) {}, map[string]string{"a": "default", "x": "default"}},
		"no accounts, fail": {func(s *Settings) { s.UnknownShop = "fail" }, map[string]string{"a": ""}},
		"one":               {func(s *Settings) { s.AccountsFile = one }, map[string]string{"a": "north", "x": "north"}},
		"one, fail":         {func(s *Settings) { s.AccountsFile, s.UnknownShop = one, "fail" }, map[string]string{"a": "north", "x": ""}},
		"one, skip":         {func(s *Settings) { s.AccountsFile, s.UnknownShop = one, "skip" }, map[string]string{"a": "north", "x": ""}},
		"one and a token":   {func(s *Settings) { s.AccountsFile, s.UpstreamToken = one, "t" }, map[string]string{"a": "north", "x": "default"}},
		"two":               {func(s *Settings) { s.AccountsFile = two }, map[string]string{"a": "north", "b": "default", "x": "default"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := Defaults()
			tt.change(&s)
			o, err := s.Orders()
			if err != nil {
				t.Fatal(err)
			}
			for shop, want := range tt.want {
				got := o.Account(shop)
				if got != want || got != "" && !slices.Contains(o.Accounts(), got) {
					t.Errorf("shop %s has account %q of %v, want %q", shop, got, o.Accounts(), want)
				}
				p := &schema.Packed{ShopID: shop, TID: "1"}
				unknown := slices.ContainsFunc(o.Validate(p), func(v schema.Violation) bool { return v.Rule == "V02" }) || !o.Serves(p)
				if unknown != (got == "") {
					t.Errorf("shop %s has account %q, and its orders are turned away: %t", shop, got, unknown)
				}
				if s.UnknownShop == string(upstream.UnknownSkip) && got == "" && o.Serves(p) {
					t.Errorf("shop %s is served", shop)
				}
			}
		})
	}

	s := Defaults()
	s.AccountsFile, s.RateJitter = one, 0
	o, err := s.Orders()
	if err != nil {
		t.Fatal(err)
	}
	if got := o.Duration("north", 10); got != 2500*time.Millisecond {
		t.Errorf("10 calls at 4 a second take %s, want 2.5s", got)
	}
	if got := o.Duration("nobody", 10); got != 0 {
		t.Errorf("nobody's calls take %s", got)
	}
	s.AccountsFile = "/nonexistent"
	if _, err := s.Orders(); err == nil {
		t.Error("an accounts file that is not there")
	}
}

// TestOrderBeforeTheLedger asks for an order while the ledger is not there.
func TestOrderBeforeTheLedger(t *testing.T) {
	res := ask(t, newConnector(t, nil).Handler(), "GET", "/api/orders/1", "")
	if res.StatusCode != 503 || !strings.Contains(body(t, res), "the ledger is not there yet") {
		t.Errorf("got %d, want 503 with a reason", res.StatusCode)
	}
}
