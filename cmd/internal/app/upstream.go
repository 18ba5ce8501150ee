package app

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"packship/consumer"
	"packship/schema"
	"packship/upstream"
)

// upstreamConfig is what the settings say of the shipping API. They have been
// checked, so a problem here is a file that has changed since.
func (s *Settings) upstreamConfig() (upstream.Config, error) {
	accounts, problems := s.accounts()
	if len(problems) > 0 {
		return upstream.Config{}, &SettingsError{Problems: problems}
	}
	carriers, err := s.carriers()
	if err != nil {
		return upstream.Config{}, &SettingsError{Problems: []Problem{{variable("CARRIERS_FILE"), err.Error()}}}
	}
	return upstream.Config{
		URL:             s.UpstreamURL,
		Timeout:         s.UpstreamTimeout,
		Accounts:        accounts,
		UnknownShop:     upstream.UnknownShop(s.UnknownShop),
		RateJitter:      s.RateJitter,
		MaxInFlight:     s.MaxInFlight,
		BreakerFailures: s.BreakerFailures,
		BreakerOpenFor:  s.BreakerOpenFor,
		RetryMax:        s.RetryMax,
		RetryBackoff:    s.RetryBackoff,
		RetryBackoffMax: s.RetryBackoffMax,
		WaybillCheck:    upstream.WaybillCheck(s.WaybillCheck),
		Carriers:        carriers,
		Remembered:      s.LedgerHorizon,
	}, nil
}

// Validator returns the check that an order passes before it is called for. It
// knows nothing of accounts, so that orders can be packed where no token is.
func (s *Settings) Validator() (func(*schema.Packed) []schema.Violation, error) {
	rules := *s
	rules.AccountsFile, rules.UpstreamTokenFile = "", ""
	rules.UpstreamToken, rules.UnknownShop = "unused", "default"
	config, err := rules.upstreamConfig()
	if err != nil {
		return nil, err
	}
	config.Logger = slog.New(slog.DiscardHandler)
	config.Registerer = prometheus.NewRegistry()
	api, err := upstream.New(config)
	if err != nil {
		return nil, err
	}
	return api.Validate, nil
}

// admitting is the upstream as the consumer's port has it: its turns are an
// interface there.
type admitting struct{ *upstream.Upstream }

var _ consumer.Upstream = admitting{}

// Admit waits for a place in front of the rate limiter.
func (a admitting) Admit(ctx context.Context, p *schema.Packed, again bool) (consumer.Turn, error) {
	turn, err := a.Upstream.Admit(ctx, p, again)
	if err != nil {
		return nil, err // not a nil *Turn inside a Turn
	}
	return turn, nil
}
