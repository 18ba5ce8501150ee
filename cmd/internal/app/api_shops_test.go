package app

import (
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"packship/schema"
	"packship/upstream/upstreamtest"
)

// TestUnknownShop sends an order of a shop in no account under each setting.
func TestUnknownShop(t *testing.T) {
	const stranger, northToken = "999", "north-token"
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	north := fmt.Sprintf("  - {name: north, token_file: %s, shops: [%q]}\n", file("north", northToken), testShop)
	south := fmt.Sprintf("  - {name: south, token_file: %s}\n", file("south", "south-token"))
	for name, tt := range map[string]struct {
		setting, accounts string
		token             string // of the account default, if there is one
		calledWith        string // the token of the stranger's call
		rule              string
		skipped           bool
	}{
		"default":                      {"default", north, testToken, testToken, "", false},
		"default, only account":        {"default", north, "", northToken, "", false},
		"default, nobody has the name": {"default", north + south, "", "", "V02", false},
		"fail":                         {"fail", north, testToken, "", "V02", false},
		"skip":                         {"skip", north, testToken, "", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, upstreamtest.Options{
				Latency: quick, Accounts: []upstreamtest.Account{{Name: "north", Token: northToken}},
			}, func(s *Settings) {
				s.UnknownShop, s.UpstreamToken = tt.setting, Secret(tt.token)
				s.AccountsFile = filepath.Join(t.TempDir(), "accounts.yaml")
				if err := os.WriteFile(s.AccountsFile, []byte("accounts:\n"+tt.accounts), 0o600); err != nil {
					t.Fatal(err)
				}
			})
			w.produce(order(1, ""), strings.Replace(order(2, ""), testShop, stranger, 1))
			r := w.start()
			w.committed()
			var tokens []string
			for _, e := range w.sim.Journal().CallsOfOrder("2") {
				tokens = append(tokens, e.Token)
			}
			if want := slices.DeleteFunc([]string{tt.calledWith}, func(s string) bool { return s == "" }); !slices.Equal(tokens, want) {
				t.Errorf("calls for the stranger with tokens %q, want %q", tokens, want)
			}
			if own := w.sim.Journal().CallsOfOrder("1"); len(own) != 1 || own[0].Token != northToken {
				t.Errorf("calls for the known shop: %+v, want one of its account", own)
			}
			failed := w.read(w.settings.TopicFailed)
			if (len(failed) == 1) != (tt.rule != "") {
				t.Fatalf("%d failed, want a violation of %q", len(failed), tt.rule)
			}
			if tt.rule != "" {
				got := result(t, failed[0])
				if got.TID != "2" || got.Reason != "local_validation" || len(got.Violations) != 1 || got.Violations[0].Rule != tt.rule {
					t.Errorf("got %+v, want rule %s", got.Failure, tt.rule)
				}
			}
			if n, _ := r.value("packship_events_finished_total", "topic="+w.settings.TopicPacked, "verdict=skipped"); (n == 1) != tt.skipped {
				t.Errorf("skipped: want %t in the metric", tt.skipped)
			}
			shipped := 1
			if tt.calledWith != "" {
				shipped = 2
			}
			if got := len(w.read(w.settings.TopicShipped)); got != shipped {
				t.Errorf("%d shipped, want %d", got, shipped)
			}
		})
	}
}

// TestRowsOfTheSimulator has the simulated API say each row of the answer table
// in each style. Its texts come from a table of its own; what is made of them is
// held to that of package upstream.
func TestRowsOfTheSimulator(t *testing.T) {
	file, err := os.Open(filepath.Join("..", "..", "..", "upstream", "codes.csv"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	rows, err := csv.NewReader(file).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 61 {
		t.Fatalf("%d lines, want a heading and 60 rows", len(rows))
	}
	actions := map[string]schema.Action{
		"succeed": schema.ActSucceed, "fail": schema.ActFail, "reconcile": schema.ActReconcile, "retry": schema.ActRetry, "retry_once": schema.ActRetry,
		"halt_account": schema.ActHold, "park_shop": schema.ActHold,
	}
	for _, style := range []upstreamtest.MessageStyle{upstreamtest.MessagesDoc, upstreamtest.MessagesTop, upstreamtest.MessagesSubCode} {
		for _, raw := range []bool{false, true} {
			for _, row := range rows[1:] {
				n, err := strconv.Atoi(row[0])
				if err != nil {
					t.Fatal(err)
				}
				got := answerOf(t, upstreamtest.Options{
					Switches: upstreamtest.Switches{Messages: style, RawChinese: raw},
					Faults:   []upstreamtest.Fault{{Kind: upstreamtest.AnyRow(n)}},
				}, `,"sender_id":"5"`)
				if got.Reason != row[3] || got.Class != row[4] || got.Action != actions[row[5]] || !got.Answered {
					t.Errorf("row %d, style %s, raw %t: got %s of class %s, action %d, for %+v; want %s, %s, %s", n, style, raw, got.Reason, got.Class, got.Action, got.Exchange, row[3], row[4], row[5])
				}
			}
		}
	}
}
