package upstreamtest_test

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"packship/upstream/upstreamtest"
)

func load(t *testing.T, yaml string) upstreamtest.Options {
	t.Helper()
	opts, err := upstreamtest.LoadScenario(strings.NewReader(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return opts
}

func TestScenarioDefaults(t *testing.T) {
	for _, yaml := range []string{"", "\n", "# nothing\n", "{}"} {
		if diff := cmp.Diff(upstreamtest.Defaults(), load(t, yaml)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", yaml, diff)
		}
	}
	got := load(t, "auto_create: true\nlatency: {factor: 0.01}\nrate: {window: leaky}\n")
	want := upstreamtest.Defaults()
	want.AutoCreate, want.Latency.Factor, want.Rate.Window = true, 0.01, upstreamtest.LeakyBucket
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what is left out (-want +got):\n%s", diff)
	}
}

// TestScenarioIDs: an id need not be quoted to keep its digits.
func TestScenarioIDs(t *testing.T) {
	opts := load(t, "shops: [{id: 123456789}]\ntrades: [{shop: 123456789, tid: 2345678901234567891}]\n")
	if got := opts.Trades[0].TID; got != "2345678901234567891" {
		t.Errorf("got tid %s", got)
	}
}

func TestScenarioErrors(t *testing.T) {
	tests := map[string]struct{ yaml, want string }{
		"not YAML":          {"a: [", "yaml"},
		"misspelt field":    {"acounts: []", "acounts"},
		"misspelt inside":   {"accounts: [{nam: a}]", "nam"},
		"bad duration":      {"latency: {fixed: 3 parsecs}", "parsecs"},
		"p99 below median":  {"latency: {median: 5s}", "p99"},
		"bad window":        {"rate: {window: round}", "round"},
		"negative rate":     {"rate: {per_second: -1}", "per_second"},
		"bad fault":         {"faults: [{kind: explode}]", "explode"},
		"bad script":        {"scripts: [{steps: [{kind: explode}]}]", "explode"},
		"bad outage":        {"outages: [{from: 5s, to: 3s, mode: refusing}]", "ends after"},
		"bad outage mode":   {"outages: [{from: 1s, to: 3s, mode: gone}]", "gone"},
		"bad status":        {"trades: [{shop: S, tid: 1, status: SHIPPED}]", "SHIPPED"},
		"bad kind":          {"trades: [{shop: S, tid: 1, kind: odd}]", "odd"},
		"bad tid":           {"trades: [{shop: S, tid: x1}]", "x1"},
		"bad oid":           {"trades: [{shop: S, tid: 1, items: [{oid: a}]}]", "oid"},
		"bad part":          {"trades: [{shop: S, tid: 1, parcels: [{sub_tids: [a]}]}]", "part"},
		"bad parcel state":  {"trades: [{shop: S, tid: 1, parcels: [{state: LOST}]}]", "LOST"},
		"bad pattern":       {"carriers: [{code: X, pattern: '('}]", "pattern of carrier X"},
		"carrier, no code":  {"carriers: [{name: X}]", "code"},
		"waybill, no sid":   {"waybills: [{company: SF}]", "out_sid"},
		"account, no name":  {"accounts: [{token: x}]", "name"},
		"account, endpoint": {"accounts: [{name: x, denied: [all]}]", "all"},
		"shop, no id":       {"shops: [{seller: x}]", "id"},
		"switch, row":       {"switches: {closed_row: 13}", "closed_row"},
		"switch, rows":      {"switches: {shipped_rows: [15, 16]}", "16"},
		"switch, style":     {"switches: {messages: loud}", "loud"},
		"negative limit":    {"journal_limit: -1", "journal_limit"},
		"two at once":       {"price: -1\nfaults: [{kind: explode}]", "explode"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := upstreamtest.LoadScenario(strings.NewReader(tt.yaml))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error about %s", err, tt.want)
			}
		})
	}
}

// fullScenario uses every field of a scenario file.
const fullScenario = `
seed: 7
auto_create: true
latency: {fixed: 20ms, median: 1s, p99: 2s, factor: 0.5}
rate: {per_second: 5, window: fixed, scope: account, answer: code429, count_refused: true, retry_after: true}
switches:
  accept_urlencoded: true
  not_found: yii
  error_data: object
  messages: top
  raw_chinese: true
  missing_trade_row: 47
  foreign_trade_row: 54
  closed_row: 26
  on_hold_row: 14
  split_missing_row: 41
  shipped_rows: [23, 58]
  repeated_part_rows: [50]
  waybill_first: true
  split_once: true
  allow_repeats: true
  any_carrier: true
  charge_on: platform
  show_charge: true
  bind_token_ip: true
price: 2
accounts:
  - {name: north, token: abc, token_ip: 127.0.0.1, token_expires: 2030-01-01T00:00:00Z, client_id: id, secret: s, balance: 100, denied: [detail], vvtypes: [1, 2]}
shops:
  - {id: "1", account: north, seller: nick, platform: tmall, unauthorised: true, session_expired: true, no_default_address: true, address_book: ["7"], omni_channel: true, subscriptions: [ESB]}
trades:
  - shop: "1"
    tid: "2345678901234567891"
    status: SELLER_CONSIGNED_PART
    kind: normal
    items: [{oid: "11", quantity: 2}, {oid: "12", refunded: true}]
    paid_at: 2026-11-24T01:00:00Z
    receiver: r
    sender: s
    suspect: true
    out_of_range: true
    parcels:
      - {id: P1, sub_tids: ["11"], state: SENT, out_sid: SF1, company: SF, by_hand: true}
      - {id: P2, sub_tids: ["12"], state: CLOSED}
waybills:
  - {company: SF, out_sid: SF1, receiver: r, used: true, fake: true, expired: true, collected_at: 2026-11-24T02:00:00Z, signed_by: q}
carriers:
  - {code: ESB, name: E速宝, pattern: "^E[0-9]+$", disabled: true, removed: true, not_self_contact: true, needs_subscription: true}
faults:
  - kind: http_502
    tid: "1*"
    shop: S?
    token: a*
    endpoint: detail
    nth: 2
    every: 3
    probability: 0.25
    count: 4
    apply: false
    delay: 1s
    text: t
    code: 5
    status: 418
    headers: {Retry-After: "3"}
    body: b
    size: 100
    location: http://x.test/
scripts:
  - {tid: "1", shop: S, loop: true, steps: [{kind: none}, {kind: any_row(53), apply: true}]}
outages:
  - {from: 1h, to: 2h, mode: unavailable}
journal_limit: 1000
trade_limit: 2000
idle_timeout: 5s
no_control: true
`

// TestDumpIsAScenario: a state that is dumped, written, read and dumped again
// is the same.
func TestDumpIsAScenario(t *testing.T) {
	tests := map[string]upstreamtest.Options{
		"empty":        {},
		"defaults":     upstreamtest.Defaults(),
		"closed world": closedWorld(),
		"everything":   load(t, fullScenario),
	}
	for name, opts := range tests {
		t.Run(name, func(t *testing.T) {
			sim := open(t, opts)
			if name == "closed world" {
				wantRow(t, send(t, sim, good.with("is_split", "1", "sub_tid", "11")), 1)
				if err := sim.Refund("S1", "1001", "12"); err != nil {
					t.Fatal(err)
				}
			}
			want := sim.Dump()
			var file bytes.Buffer
			if err := upstreamtest.WriteScenario(&file, want); err != nil {
				t.Fatal(err)
			}
			again, err := upstreamtest.LoadScenario(&file)
			if err != nil {
				t.Fatal(err)
			}
			got := open(t, again).Dump()
			ignore := cmpopts.IgnoreUnexported(upstreamtest.Carrier{}, upstreamtest.Account{}, upstreamtest.Parcel{})
			if diff := cmp.Diff(want, got, ignore, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestFullScenarioIsRead: every field of the file arrives, none is ignored.
func TestFullScenarioIsRead(t *testing.T) {
	opts := load(t, fullScenario)
	var file bytes.Buffer
	if err := upstreamtest.WriteScenario(&file, opts); err != nil {
		t.Fatal(err)
	}
	// Each name of the file is written again: it was not left at its zero value.
	for line := range strings.Lines(fullScenario) {
		for _, word := range strings.FieldsFunc(line, func(r rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz_", r) }) {
			if strings.Contains(line, word+":") && !strings.Contains(file.String(), word+":") {
				// A parameter whose value is its zero value is left out.
				if word != "http" {
					t.Errorf("%s is lost", word)
				}
			}
		}
	}
	if opts.Faults[0].Delay != time.Second || *opts.Faults[0].Apply || *opts.Accounts[0].Balance != 100 {
		t.Errorf("got %+v", opts.Faults[0])
	}
}

// TestManualsExamples: the scenario files in the manual work.
func TestManualsExamples(t *testing.T) {
	manual, err := os.ReadFile("../../docs/simulator.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := 0
	for _, block := range strings.Split(string(manual), "```yaml\n")[1:] {
		yaml, _, _ := strings.Cut(block, "```")
		opts, err := upstreamtest.LoadScenario(strings.NewReader(yaml))
		if err != nil {
			t.Errorf("%v, in:\n%s", err, yaml)
			continue
		}
		open(t, opts)
		examples++
	}
	if examples < 2 {
		t.Errorf("the manual has %d examples", examples)
	}
	// What can be chosen is in the manual.
	for _, kind := range []upstreamtest.FaultKind{
		upstreamtest.Slow, upstreamtest.ApplyThenHang, upstreamtest.HangThenApply, upstreamtest.ApplyThenReset, upstreamtest.Hang, upstreamtest.ResetBeforeRead,
		upstreamtest.ResetAfterRead, upstreamtest.HTML200, upstreamtest.Empty200, upstreamtest.Yii200, upstreamtest.Raw, upstreamtest.TruncatedJSON,
		upstreamtest.CutOff, upstreamtest.TrailingComma, upstreamtest.StringTypes, upstreamtest.HugeBody, upstreamtest.SlowDrip,
		upstreamtest.SuccessFalse, upstreamtest.DataEmpty, upstreamtest.NoData, upstreamtest.FlowControl, upstreamtest.Code,
		upstreamtest.TokenDisplaced, upstreamtest.BalanceZero, upstreamtest.ShopUnauthorised, upstreamtest.None,
		"http_NNN", "yii_code0_NNN", "redirect_NNN", "any_row(N)",
	} {
		if !strings.Contains(string(manual), "`"+string(kind)+"`") {
			t.Errorf("the manual does not have the fault %s", kind)
		}
	}
	for line := range strings.Lines(fullScenario) {
		name, _, ok := strings.Cut(strings.Trim(line, " -{\n"), ":")
		if ok && !strings.ContainsAny(name, " \"") && !strings.Contains(string(manual), name) {
			t.Errorf("the manual does not have the field %s", name)
		}
	}
}

func FuzzScenario(f *testing.F) {
	f.Add(fullScenario)
	f.Add("auto_create: true")
	f.Add("a: &a [*a]")
	f.Fuzz(func(t *testing.T, yaml string) {
		opts, err := upstreamtest.LoadScenario(strings.NewReader(yaml))
		if err != nil {
			return
		}
		sim := upstreamtest.New(opts)
		var file bytes.Buffer
		if err := upstreamtest.WriteScenario(&file, sim.Dump()); err != nil {
			t.Fatal(err)
		}
		if _, err := upstreamtest.LoadScenario(&file); err != nil {
			t.Errorf("what is dumped is not valid: %v", err)
		}
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	})
}
