package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"packship/schema"
)

// Config is what an Upstream works with. All fields without a remark are
// needed.
type Config struct {
	// URL is the full URL of the API's send endpoint.
	URL string
	// Timeout bounds one call, from its first byte on.
	Timeout time.Duration
	// Accounts are the accounts that calls are made for, at least one.
	Accounts []Account
	// UnknownShop says what becomes of the events of a shop in no account.
	// The zero value is UnknownDefault.
	UnknownShop UnknownShop
	// RateJitter is the variation of the delay to the API that the pacing
	// absorbs: calls that leave within one second and this still make no more
	// than the rate arrive within any second.
	RateJitter time.Duration
	// MaxInFlight bounds the calls of one account at once.
	MaxInFlight int
	// BreakerFailures consecutive upstream faults stop the calls of an account
	// for BreakerOpenFor.
	BreakerFailures int
	BreakerOpenFor  time.Duration
	// RetryMax bounds the retries of one order; an answer's own bound may be
	// lower.
	RetryMax int
	// RetryBackoff is the pause before the first retry, RetryBackoffMax the
	// longest.
	RetryBackoff, RetryBackoffMax time.Duration
	// WaybillCheck says how a waybill number that does not look like its
	// carrier's is taken. The zero value is CheckWarn.
	WaybillCheck WaybillCheck
	// Carriers is the carrier catalogue; nil stands for the built-in one.
	Carriers *Catalogue
	// HaltProbe is how long a halted account or a parked shop rests before it
	// is tried with one order; 0 stands for ten minutes.
	HaltProbe time.Duration
	// Remembered is how far back [Upstream.Charged] is told of charges.
	Remembered time.Duration
	// DialContext makes the connections to the API; nil stands for a
	// net.Dialer.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)

	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// Tracer makes the spans of calls; nil makes none.
	Tracer trace.Tracer
}

// Account is one customer account at the API: a token with its own rate, and
// the shops that are called for with it.
type Account struct {
	Name string
	// Token is the bearer token, unless TokenFile is set. The file is read
	// again when it changes.
	Token     string
	TokenFile string
	// RatePerSecond is how many calls the account may make in a second.
	// Fractions are allowed.
	RatePerSecond float64
	// VVType is the API edition, 1 to 4, or 0 to leave it out.
	VVType int
	Shops  []string
	// OmniChannelShops are those that also sell over the counter, so that each
	// of their events must name the store that ships. The account must serve
	// them.
	OmniChannelShops []string
	// Balance, if it is known, is counted down, so that its end is seen coming.
	Balance *Balance
}

// DefaultAccount is the name of the account that serves the shops of no other
// account. A single account serves them whatever its name.
const DefaultAccount = "default"

// UnknownShop says what becomes of the events of a shop in no account.
type UnknownShop string

// The ways to treat an unknown shop.
const (
	UnknownDefault UnknownShop = "default" // the default account calls for it; without one, as UnknownFail
	UnknownFail    UnknownShop = "fail"    // its events break rule V02
	UnknownSkip    UnknownShop = "skip"    // its events are another deployment's
)

// WaybillCheck says how a waybill number that does not match the pattern of its
// carrier is taken.
type WaybillCheck string

// The ways to check a waybill number.
const (
	CheckOff    WaybillCheck = "off"
	CheckWarn   WaybillCheck = "warn"   // counted, then sent all the same
	CheckStrict WaybillCheck = "strict" // breaks rule V06
)

const defaultHaltProbe = 10 * time.Minute

var accountName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// Validate reports all that is wrong with the configuration.
func (c *Config) Validate() error {
	var errs []error
	problem := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("upstream: "+format, args...))
	}
	if u, err := url.Parse(c.URL); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.Fragment != "" {
		problem("url must be a full http or https URL like http://api.example.com/tool/erps/send, without user and fragment")
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"timeout", c.Timeout},
		{"breaker pause", c.BreakerOpenFor},
		{"retry backoff", c.RetryBackoff},
		{"longest retry backoff", c.RetryBackoffMax},
	} {
		if d.value <= 0 {
			problem("%s must be a positive duration, got %s", d.name, d.value)
		}
	}
	if c.RetryBackoffMax < c.RetryBackoff {
		problem("longest retry backoff must not be shorter than the first, got %s and %s", c.RetryBackoffMax, c.RetryBackoff)
	}
	if c.RateJitter < 0 || c.RateJitter > time.Second {
		problem("rate jitter must be between 0 and 1s, got %s", c.RateJitter)
	}
	if c.HaltProbe < 0 {
		problem("halt probe interval must not be negative, got %s", c.HaltProbe)
	}
	if c.MaxInFlight < 1 {
		problem("calls in flight must be at least 1, got %d", c.MaxInFlight)
	}
	if c.BreakerFailures < 1 {
		problem("breaker failures must be at least 1, got %d", c.BreakerFailures)
	}
	if c.RetryMax < 0 {
		problem("retries must not be negative, got %d", c.RetryMax)
	}
	switch c.UnknownShop {
	case "", UnknownDefault, UnknownFail, UnknownSkip:
	default:
		problem("unknown shop must be default, fail or skip, got %q", c.UnknownShop)
	}
	if !c.WaybillCheck.valid() {
		problem("waybill check must be off, warn or strict, got %q", c.WaybillCheck)
	}
	if c.Logger == nil {
		problem("logger is missing")
	}
	if c.Registerer == nil {
		problem("metrics registerer is missing")
	}
	if len(c.Accounts) == 0 {
		problem("no account: set a token or list accounts")
	}
	names, owners := map[string]bool{}, map[string]string{}
	holders := map[string]string{} // accounts, by token
	for i := range c.Accounts {
		a := &c.Accounts[i]
		token, broken := a.validate()
		errs = append(errs, broken...)
		if holder, ok := holders[token]; ok && token != "" {
			problem("accounts %s and %s have the same token: the API would get both their rates under it; give each its own, or put the shops into one account", holder, a.Name)
		} else {
			holders[token] = a.Name
		}
		if names[a.Name] {
			problem("account %s is listed twice", a.Name)
		}
		names[a.Name] = true
		for _, shop := range a.Shops {
			if owner, ok := owners[shop]; ok {
				problem("account %s: shop %s is already in account %s", a.Name, shop, owner)
			}
			owners[shop] = a.Name
		}
	}
	for i := range c.Accounts {
		a := &c.Accounts[i]
		for _, shop := range a.OmniChannelShops {
			if owner, listed := owners[shop]; owner != a.Name && (listed || !c.fallback(a)) {
				problem("account %s: omni-channel shop %s is none of its shops", a.Name, shop)
			}
		}
	}
	return errors.Join(errs...)
}

// fallback reports whether the account serves the shops in no account.
func (c *Config) fallback(a *Account) bool {
	return (c.UnknownShop == "" || c.UnknownShop == UnknownDefault) && (a.Name == DefaultAccount || len(c.Accounts) == 1)
}

func (w WaybillCheck) valid() bool {
	switch w {
	case "", CheckOff, CheckWarn, CheckStrict:
		return true
	}
	return false
}

// validate reports what is wrong with the account, and its token if that is
// right.
func (a *Account) validate() (token string, errs []error) {
	problem := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("upstream: account %s: "+format, append([]any{a.Name}, args...)...))
	}
	if !accountName.MatchString(a.Name) {
		errs = append(errs, fmt.Errorf("upstream: account name must be 1 to 64 letters, digits, dots, _ or -, got %q", a.Name))
	}
	switch {
	case a.TokenFile != "":
		read, err := readToken(a.TokenFile)
		if err != nil {
			problem("%w", err)
		}
		token = read
	case a.Token == "":
		problem("token is missing: set the token or a token file")
	default:
		if err := checkToken(a.Token); err != nil {
			problem("%w", err)
		}
		token = a.Token
	}
	// The smallest rate keeps the time between two calls within what a duration
	// can say; the largest is far beyond what one process can send.
	if !(a.RatePerSecond >= 1e-4 && a.RatePerSecond <= 1e6) {
		problem("rate per second must be between 0.0001 and 1000000, got %g", a.RatePerSecond)
	}
	if a.VVType < 0 || a.VVType > 4 {
		problem("vvtype must be 1 to 4, or 0 to leave it out, got %d (rule V18)", a.VVType)
	}
	if b := a.Balance; b != nil && (b.Points < 0 || b.At.IsZero() || time.Until(b.At) > time.Hour) {
		problem("balance must be a number of points, not negative, and the time at which there were so many, not in the future")
	}
	for _, shop := range slices.Concat(a.Shops, a.OmniChannelShops) {
		if !schema.ValidShopID(shop) {
			problem("shop id must be 1 to 64 letters, digits, _ or -, got %q (rule V01)", shop)
		}
	}
	return token, errs
}

// maxTokenFile bounds what is read of a token file, so that a wrong path does
// not fill the memory.
const maxTokenFile = 64 << 10

// readToken returns the token in a file, without the line end that editors add.
func readToken(path string) (string, error) {
	file, err := os.Open(path) //nolint:gosec // the path is the operator's setting
	if err != nil {
		return "", fmt.Errorf("token file cannot be read: %w", err)
	}
	defer func() { _ = file.Close() }() // nothing was written
	raw, err := io.ReadAll(io.LimitReader(file, maxTokenFile+1))
	if err != nil {
		return "", fmt.Errorf("token file cannot be read: %w", err)
	}
	if len(raw) > maxTokenFile {
		return "", fmt.Errorf("token file %s is too large to be a token", path)
	}
	token := strings.TrimSpace(string(raw))
	if err := checkToken(token); err != nil {
		return "", fmt.Errorf("token file %s: %w", path, err)
	}
	return token, nil
}

func checkToken(token string) error {
	if token == "" {
		return errors.New("token is empty")
	}
	for _, r := range token {
		if r <= ' ' || r >= 0x7f {
			return errors.New("token has white space or characters that cannot stand in a header")
		}
	}
	return nil
}
