package upstream

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestConfigValidate(t *testing.T) {
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tt := range map[string]struct {
		change func(*Config)
		want   []string
	}{
		"good":               {func(*Config) {}, nil},
		"https":              {func(c *Config) { c.URL = "https://api.example.com:8443/x?y=z" }, nil},
		"token file":         {func(c *Config) { c.Accounts[0].Token, c.Accounts[0].TokenFile = "", file("abc\r\n") }, nil},
		"fraction":           {func(c *Config) { c.Accounts[0].RatePerSecond = 0.5 }, nil},
		"no jitter":          {func(c *Config) { c.RateJitter = 0 }, nil},
		"url empty":          {func(c *Config) { c.URL = "" }, []string{"url must be"}},
		"url scheme":         {func(c *Config) { c.URL = "ftp://x/" }, []string{"url must be"}},
		"url relative":       {func(c *Config) { c.URL = "/tool/erps/send" }, []string{"url must be"}},
		"url user":           {func(c *Config) { c.URL = "http://u:p@x/" }, []string{"url must be"}},
		"url control":        {func(c *Config) { c.URL = "http://x/\n" }, []string{"url must be"}},
		"durations":          {func(c *Config) { c.Timeout, c.BreakerOpenFor, c.RetryBackoff, c.RetryBackoffMax = 0, -1, 0, 0 }, []string{"timeout must", "breaker pause must", "retry backoff must", "longest retry backoff must"}},
		"backoff order":      {func(c *Config) { c.RetryBackoffMax = time.Millisecond }, []string{"must not be shorter"}},
		"jitter":             {func(c *Config) { c.RateJitter = -1 }, []string{"rate jitter"}},
		"jitter too long":    {func(c *Config) { c.RateJitter = 2 * time.Second }, []string{"rate jitter"}},
		"probe":              {func(c *Config) { c.HaltProbe = -1 }, []string{"halt probe"}},
		"counts":             {func(c *Config) { c.MaxInFlight, c.BreakerFailures, c.RetryMax = 0, 0, -1 }, []string{"calls in flight", "breaker failures", "retries"}},
		"policies":           {func(c *Config) { c.UnknownShop, c.WaybillCheck = "x", "y" }, []string{"unknown shop must", "waybill check must"}},
		"dependencies":       {func(c *Config) { c.Logger, c.Registerer = nil, nil }, []string{"logger", "registerer"}},
		"no account":         {func(c *Config) { c.Accounts = nil }, []string{"no account"}},
		"no token":           {func(c *Config) { c.Accounts[0].Token = "" }, []string{"account default: token is missing"}},
		"token with spaces":  {func(c *Config) { c.Accounts[0].Token = "a b" }, []string{"white space"}},
		"token of two lines": {func(c *Config) { c.Accounts[0].TokenFile = file("a\nb") }, []string{"white space"}},
		"token not ASCII":    {func(c *Config) { c.Accounts[0].Token = "ä" }, []string{"header"}},
		"token file empty":   {func(c *Config) { c.Accounts[0].TokenFile = file(" \n") }, []string{"token is empty"}},
		"token file gone":    {func(c *Config) { c.Accounts[0].TokenFile = "/nowhere/token" }, []string{"/nowhere/token"}},
		"token file large":   {func(c *Config) { c.Accounts[0].TokenFile = file(strings.Repeat("x", maxTokenFile+1)) }, []string{"too large"}},
		"token directory":    {func(c *Config) { c.Accounts[0].TokenFile = t.TempDir() }, []string{"cannot be read"}},
		"rate zero":          {func(c *Config) { c.Accounts[0].RatePerSecond = 0 }, []string{"rate per second"}},
		"rate NaN":           {func(c *Config) { c.Accounts[0].RatePerSecond = math.NaN() }, []string{"rate per second"}},
		"rate infinite":      {func(c *Config) { c.Accounts[0].RatePerSecond = math.Inf(1) }, []string{"rate per second"}},
		"vvtype":             {func(c *Config) { c.Accounts[0].VVType = 5 }, []string{"V18"}},
		"shop":               {func(c *Config) { c.Accounts[0].Shops = []string{"ok", "a b"} }, []string{`V01`}},
		"name":               {func(c *Config) { c.Accounts[0].Name = "a/b" }, []string{"account name"}},
		"twice": {func(c *Config) {
			c.Accounts[0].Shops = []string{"S1"}
			c.Accounts = append(c.Accounts, c.Accounts[0])
			c.Accounts[1].Token = "another"
		}, []string{"listed twice", "shop S1 is already in account"}},
		"omni-channel shops": {func(c *Config) {
			c.Accounts = append(c.Accounts, Account{Name: "north", Token: "t2", RatePerSecond: 1, Shops: []string{"S1", "S2"}, OmniChannelShops: []string{"S2"}})
			c.Accounts[0].OmniChannelShops = []string{"S9"}
		}, nil},
		"omni-channel shop of the only account": {func(c *Config) { c.Accounts[0].Name, c.Accounts[0].OmniChannelShops = "north", []string{"S9"} }, nil},
		"omni-channel shop of nobody": {func(c *Config) {
			c.UnknownShop, c.Accounts[0].OmniChannelShops = UnknownFail, []string{"S9"}
		}, []string{"account default: omni-channel shop S9 is none of its shops"}},
		"omni-channel shops of others": {func(c *Config) {
			c.Accounts = append(c.Accounts, Account{Name: "north", Token: "t2", RatePerSecond: 1, Shops: []string{"S1"}, OmniChannelShops: []string{"S9", "a b"}})
			c.Accounts[0].OmniChannelShops = []string{"S1"}
		}, []string{
			"account default: omni-channel shop S1 is none", "account north: omni-channel shop S9 is none",
			"account north: omni-channel shop a b is none", "V01",
		}},
		"same token": {func(c *Config) {
			c.Accounts = append(c.Accounts, Account{Name: "north", Token: "token-1", RatePerSecond: 1})
		}, []string{"accounts default and north have the same token"}},
		"same token in a file": {func(c *Config) {
			c.Accounts = append(c.Accounts,
				Account{Name: "north", TokenFile: file("token-1\n"), RatePerSecond: 1},
				Account{Name: "south", TokenFile: file("token-2"), RatePerSecond: 1})
		}, []string{"accounts default and north have the same token"}},
		"no token twice": {func(c *Config) {
			c.Accounts = []Account{{Name: "a", RatePerSecond: 1}, {Name: "b", RatePerSecond: 1}}
		}, []string{"account a: token is missing", "account b: token is missing"}},
		"balance": {func(c *Config) { c.Accounts[0].Balance = &Balance{Points: 0, At: time.Now()} }, nil},
		"balance of no time": {func(c *Config) {
			c.Accounts[0].Balance = &Balance{Points: 1}
		}, []string{"balance must be"}},
		"balance of tomorrow": {func(c *Config) {
			c.Accounts[0].Balance = &Balance{Points: 1, At: time.Now().Add(24 * time.Hour)}
		}, []string{"balance must be"}},
		"balance below nothing": {func(c *Config) {
			c.Accounts[0].Balance = &Balance{Points: -1, At: time.Now()}
		}, []string{"balance must be"}},
		"all at once": {func(c *Config) { c.URL, c.Timeout, c.Accounts[0].Token = "", 0, "" }, []string{"url", "timeout", "token"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig("http://api.test/")
			tt.change(&cfg)
			err := cfg.Validate()
			if len(tt.want) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				if _, err := New(cfg); err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			if n := len(strings.Split(err.Error(), "\n")); n != len(tt.want) {
				t.Errorf("got %d problems, want %d:\n%s", n, len(tt.want), err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in %q", want, err)
				}
			}
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !strings.HasPrefix(line, "upstream: ") {
					t.Errorf("no prefix: %s", line)
				}
			}
			if _, err := New(cfg); err == nil {
				t.Error("New took it")
			}
		})
	}
}

func TestNewRegistersOnce(t *testing.T) {
	cfg := testConfig("http://api.test/")
	if _, err := New(cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg); err == nil {
		t.Error("no error for metrics that are registered twice")
	}
}
