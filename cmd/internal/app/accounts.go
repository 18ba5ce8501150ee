package app

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"time"

	"gopkg.in/yaml.v3"

	"packship/schema"
	"packship/upstream"
)

// accountsFile is the form of ACCOUNTS_FILE.
type accountsFile struct {
	Accounts []accountEntry `yaml:"accounts"`
}

type accountEntry struct {
	Name             string   `yaml:"name"`
	TokenFile        string   `yaml:"token_file"`
	RatePerSecond    *float64 `yaml:"rate_per_second"`
	VVType           *int     `yaml:"vvtype"`
	Shops            []string `yaml:"shops"`
	OmniChannelShops []string `yaml:"omni_channel_shops"`
	Balance          *struct {
		Points *int64    `yaml:"points"`
		At     time.Time `yaml:"at"`
	} `yaml:"balance"`
}

// accountName keeps names usable in a URL's path and as a label.
var accountName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// ReadAccounts reads an accounts file. A rate of zero means that the account has
// none of its own. All problems are found at once, and each speaks of the
// variable ACCOUNTS_FILE.
func ReadAccounts(file string) ([]upstream.Account, []Problem) {
	var problems []Problem
	problem := func(format string, args ...any) {
		problems = append(problems, Problem{variable("ACCOUNTS_FILE"), OneLine(fmt.Sprintf(format, args...))})
	}
	data, err := os.ReadFile(file) //nolint:gosec // an operator's setting names the file
	if err != nil {
		problem("cannot be read: %v", err)
		return nil, problems
	}
	var parsed accountsFile
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&parsed); err != nil && !errors.Is(err, io.EOF) {
		if typed, ok := errors.AsType[*yaml.TypeError](err); ok {
			for _, text := range typed.Errors {
				problem("%s: %s", file, text)
			}
			return nil, problems
		}
		problem("%s is not YAML: %v", file, err)
		return nil, problems
	}
	if err := dec.Decode(new(accountsFile)); !errors.Is(err, io.EOF) {
		problem("%s holds more than one YAML document; keep the first", file)
	}
	if len(parsed.Accounts) == 0 {
		problem("%s names no account; list at least one under accounts", file)
	}
	var accounts []upstream.Account
	names, shops := map[string]bool{}, map[string]string{}
	for i, e := range parsed.Accounts {
		who := fmt.Sprintf("account %q", e.Name)
		switch {
		case e.Name == "":
			who = fmt.Sprintf("account number %d", i+1)
			problem("%s has no name", who)
		case !accountName.MatchString(e.Name):
			problem("%s: a name has 1 to 64 letters, digits, '.', '_' or '-'", who)
		case names[e.Name]:
			problem("%s is there twice", who)
		}
		names[e.Name] = true
		a := upstream.Account{Name: e.Name, TokenFile: e.TokenFile, Shops: e.Shops, OmniChannelShops: e.OmniChannelShops}
		if e.TokenFile == "" {
			problem("%s has no token_file", who)
		} else if _, err := readSecret(e.TokenFile); err != nil {
			problem("%s: token_file %v", who, err)
		}
		if e.RatePerSecond != nil {
			a.RatePerSecond = *e.RatePerSecond
			if !validRate(a.RatePerSecond) {
				problem("%s: rate_per_second must be from %g to %g", who, minRate, maxRate)
			}
		}
		if e.VVType != nil {
			a.VVType = *e.VVType
			if a.VVType < 1 || a.VVType > 4 {
				problem("%s: vvtype must be from 1 to 4", who)
			}
		}
		if b := e.Balance; b != nil {
			switch {
			case b.Points == nil || *b.Points < 0 || b.At.IsZero():
				problem("%s: balance needs points, from 0, and at, the time at which there were so many", who)
			case time.Until(b.At) > time.Hour:
				problem("%s: balance is of %s, which is yet to come", who, b.At.Format(time.RFC3339))
			default:
				a.Balance = &upstream.Balance{Points: *b.Points, At: b.At}
			}
		}
		for _, shop := range e.Shops {
			if !schema.ValidShopID(shop) {
				problem("%s: shop %q is not 1 to 64 letters, digits, _ or -", who, shop)
			}
			if other, ok := shops[shop]; ok {
				problem("%s: shop %q is also in %s; it belongs to one account", who, shop, other)
				continue
			}
			shops[shop] = who
		}
		accounts = append(accounts, a)
	}
	return accounts, problems
}

// accounts returns the accounts that the settings name, each with a rate.
func (s *Settings) accounts() ([]upstream.Account, []Problem) {
	var list []upstream.Account
	var problems []Problem
	if s.AccountsFile != "" {
		list, problems = ReadAccounts(s.AccountsFile)
	}
	named := slices.ContainsFunc(list, func(a upstream.Account) bool { return a.Name == upstream.DefaultAccount })
	switch token := s.UpstreamToken != "" || s.UpstreamTokenFile != ""; {
	case token && named:
		problems = append(problems, Problem{
			variable("ACCOUNTS_FILE"),
			"has an account named default, which " + variable("UPSTREAM_TOKEN") + " makes too; leave one of them out",
		})
	case token:
		list = append(list, upstream.Account{
			Name: upstream.DefaultAccount, Token: s.UpstreamToken.Reveal(), TokenFile: s.UpstreamTokenFile,
		})
	case s.Given("UNKNOWN_SHOP") && s.UnknownShop == upstream.DefaultAccount && len(list) > 1 && !named:
		problems = append(problems, Problem{
			variable("UNKNOWN_SHOP"),
			"is default but no account has that name; add it to the accounts file or set " + variable("UPSTREAM_TOKEN"),
		})
	}
	problems = append(problems, sharedTokens(list)...)
	problems = append(problems, s.strayShops(list)...)
	for i := range list {
		if list[i].RatePerSecond == 0 {
			list[i].RatePerSecond = s.RatePerSecond
		}
		if list[i].VVType == 0 {
			list[i].VVType = s.UpstreamVvtype
		}
	}
	return list, problems
}

// strayShops finds omni-channel shops that are listed with an account that does
// not call for them.
func (s *Settings) strayShops(list []upstream.Account) []Problem {
	var problems []Problem
	owners := map[string]string{}
	for _, a := range list {
		for _, shop := range a.Shops {
			owners[shop] = a.Name
		}
	}
	for _, a := range list {
		fallback := s.UnknownShop == string(upstream.UnknownDefault) && (a.Name == upstream.DefaultAccount || len(list) == 1)
		for _, shop := range a.OmniChannelShops {
			var what string
			switch owner, listed := owners[shop]; {
			case listed && owner != a.Name:
				what = fmt.Sprintf("is a shop of account %q; list it in omni_channel_shops there", owner)
			case !schema.ValidShopID(shop):
				what = "is not 1 to 64 letters, digits, _ or -"
			case !listed && !fallback:
				what = "is none of its shops; add it to shops"
			default:
				continue
			}
			problems = append(problems, Problem{variable("ACCOUNTS_FILE"), OneLine(fmt.Sprintf("has account %q whose omni-channel shop %q %s", a.Name, shop, what))})
		}
	}
	return problems
}

// sharedTokens finds accounts with one token. The API counts calls by it, so that
// their rates would add up to more than it allows. Files that cannot be read are
// complained of elsewhere.
func sharedTokens(list []upstream.Account) []Problem {
	var problems []Problem
	holders := map[Secret]upstream.Account{}
	for _, a := range list {
		token := Secret(a.Token)
		if a.TokenFile != "" {
			token, _ = readSecret(a.TokenFile)
		}
		if token == "" {
			continue
		}
		other, taken := holders[token]
		if !taken {
			holders[token] = a
			continue
		}
		same := "the same token"
		if a.TokenFile != "" && a.TokenFile == other.TokenFile {
			same = "the same token_file " + a.TokenFile
		}
		problems = append(problems, Problem{variable("ACCOUNTS_FILE"), fmt.Sprintf(
			"has accounts %q and %q with %s, so the API would be called at the sum of their rates; give each its own token, or put the shops into one account",
			other.Name, a.Name, same)})
	}
	return problems
}
