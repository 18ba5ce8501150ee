package app

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"packship/schema"
	"packship/upstream"
)

// LoadWithoutToken loads the settings for a command that judges orders as the
// connector does and calls nobody: everything but the server is checked, and a
// missing token is no problem.
func LoadWithoutToken() (Settings, error) {
	s, err := Load(PartKafka | PartOrders | PartUpstream)
	wrong, ok := errors.AsType[*SettingsError](err)
	if !ok {
		return s, err
	}
	wrong.Problems = slices.DeleteFunc(wrong.Problems, func(p Problem) bool {
		return p.Name == variable("UPSTREAM_TOKEN") || p.Name == variable("UPSTREAM_TOKEN_FILE")
	})
	if len(wrong.Problems) > 0 {
		return s, wrong
	}
	return s, nil
}

// Orders judges orders as the connector does. It knows the accounts and their
// shops, and has no token.
type Orders struct {
	api      *upstream.Upstream
	accounts []upstream.Account
	settings *Settings
}

// Orders returns the judge of orders by the settings.
func (s *Settings) Orders() (*Orders, error) {
	tokenless := *s
	tokenless.UpstreamTokenFile = ""
	if s.UpstreamTokenFile != "" || s.UpstreamToken != "" || s.AccountsFile == "" {
		tokenless.UpstreamToken = "unused"
	}
	config, err := tokenless.upstreamConfig()
	if err != nil {
		return nil, err
	}
	for i := range config.Accounts {
		// Accounts must not share a token, not even one that is never used.
		config.Accounts[i].Token, config.Accounts[i].TokenFile = fmt.Sprintf("unused-%d", i), ""
	}
	config.Logger = slog.New(slog.DiscardHandler)
	config.Registerer = prometheus.NewRegistry()
	api, err := upstream.New(config)
	if err != nil {
		return nil, err
	}
	return &Orders{api: api, accounts: config.Accounts, settings: s}, nil
}

// Serves reports whether the event's shop is this deployment's business.
func (o *Orders) Serves(p *schema.Packed) bool { return o.api.Serves(p) }

// Validate returns every rule that the event breaks.
func (o *Orders) Validate(p *schema.Packed) []schema.Violation { return o.api.Validate(p) }

// Accounts lists the names of the accounts.
func (o *Orders) Accounts() []string {
	names := make([]string, len(o.accounts))
	for i, a := range o.accounts {
		names[i] = a.Name
	}
	return names
}

// Account returns the name of the account that calls for a shop, "" if none
// does.
func (o *Orders) Account(shop string) string {
	for _, a := range o.accounts {
		if slices.Contains(a.Shops, shop) {
			return a.Name
		}
	}
	if upstream.UnknownShop(o.settings.UnknownShop) != upstream.UnknownDefault {
		return ""
	}
	for _, a := range o.accounts {
		if a.Name == upstream.DefaultAccount || len(o.accounts) == 1 {
			return a.Name
		}
	}
	return ""
}

// Duration is how long so many calls of an account take at its rate.
func (o *Orders) Duration(account string, calls int64) time.Duration {
	for _, a := range o.accounts {
		if a.Name == account {
			interval := float64(time.Second+o.settings.RateJitter) / a.RatePerSecond
			return time.Duration(interval * float64(calls))
		}
	}
	return 0
}
