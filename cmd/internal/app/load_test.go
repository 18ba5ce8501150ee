package app

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// clearEnv hides the variables of packship that the test's own environment may
// have.
func clearEnv(t *testing.T) {
	t.Helper()
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, Prefix+"_") && !strings.HasPrefix(name, Prefix+"_TEST_") {
			t.Setenv(name, "")
		}
	}
}

func setEnv(t *testing.T, env map[string]string) {
	t.Helper()
	clearEnv(t)
	for name, value := range env {
		t.Setenv(Prefix+"_"+name, value)
	}
}

func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDefaults holds the names and defaults of the settings to the contract with
// the users.
func TestDefaults(t *testing.T) {
	want := map[string]string{
		"KAFKA_BROKERS": "", "KAFKA_GROUP_ID": "packship", "KAFKA_CLIENT_ID": "packship",
		"KAFKA_TLS": "off", "KAFKA_TLS_CA_FILE": "", "KAFKA_TLS_CERT_FILE": "", "KAFKA_TLS_KEY_FILE": "",
		"KAFKA_SASL_MECHANISM": "", "KAFKA_SASL_USERNAME": "", "KAFKA_SASL_PASSWORD": "", "KAFKA_SASL_PASSWORD_FILE": "",
		"KAFKA_START": "first", "KAFKA_SESSION_TIMEOUT": "10s", "KAFKA_REBALANCE_TIMEOUT": "30s",
		"TOPIC_PACKED": "erp.order.packed.v1", "TOPIC_SHIPPED": "erp.order.shipped.v1",
		"TOPIC_FAILED": "erp.order.shipment-failed.v1", "TOPIC_DLQ": "erp.order.packed.dlq.v1", "TOPIC_LEDGER": "packship.ledger.v1",
		"ASSIGNMENT":   "single",
		"UPSTREAM_URL": "http://api.vv-tool.com/tool/erps/send", "UPSTREAM_TOKEN": "", "UPSTREAM_TOKEN_FILE": "",
		"UPSTREAM_TIMEOUT": "15s", "UPSTREAM_SETTLE": "30s", "UPSTREAM_VVTYPE": "", "ACCOUNTS_FILE": "", "UNKNOWN_SHOP": "default",
		"RATE_PER_SECOND": "10", "RATE_JITTER": "15ms", "MAX_IN_FLIGHT": "64", "BREAKER_FAILURES": "5", "BREAKER_OPEN_FOR": "30s",
		"RETRY_MAX": "3", "RETRY_BACKOFF": "1s", "RETRY_BACKOFF_MAX": "30s",
		"UNKNOWN_POLICY": "reconcile", "WAYBILL_CHECK": "warn", "CARRIERS_FILE": "",
		"LEDGER_PARTITIONS": "8", "LEDGER_HORIZON": "168h",
		"HTTP_ADDR": ":8080", "ADMIN_TOKEN": "", "ADMIN_TOKEN_FILE": "", "LOG_LEVEL": "info", "LOG_FORMAT": "json", "SHUTDOWN_TIMEOUT": "30s",
	}
	clearEnv(t)
	settings, _ := Load(PartAll)
	got := map[string]string{}
	for _, e := range settings.Entries() {
		got[strings.TrimPrefix(e.Name, "PACKSHIP_")] = e.Default
		if len(e.Meaning) < 10 {
			t.Errorf("%s: meaning is %q", e.Name, e.Meaning)
		}
		if e.Given || e.Value != e.Default {
			t.Errorf("%s in an empty environment: given %t, value %q", e.Name, e.Given, e.Value)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

// TestLoadReadsEveryField sets every variable to something other than its
// default and looks for it in the settings.
func TestLoadReadsEveryField(t *testing.T) {
	token := writeFile(t, "token", "t0ken\n")
	password := writeFile(t, "password", "s3cret\n")
	setEnv(t, map[string]string{
		"KAFKA_BROKERS": " k1:9092, k2:9093 ,", "KAFKA_GROUP_ID": "g", "KAFKA_CLIENT_ID": "c", "KAFKA_TLS": "On",
		"KAFKA_SASL_MECHANISM": "scram-sha-512", "KAFKA_SASL_USERNAME": "u", "KAFKA_SASL_PASSWORD_FILE": password,
		"KAFKA_START": "last", "KAFKA_SESSION_TIMEOUT": "6s", "KAFKA_REBALANCE_TIMEOUT": "20s",
		"TOPIC_PACKED": "a", "TOPIC_SHIPPED": "b", "TOPIC_FAILED": "c", "TOPIC_DLQ": "d", "TOPIC_LEDGER": "e",
		"ASSIGNMENT":   "Spread",
		"UPSTREAM_URL": "https://api.example.com/send", "UPSTREAM_TOKEN_FILE": token, "UPSTREAM_TIMEOUT": "2s",
		"UPSTREAM_SETTLE": "3s", "UPSTREAM_VVTYPE": "4", "UNKNOWN_SHOP": "fail", "RATE_PER_SECOND": "0.5", "RATE_JITTER": "1ms",
		"MAX_IN_FLIGHT": "7", "BREAKER_FAILURES": "2", "BREAKER_OPEN_FOR": "1s", "RETRY_MAX": "0", "RETRY_BACKOFF": "10ms",
		"RETRY_BACKOFF_MAX": "20ms", "UNKNOWN_POLICY": "park", "WAYBILL_CHECK": "strict", "LEDGER_PARTITIONS": "3",
		"LEDGER_HORIZON": "1h", "HTTP_ADDR": "127.0.0.1:0", "ADMIN_TOKEN": "admin", "LOG_LEVEL": "debug", "LOG_FORMAT": "text",
		"SHUTDOWN_TIMEOUT": "5s",
	})
	t.Setenv("OTEL_TRACES_EXPORTER", "otlp")
	t.Setenv("OTEL_METRICS_EXPORTER", "none")
	got, err := Load(PartAll)
	if err != nil {
		t.Fatal(err)
	}
	got.given = nil
	want := Settings{
		KafkaBrokers: List{"k1:9092", "k2:9093"}, KafkaGroupID: "g", KafkaClientID: "c", KafkaTLS: true,
		KafkaSASLMechanism: "SCRAM-SHA-512", KafkaSASLUsername: "u", KafkaSASLPasswordFile: password,
		KafkaStart: "last", KafkaSessionTimeout: 6 * time.Second, KafkaRebalanceTimeout: 20 * time.Second,
		TopicPacked: "a", TopicShipped: "b", TopicFailed: "c", TopicDLQ: "d", TopicLedger: "e", Assignment: "spread",
		UpstreamURL: "https://api.example.com/send", UpstreamTokenFile: token, UpstreamTimeout: 2 * time.Second,
		UpstreamSettle: 3 * time.Second, UpstreamVvtype: 4, UnknownShop: "fail", RatePerSecond: 0.5, RateJitter: time.Millisecond,
		MaxInFlight: 7, BreakerFailures: 2, BreakerOpenFor: time.Second, RetryMax: 0, RetryBackoff: 10 * time.Millisecond,
		RetryBackoffMax: 20 * time.Millisecond, UnknownPolicy: "park", WaybillCheck: "strict", LedgerPartitions: 3,
		LedgerHorizon: time.Hour, HTTPAddr: "127.0.0.1:0", AdminToken: "admin", LogLevel: "debug", LogFormat: "text",
		ShutdownTimeout: 5 * time.Second, signals: signals{traces: transferHTTP, tracesHere: true},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Settings{}, signals{})); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	if got, want := got.StartBy(), 3*time.Second; got != want {
		t.Errorf("start by: got %s, want %s", got, want)
	}
}

// TestLoadIgnoresNamesWithoutPrefix guards against envconfig's fallback.
func TestLoadIgnoresNamesWithoutPrefix(t *testing.T) {
	setEnv(t, map[string]string{"KAFKA_BROKERS": "k:1", "UPSTREAM_TOKEN": "t"})
	t.Setenv("LOG_LEVEL", "debug")
	t.Setenv("HTTP_ADDR", ":1")
	s, err := Load(PartAll)
	if err != nil {
		t.Fatal(err)
	}
	if s.LogLevel != "info" || s.HTTPAddr != ":8080" {
		t.Errorf("got log level %s and address %s from variables that are not ours", s.LogLevel, s.HTTPAddr)
	}
}

func TestEmptyVariableIsUnset(t *testing.T) {
	setEnv(t, map[string]string{
		"KAFKA_BROKERS": "k:1", "UPSTREAM_TOKEN": "t", "UPSTREAM_TIMEOUT": "", "RATE_PER_SECOND": "", "KAFKA_TLS": "", "KAFKA_GROUP_ID": "",
	})
	s, err := Load(PartAll)
	if err != nil {
		t.Fatal(err)
	}
	if s.UpstreamTimeout != 15*time.Second || s.RatePerSecond != 10 || s.KafkaGroupID != "packship" {
		t.Errorf("got %s, %v, %q; want the defaults", s.UpstreamTimeout, s.RatePerSecond, s.KafkaGroupID)
	}
}

func TestProblems(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing")
	empty := writeFile(t, "empty", "\n")
	accounts := writeFile(t, "accounts.yaml", "accounts:\n  - name: default\n    token_file: "+writeFile(t, "tok", "x")+"\n")
	token := writeFile(t, "token", "t\n")
	authorities := writeFile(t, "ca.pem", string(newAuthority(t).pem))
	account := func(name, file, more string) string {
		return "  - name: " + name + "\n    token_file: " + file + "\n" + more
	}
	list := func(accounts ...string) string {
		return writeFile(t, "list.yaml", "accounts:\n"+strings.Join(accounts, ""))
	}
	tests := map[string]struct {
		env  map[string]string
		want []string // each a regular expression that one problem matches, and no other problems
	}{
		"unset": {
			map[string]string{"KAFKA_BROKERS": "", "UPSTREAM_TOKEN": ""},
			[]string{"KAFKA_BROKERS is not set", "UPSTREAM_TOKEN is not set"},
		},
		"unparsable": {
			map[string]string{
				"KAFKA_SESSION_TIMEOUT": "10", "RATE_PER_SECOND": "ten", "MAX_IN_FLIGHT": "1.5", "KAFKA_TLS": "maybe", "LEDGER_HORIZON": "7d",
			},
			[]string{
				"KAFKA_SESSION_TIMEOUT is not a duration", "RATE_PER_SECOND is not a number", "MAX_IN_FLIGHT is not a whole number",
				"KAFKA_TLS must be on or off", "LEDGER_HORIZON is not a duration",
			},
		},
		"out of range": {
			map[string]string{
				"KAFKA_SESSION_TIMEOUT": "5s", "KAFKA_REBALANCE_TIMEOUT": "1ms", "RATE_PER_SECOND": "0", "RATE_JITTER": "-1ms", "MAX_IN_FLIGHT": "0",
				"BREAKER_FAILURES": "0", "BREAKER_OPEN_FOR": "0s", "RETRY_MAX": "-1", "RETRY_BACKOFF": "0s", "LEDGER_PARTITIONS": "0",
				"UPSTREAM_VVTYPE": "5", "UPSTREAM_TIMEOUT": "0s", "UPSTREAM_SETTLE": "-1s", "SHUTDOWN_TIMEOUT": "0s",
			},
			[]string{
				"KAFKA_SESSION_TIMEOUT is 5s but must be at least 6s", "KAFKA_REBALANCE_TIMEOUT", "RATE_PER_SECOND is 0", "RATE_JITTER", "MAX_IN_FLIGHT",
				"BREAKER_FAILURES", "BREAKER_OPEN_FOR", "RETRY_MAX", "RETRY_BACKOFF ", "LEDGER_PARTITIONS", "UPSTREAM_VVTYPE is 5", "UPSTREAM_TIMEOUT",
				"UPSTREAM_SETTLE", "SHUTDOWN_TIMEOUT",
			},
		},
		"no rate":          {map[string]string{"RATE_PER_SECOND": "NaN"}, []string{"RATE_PER_SECOND is NaN"}},
		"boundless rate":   {map[string]string{"RATE_PER_SECOND": "+Inf"}, []string{`RATE_PER_SECOND is \+Inf`}},
		"vvtype 0":         {map[string]string{"UPSTREAM_VVTYPE": "0"}, []string{"UPSTREAM_VVTYPE is 0"}},
		"session at floor": {map[string]string{"KAFKA_SESSION_TIMEOUT": "6s"}, nil},
		"unknown words": {
			map[string]string{
				"KAFKA_START": "middle", "UNKNOWN_SHOP": "guess", "UNKNOWN_POLICY": "hope", "WAYBILL_CHECK": "x", "LOG_LEVEL": "loud",
				"LOG_FORMAT": "xml", "ASSIGNMENT": "both",
			},
			[]string{
				"KAFKA_START is \"middle\" but must be one of first, last", "UNKNOWN_SHOP", "UNKNOWN_POLICY", "WAYBILL_CHECK", "LOG_LEVEL", "LOG_FORMAT",
				"ASSIGNMENT is \"both\"",
			},
		},
		"urls": {
			map[string]string{"UPSTREAM_URL": "api.example.com/send"},
			[]string{"UPSTREAM_URL is not an absolute http or https URL"},
		},
		"url scheme": {map[string]string{"UPSTREAM_URL": "ftp://a/b"}, []string{"UPSTREAM_URL is not an absolute"}},
		"url user":   {map[string]string{"UPSTREAM_URL": "http://u:p@a/b"}, []string{"UPSTREAM_URL has a user"}},
		"brokers": {
			map[string]string{"KAFKA_BROKERS": "k1:9092,k2,:3,k4:x,k5:0"},
			[]string{`KAFKA_BROKERS has "k2"`, `KAFKA_BROKERS has ":3"`, `KAFKA_BROKERS has "k4:x"`, `KAFKA_BROKERS has "k5:0"`},
		},
		"secret and file": {
			map[string]string{"UPSTREAM_TOKEN": "a", "UPSTREAM_TOKEN_FILE": empty, "ADMIN_TOKEN": "a", "ADMIN_TOKEN_FILE": empty},
			[]string{"UPSTREAM_TOKEN and PACKSHIP_UPSTREAM_TOKEN_FILE are both set", "ADMIN_TOKEN and PACKSHIP_ADMIN_TOKEN_FILE are both set"},
		},
		"files": {
			map[string]string{"UPSTREAM_TOKEN": "", "UPSTREAM_TOKEN_FILE": missing, "ADMIN_TOKEN_FILE": empty, "CARRIERS_FILE": missing},
			[]string{"UPSTREAM_TOKEN_FILE cannot be read", "ADMIN_TOKEN_FILE names .*, which is empty", "CARRIERS_FILE cannot be read"},
		},
		"token with white space": {map[string]string{"UPSTREAM_TOKEN": "a b"}, []string{"UPSTREAM_TOKEN has white space"}},
		"tls files without tls": {
			map[string]string{"KAFKA_TLS_CA_FILE": missing, "KAFKA_TLS_CERT_FILE": missing, "KAFKA_TLS_KEY_FILE": missing},
			[]string{"KAFKA_TLS_CA_FILE is set but PACKSHIP_KAFKA_TLS is off", "KAFKA_TLS_CERT_FILE is set but", "KAFKA_TLS_KEY_FILE is set but"},
		},
		"tls unparsable": {
			map[string]string{"KAFKA_TLS": "maybe", "KAFKA_TLS_CA_FILE": authorities},
			[]string{"KAFKA_TLS must be on or off"},
		},
		"tls unparsable, and a file": {
			map[string]string{"KAFKA_TLS": "maybe", "KAFKA_TLS_CA_FILE": missing},
			[]string{"KAFKA_TLS must be on or off", "KAFKA_TLS_CA_FILE cannot be read"},
		},
		"tls files": {
			map[string]string{"KAFKA_TLS": "on", "KAFKA_TLS_CA_FILE": empty, "KAFKA_TLS_CERT_FILE": missing},
			[]string{"KAFKA_TLS_CA_FILE names .* no PEM certificate", "KAFKA_TLS_CERT_FILE and PACKSHIP_KAFKA_TLS_KEY_FILE belong together"},
		},
		"neither tls certificate nor key": {
			map[string]string{"KAFKA_TLS": "on", "KAFKA_TLS_CERT_FILE": missing, "KAFKA_TLS_KEY_FILE": missing},
			[]string{"KAFKA_TLS_CERT_FILE cannot be read", "KAFKA_TLS_KEY_FILE cannot be read"},
		},
		"tls key that is none": {
			map[string]string{"KAFKA_TLS": "on", "KAFKA_TLS_CERT_FILE": authorities, "KAFKA_TLS_KEY_FILE": empty},
			[]string{"KAFKA_TLS_CERT_FILE cannot be used with its key"},
		},
		"sasl without mechanism": {
			map[string]string{"KAFKA_SASL_USERNAME": "u", "KAFKA_SASL_PASSWORD": "p"},
			[]string{"KAFKA_SASL_USERNAME is set but PACKSHIP_KAFKA_SASL_MECHANISM is not", "KAFKA_SASL_PASSWORD is set but"},
		},
		"sasl without user": {
			map[string]string{"KAFKA_SASL_MECHANISM": "PLAIN"},
			[]string{"KAFKA_SASL_USERNAME is not set", "KAFKA_SASL_PASSWORD is not set"},
		},
		"sasl mechanism": {
			map[string]string{"KAFKA_SASL_MECHANISM": "GSSAPI", "KAFKA_SASL_USERNAME": "u", "KAFKA_SASL_PASSWORD": "p"},
			[]string{`KAFKA_SASL_MECHANISM is "GSSAPI"`},
		},
		"topics": {
			map[string]string{"TOPIC_SHIPPED": "erp.order.packed.v1", "TOPIC_FAILED": "no/slash"},
			[]string{"TOPIC_SHIPPED is the same topic as PACKSHIP_TOPIC_PACKED", "TOPIC_FAILED is \"no/slash\""},
		},
		"contradictions": {
			map[string]string{"RETRY_BACKOFF": "1m", "LEDGER_HORIZON": "10s"},
			[]string{"RETRY_BACKOFF_MAX is 30s, below PACKSHIP_RETRY_BACKOFF, which is 1m", "LEDGER_HORIZON is 10s but must be longer than the 50s"},
		},
		"address": {map[string]string{"HTTP_ADDR": "8080"}, []string{"HTTP_ADDR is \"8080\""}},
		"two default accounts": {
			map[string]string{"ACCOUNTS_FILE": accounts},
			[]string{"ACCOUNTS_FILE has an account named default"},
		},
		"one token of two accounts": {
			map[string]string{"ACCOUNTS_FILE": list(account("north", token, ""))},
			[]string{`ACCOUNTS_FILE has accounts "north" and "default" with the same token, so the API would be called at the sum of their rates`},
		},
		"one token file of two accounts": {
			map[string]string{"UPSTREAM_TOKEN": "", "ACCOUNTS_FILE": list(account("north", token, ""), account("south", token, ""))},
			[]string{`ACCOUNTS_FILE has accounts "north" and "south" with the same token_file ` + regexp.QuoteMeta(token)},
		},
		"tokens that are missing are not the same": {
			map[string]string{"UPSTREAM_TOKEN": "", "ACCOUNTS_FILE": list(account("north", empty, ""), account("south", missing, ""))},
			[]string{`"north": token_file names .*, which is empty`, `"south": token_file cannot be read`},
		},
		"balance": {
			map[string]string{"ACCOUNTS_FILE": list(account("north", writeFile(t, "n", "n"), "    balance: {points: 50000, at: 2026-01-02T03:04:05+08:00}\n"))},
			nil,
		},
		"balances that are none": {
			map[string]string{"ACCOUNTS_FILE": list(
				account("a", writeFile(t, "a", "a"), "    balance: {points: 50000}\n"),
				account("b", writeFile(t, "b", "b"), "    balance: {points: -1, at: 2026-01-02T03:04:05Z}\n"),
				account("c", writeFile(t, "c", "c"), "    balance: {at: 2026-01-02T03:04:05Z}\n"),
				account("d", writeFile(t, "d", "d"), "    balance: {points: 1, at: 2999-01-02T03:04:05Z}\n"))},
			[]string{`"a": balance needs points`, `"b": balance needs points`, `"c": balance needs points`, `"d": balance is of 2999.* yet to come`},
		},
		"a balance of another form": {
			map[string]string{"ACCOUNTS_FILE": list(account("a", writeFile(t, "a2", "a"), "    balance: 50000\n"))},
			[]string{"cannot unmarshal"},
		},
		"omni-channel shops": {
			map[string]string{"ACCOUNTS_FILE": list(
				account("north", writeFile(t, "n2", "n"), "    shops: [s1, s2]\n    omni_channel_shops: [s2]\n"))},
			nil,
		},
		"omni-channel shop of the only account": {
			map[string]string{"UPSTREAM_TOKEN": "", "ACCOUNTS_FILE": list(account("north", token, "    omni_channel_shops: [s9]\n"))},
			nil,
		},
		"omni-channel shop of the default account": {
			map[string]string{"UPSTREAM_TOKEN": "", "ACCOUNTS_FILE": list(
				account("north", token, "    shops: [s1]\n"),
				account("default", writeFile(t, "d2", "d"), "    omni_channel_shops: [s9]\n"))},
			nil,
		},
		"omni-channel shops that the account does not serve": {
			map[string]string{"UPSTREAM_TOKEN": "", "ACCOUNTS_FILE": list(
				account("north", token, "    shops: [s1]\n    omni_channel_shops: [s9]\n"),
				account("default", writeFile(t, "d3", "d"), "    omni_channel_shops: [s1, a b]\n"))},
			[]string{
				`^PACKSHIP_ACCOUNTS_FILE has account "north" whose omni-channel shop "s9" is none of its shops; add it to shops$`,
				`^PACKSHIP_ACCOUNTS_FILE has account "default" whose omni-channel shop "s1" is a shop of account "north"; list it in omni_channel_shops there$`,
				`^PACKSHIP_ACCOUNTS_FILE has account "default" whose omni-channel shop "a b" is not 1 to 64 letters, digits, _ or -$`,
			},
		},
		"omni-channel shop that nobody serves": {
			map[string]string{"UPSTREAM_TOKEN": "", "UNKNOWN_SHOP": "fail", "ACCOUNTS_FILE": list(account("default", token, "    omni_channel_shops: [s9]\n"))},
			[]string{`account "default" whose omni-channel shop "s9" is none of its shops`},
		},
		"a field that accounts do not have": {
			map[string]string{"ACCOUNTS_FILE": list(account("a", writeFile(t, "a3", "a"), "    shop: [s]\n"))},
			[]string{"^PACKSHIP_ACCOUNTS_FILE .*: line 4: field shop not found$"},
		},
		"carriers of another form": {
			map[string]string{"CARRIERS_FILE": writeFile(t, "carriers.yaml", "carriers: 1\n")},
			[]string{"^PACKSHIP_CARRIERS_FILE cannot be used: .*yaml: unmarshal errors: line 1: cannot unmarshal .*$"},
		},
		"accounts file in place of a token": {map[string]string{"UPSTREAM_TOKEN": "", "ACCOUNTS_FILE": accounts}, nil},
		"misspelt": {
			map[string]string{"KAFKA_BROKER": "k:1", "BROKERS": "k:1", "UPSTREAM_TOKN": "x", "FROBNICATE": "1", "HTTP_PORT": "8080"},
			[]string{
				"KAFKA_BROKER is not a setting; did you mean PACKSHIP_KAFKA_BROKERS", "PACKSHIP_BROKERS is not a setting; did you mean PACKSHIP_KAFKA_BROKERS",
				"UPSTREAM_TOKN is not a setting; did you mean PACKSHIP_UPSTREAM_TOKEN", "FROBNICATE is not a setting; `packship config`",
				"HTTP_PORT is not a setting",
			},
		},
		"service links": {
			map[string]string{
				"SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "80", "SERVICE_PORT_HTTP": "80", "PORT": "tcp://10.0.0.1:80",
				"PORT_80_TCP": "tcp://10.0.0.1:80", "PORT_80_TCP_PROTO": "tcp", "PORT_80_TCP_PORT": "80", "PORT_80_TCP_ADDR": "10.0.0.1",
				"METRICS_SERVICE_HOST": "fd00::1", "METRICS_PORT": "tcp://[fd00::1]:80",
			},
			nil,
		},
		"almost service links": {
			map[string]string{"PORT": "8080", "SERVICE_HOST": "kafka.example", "SERVICE_HOSTS": "10.0.0.1", "PORT_80_TCP_NAME": "x"},
			[]string{"PORT is not", "SERVICE_HOST is not", "SERVICE_HOSTS is not", "PORT_80_TCP_NAME is not"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			env := map[string]string{"KAFKA_BROKERS": "k:9092", "UPSTREAM_TOKEN": "t"}
			maps.Copy(env, tt.env)
			setEnv(t, env)
			_, err := Load(PartAll)
			var problems []Problem
			if wrong, ok := errors.AsType[*SettingsError](err); ok {
				problems = wrong.Problems
			} else if err != nil {
				t.Fatal(err)
			}
			for _, want := range tt.want {
				i := slices.IndexFunc(problems, func(p Problem) bool { return regexp.MustCompile(want).MatchString(p.String()) })
				if i < 0 {
					t.Errorf("no problem matches %q in %q", want, problems)
					continue
				}
				problems = slices.Delete(problems, i, i+1)
			}
			for _, p := range problems {
				t.Errorf("unexpected problem: %s", p)
			}
		})
	}
}

// TestPartsAreApart checks that a command complains only of what it uses.
func TestPartsAreApart(t *testing.T) {
	setEnv(t, map[string]string{"KAFKA_BROKERS": "k:1", "RATE_PER_SECOND": "x", "LOG_LEVEL": "loud"})
	if _, err := Load(PartKafka); err != nil {
		t.Errorf("kafka settings are fine, got %v", err)
	}
	if _, err := Load(PartOrders); err != nil {
		t.Errorf("order settings are fine, got %v", err)
	}
	if _, err := Load(PartUpstream); err == nil || strings.Contains(err.Error(), "LOG_LEVEL") || !strings.Contains(err.Error(), "RATE_PER_SECOND") {
		t.Errorf("got %v, want only the problems of the API", err)
	}
}

// TestNoSecretLeaks prints settings with secrets in every way and looks for
// them, also where a value cannot be parsed.
func TestNoSecretLeaks(t *testing.T) {
	const secret = "hunter2-Zz9"
	setEnv(t, map[string]string{
		"KAFKA_BROKERS": "k:1", "UPSTREAM_TOKEN": secret, "ADMIN_TOKEN": secret + "\x01", "KAFKA_SASL_PASSWORD": secret,
		"UPSTREAM_URL": "http://u:" + secret + "@a/b", "UPSTREAM_TIMEOUT": secret,
	})
	s, err := Load(PartAll)
	if err == nil {
		t.Fatal("no problem found")
	}
	s.UpstreamURL = "" // refused by the check that has just been made
	asJSON, jsonErr := json.Marshal(s)
	if jsonErr != nil {
		t.Fatal(jsonErr)
	}
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("settings read", "token", s.UpstreamToken, "all", s)
	entries := s.Entries()
	for i := range entries {
		if entries[i].Name == "PACKSHIP_UPSTREAM_TIMEOUT" {
			entries[i].Value = "" // what stands in the wrong variable is shown there
		}
	}
	for what, text := range map[string]string{
		"problems": err.Error(), "%v": fmt.Sprintf("%v", s), "%+v": fmt.Sprintf("%+v", s), "%#v": fmt.Sprintf("%#v", s.UpstreamToken),
		"json": string(asJSON), "log": logged.String(), "entries": fmt.Sprint(entries),
	} {
		if strings.Contains(text, secret) {
			t.Errorf("%s shows the secret: %s", what, text)
		}
	}
	if !strings.Contains(fmt.Sprint(entries), redacted) {
		t.Error("entries do not say that there is a secret")
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"abc", "", 3},
		{"", "abc", 3},
		{"kitten", "sitting", 3},
		{"BROKER", "BROKERS", 1},
		{"TOPIC", "TPOIC", 2},
	} {
		if got := Distance(tt.a, tt.b); got != tt.want {
			t.Errorf("Distance(%q, %q): got %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

func FuzzServiceLink(f *testing.F) {
	f.Add("PACKSHIP_SERVICE_HOST", "10.0.0.1")
	f.Add("PACKSHIP_A_B_PORT_1_TCP_PROTO", "tcp")
	f.Add("PACKSHIP_KAFKA_BROKERS", "k:1")
	f.Fuzz(func(t *testing.T, name, value string) {
		if isServiceLink(name, value) && !strings.HasPrefix(name, Prefix+"_") {
			t.Errorf("%q is taken for a service link", name)
		}
	})
}

// TestNoSettingIsAServiceLink keeps a setting from being named so that
// Kubernetes might set it.
func TestNoSettingIsAServiceLink(t *testing.T) {
	for _, f := range fields() {
		if serviceLink.MatchString(variable(f.name)) {
			t.Errorf("%s has the name of a service link", f.name)
		}
	}
}

func TestLogger(t *testing.T) {
	for _, tt := range []struct {
		format   string
		terminal bool
		want     string
	}{
		{"", false, `{"time"`},
		{"", true, `time=`},
		{"json", true, `{"time"`},
		{"text", false, `time=`},
	} {
		setEnv(t, map[string]string{"LOG_FORMAT": tt.format})
		s, _ := Load(PartServer)
		var out strings.Builder
		log := s.NewLogger(&out, tt.terminal)
		log.Info("something happened")
		log.Debug("something small happened")
		line, err := bufio.NewReader(strings.NewReader(out.String())).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, tt.want) {
			t.Errorf("format %q, terminal %t: got %q", tt.format, tt.terminal, out.String())
		}
		if strings.Contains(out.String(), "small") {
			t.Errorf("a debug line is logged at level info")
		}
	}
}
