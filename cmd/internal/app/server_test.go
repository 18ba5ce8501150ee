package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"packship/consumer"
	"packship/upstream"
)

// newConnector returns a connector that does not run.
func newConnector(t *testing.T, change func(*Settings)) *Connector {
	t.Helper()
	s := Defaults()
	s.KafkaBrokers, s.UpstreamToken = List{"127.0.0.1:1"}, "token"
	if change != nil {
		change(&s)
	}
	c, err := New(s, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ask sends a request to a handler, with an Authorization header if one is
// given.
func ask(t *testing.T, h http.Handler, method, path, authorization string) *http.Response {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, res *http.Response) string {
	t.Helper()
	var b strings.Builder
	if err := res.Write(&b); err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(b.String(), "\r\n\r\n")
	return text
}

func TestProbesBeforeKafka(t *testing.T) {
	c := newConnector(t, nil)
	h := c.Handler()
	if res := ask(t, h, "GET", "/healthz", ""); res.StatusCode != http.StatusOK {
		t.Errorf("healthz: %d, want 200", res.StatusCode)
	}
	c.setWaiting("waiting for kafka: kafka broker k:1 refuses connections")
	res := ask(t, h, "GET", "/readyz", "")
	if text := body(t, res); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(text, "kafka broker k:1 refuses connections") {
		t.Errorf("readyz: %d %q, want 503 with the reason", res.StatusCode, text)
	}
	c.setBroken(errors.New("the ledger is gone"))
	for _, path := range []string{"/healthz", "/readyz"} {
		res := ask(t, h, "GET", path, "")
		if text := body(t, res); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(text, "the ledger is gone") {
			t.Errorf("%s of a broken connector: %d %q, want 503 with the reason", path, res.StatusCode, text)
		}
	}
}

// TestStatusFields holds the names of the fields to the contract with other
// programs, and lists to be lists when there is nothing in them.
func TestStatusFields(t *testing.T) {
	res := ask(t, newConnector(t, nil).Handler(), "GET", "/api/status", "")
	if got := res.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("content type %q", got)
	}
	var got map[string]json.RawMessage
	if err := json.Unmarshal([]byte(body(t, res)), &got); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"role": `"joining"`, "partitions": "[]", "parked_shops": "[]", "spending": "[]", "ledger": "null", "counts": `{"shipped":0,"failed":0,"dead_lettered":0}`,
	} {
		if string(got[name]) != want {
			t.Errorf("%s is %s, want %s", name, got[name], want)
		}
	}
	var accounts []map[string]any
	if err := json.Unmarshal(got["accounts"], &accounts); err != nil || len(accounts) != 1 {
		t.Fatalf("accounts %s: %v", got["accounts"], err)
	}
	for _, name := range []string{"name", "state", "breaker", "rate", "in_flight", "calls", "spent"} {
		if _, ok := accounts[0][name]; !ok {
			t.Errorf("an account has no %s: %v", name, accounts[0])
		}
	}
}

func TestMetrics(t *testing.T) {
	text := body(t, ask(t, newConnector(t, nil).Handler(), "GET", "/metrics", ""))
	for _, name := range []string{"go_goroutines", "process_cpu_seconds_total", "packship_build_info{", "packship_calls_total", "packship_breaker_state", "packship_calls_in_flight"} {
		if !strings.Contains(text, "\n"+name) {
			t.Errorf("no metric %s", name)
		}
	}
}

func TestAdmin(t *testing.T) {
	file := filepath.Join(t.TempDir(), "admin")
	overwrite(t, file, []byte("from-file\n"))
	direct := func(s *Settings) { s.AdminToken = "secret" }
	fromFile := func(s *Settings) { s.AdminTokenFile = file }
	tests := map[string]struct {
		change              func(*Settings)
		path, authorization string
		want                int
	}{
		"off":                    {nil, "/api/accounts/default/resume", "Bearer x", http.StatusNotFound},
		"off without a token":    {nil, "/api/accounts/default/resume", "", http.StatusNotFound},
		"no token":               {direct, "/api/accounts/default/resume", "", http.StatusUnauthorized},
		"wrong token":            {direct, "/api/accounts/default/resume", "Bearer secrets", http.StatusUnauthorized},
		"empty token":            {direct, "/api/accounts/default/resume", "Bearer ", http.StatusUnauthorized},
		"another scheme":         {direct, "/api/accounts/default/resume", "Basic secret", http.StatusUnauthorized},
		"resume":                 {direct, "/api/accounts/default/resume", "Bearer secret", http.StatusOK},
		"scheme in lower case":   {direct, "/api/accounts/default/resume", "bearer secret", http.StatusOK},
		"unknown account":        {direct, "/api/accounts/nobody/resume", "Bearer secret", http.StatusNotFound},
		"unknown account, 401":   {direct, "/api/accounts/nobody/resume", "", http.StatusUnauthorized},
		"shop that is no shop":   {direct, "/api/shops/nobody/unpark", "Bearer secret", http.StatusNotFound},
		"shop without a token":   {direct, "/api/shops/nobody/unpark", "", http.StatusUnauthorized},
		"token in a file":        {fromFile, "/api/accounts/default/resume", "Bearer from-file", http.StatusOK},
		"wrong, token in a file": {fromFile, "/api/accounts/default/resume", "Bearer secret", http.StatusUnauthorized},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			res := ask(t, newConnector(t, tt.change).Handler(), "POST", tt.path, tt.authorization)
			if res.StatusCode != tt.want {
				t.Errorf("got %d %s, want %d", res.StatusCode, body(t, res), tt.want)
			}
		})
	}
	if res := ask(t, newConnector(t, direct).Handler(), "GET", "/api/accounts/default/resume", "Bearer secret"); res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET of an action: %d, want 405", res.StatusCode)
	}
}

// TestActionSaysWhatComesOfIt checks that an operator is told when nothing comes
// of what was asked for: a standby has nothing to resume, and neither has an
// account that is not halted.
func TestActionSaysWhatComesOfIt(t *testing.T) {
	// The list of members is a few seconds old: then it was this one that sent.
	members := []consumer.Member{{Name: "b", Self: true, Partitions: 1}, {Name: "a", Partitions: 3}}
	const standby, idle = "this replica stands by and sends nothing: ask a", "the account is not halted"
	tests := map[string]struct {
		role           consumer.Role
		state, breaker string
		want           string
	}{
		"halted":        {consumer.RoleActive, upstream.StateHalted, "closed", ""},
		"throttled":     {consumer.RoleActive, upstream.StatePaused, "closed", ""},
		"breaker":       {consumer.RoleActive, upstream.StatePaused, "open", idle + " but paused by its breaker, which a resume does not close: one order tries the API after its pause"},
		"sending":       {consumer.RoleActive, upstream.StateSending, "closed", idle},
		"standby":       {consumer.RoleStandby, upstream.StateIdle, "closed", idle + "; " + standby},
		"halted before": {consumer.RoleStandby, upstream.StateHalted, "closed", standby},
		"kafka is away": {consumer.RoleJoining, upstream.StateHalted, "closed", ""},
	}
	for name, tt := range tests {
		st := Status{Role: tt.role, Members: members, Accounts: []upstream.AccountStatus{
			{Name: "default", State: tt.state, Breaker: tt.breaker}, {Name: "other", State: upstream.StateSending, Breaker: "closed"},
		}}
		if got := st.noResume("default"); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	st := Status{Role: consumer.RoleStandby, Members: members, ParkedShops: []upstream.ParkedShop{{ShopID: "s"}}}
	if got := st.noUnpark("s"); got != standby {
		t.Errorf("parked: %q", got)
	}
	if got := st.noUnpark("t"); got != "the shop is not parked; "+standby {
		t.Errorf("not parked: %q", got)
	}

	c := newConnector(t, func(s *Settings) { s.AdminToken = "secret" })
	got := body(t, ask(t, c.Handler(), "POST", "/api/accounts/default/resume", "Bearer secret"))
	if want := `{"account":"default","did":"resume","note":"the account is not halted"}` + "\n"; got != want {
		t.Errorf("resume of an account that is not halted: %s, want %s", got, want)
	}
}

// TestAdminFromAnotherSite has a browser say that another site asks, with a token
// that is right.
func TestAdminFromAnotherSite(t *testing.T) {
	h := newConnector(t, func(s *Settings) { s.AdminToken = "secret" }).Handler()
	for site, want := range map[string]int{"": 200, "same-origin": 200, "none": 200, "same-site": 403, "cross-site": 403} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/api/accounts/default/resume", nil)
		r.Header.Set("Authorization", "Bearer secret")
		if site != "" {
			r.Header.Set("Sec-Fetch-Site", site)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("from %q: %d %s, want %d", site, w.Code, w.Body, want)
		}
	}
	// The question that a browser asks before it sends such a header for
	// another site is not answered with a leave.
	r := httptest.NewRequestWithContext(t.Context(), http.MethodOptions, "/api/accounts/default/resume", nil)
	r.Header.Set("Origin", "https://elsewhere.example")
	r.Header.Set("Access-Control-Request-Headers", "authorization")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	for name := range w.Result().Header {
		if strings.HasPrefix(name, "Access-Control-") {
			t.Errorf("other sites get a leave: %s", name)
		}
	}
}

// TestSecured checks the headers of every kind of answer.
func TestSecured(t *testing.T) {
	h := newConnector(t, nil).Handler()
	for _, path := range []string{"/", "/orders?tid=1", "/api/status", "/api/orders/1", "/healthz", "/readyz", "/metrics", "/nothing"} {
		res := ask(t, h, "GET", path, "")
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
			"Content-Security-Policy": "frame-ancestors 'none'",
		} {
			if got := res.Header.Get(name); !strings.Contains(got, want) || strings.Contains(got, "unsafe") {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
	}
}

// TestAdminWithoutItsFile has a token file that cannot be read for a while. Nobody
// is let through, and whoever asks learns which setting it is.
func TestAdminWithoutItsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "admin")
	overwrite(t, file, []byte("from-file"))
	var log bytes.Buffer
	s := Defaults()
	s.KafkaBrokers, s.UpstreamToken, s.AdminTokenFile = List{"127.0.0.1:1"}, "token", file
	c, err := New(s, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	try := func(token string) (int, string) {
		res := ask(t, c.Handler(), "POST", "/api/accounts/default/resume", "Bearer "+token)
		return res.StatusCode, body(t, res)
	}
	for what, spoil := range map[string]func(){
		"gone":  func() { _ = os.Remove(file) },
		"empty": func() { overwrite(t, file, nil) },
	} {
		spoil()
		log.Reset()
		for _, token := range []string{"", "from-file"} {
			if code, text := try(token); code != http.StatusServiceUnavailable || !strings.Contains(text, "PACKSHIP_ADMIN_TOKEN_FILE") {
				t.Errorf("%s, token %q: got %d %s, want 503 and the setting", what, token, code, text)
			}
		}
		if text := log.String(); !strings.Contains(text, "level=ERROR") || !strings.Contains(text, "PACKSHIP_ADMIN_TOKEN_FILE") {
			t.Errorf("%s: logged %q, want an error with the setting", what, text)
		}
	}
	overwrite(t, file, []byte("another"))
	if code, text := try("another"); code != http.StatusOK {
		t.Errorf("with its file again: got %d %s, want 200", code, text)
	}
}

// TestPage checks that the page is whole without a script, loads nothing from
// elsewhere, and that its policy lets its own style and script in.
func TestPage(t *testing.T) {
	res := ask(t, newConnector(t, nil).Handler(), "GET", "/", "")
	text := body(t, res)
	for _, want := range []string{`<html lang="en">`, `name="viewport"`, "prefers-color-scheme: dark", `aria-label="Account default"`, "joining", `href="#main"`} {
		if !strings.Contains(text, want) {
			t.Errorf("the page has no %q", want)
		}
	}
	policy := res.Header.Get("Content-Security-Policy")
	for _, kind := range []string{"style", "script"} {
		m := regexp.MustCompile(`(?s)<` + kind + `>(.*?)</` + kind + `>`).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("the page has no %s", kind)
		}
		if source := hashSource(m[1]); !strings.Contains(policy, source) {
			t.Errorf("the policy %q does not let the page's own %s in (%s)", policy, kind, source)
		}
		text = strings.Replace(text, m[0], "", 1)
	}
	text = strings.Replace(text, `<link rel="icon" href="data:,">`, "", 1)
	if m := regexp.MustCompile(`(?:src|href|action)="[^"]*//[^"]*"| on[a-z]+="| style="|<script|<style|<link|<img`).FindString(text); m != "" {
		t.Errorf("the page has %s, which loads something or is forbidden by the policy", m)
	}
	if !strings.Contains(policy, "default-src 'none'") {
		t.Errorf("policy %q", policy)
	}
	if res := ask(t, newConnector(t, nil).Handler(), "GET", "/nothing", ""); res.StatusCode != http.StatusNotFound {
		t.Errorf("an unknown path answers %d, want 404", res.StatusCode)
	}
}

// TestRunWithoutKafka starts a connector whose broker is not there: the probes
// answer, the wait ends with the context, and that is no error.
func TestRunWithoutKafka(t *testing.T) {
	s := Defaults()
	s.KafkaBrokers, s.UpstreamToken, s.HTTPAddr = List{"127.0.0.1:1"}, "token", "127.0.0.1:0"
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	addr := make(chan net.Addr, 1)
	var log recorder
	var dials atomic.Int64
	c, err := New(s, Options{
		Logger:  slog.New(slog.NewTextHandler(&log, nil)),
		Serving: func(a net.Addr) { addr <- a },
		KafkaDial: func(context.Context, string, string) (net.Conn, error) {
			dials.Add(1)
			return nil, syscall.ECONNREFUSED
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	r := &replica{t: t, c: c, url: "http://" + (<-addr).String()}
	r.eventually("readyz says why", func() bool {
		code, text := r.get("/readyz")
		return code == http.StatusServiceUnavailable && strings.Contains(text, "kafka broker 127.0.0.1:1 refuses connections")
	})
	if code, _ := r.get("/healthz"); code != http.StatusOK {
		t.Errorf("healthz: %d, want 200", code)
	}
	_, metrics := r.get("/metrics")
	for _, series := range []string{
		`packship_events_finished_total{class="",topic="` + c.settings.TopicPacked + `",verdict="shipped"} 0`, "packship_gate_open 0",
		"packship_ledger_append_failures_total 0", `packship_result_publish_failures_total{topic="` + c.settings.TopicShipped + `"} 0`,
		`packship_consumer_request_failures_total{request="commit"} 0`, "packship_in_doubt 0", "packship_orders_overdue 0",
	} {
		if !strings.Contains(metrics, "\n"+series+"\n") {
			t.Errorf("%s is not there while kafka is away", series)
		}
	}
	r.eventually("several tries", func() bool { return dials.Load() > 3 })
	if n := strings.Count(log.String(), "waiting for kafka"); n != 1 {
		t.Errorf("%d log lines after %d tries, want one per change:\n%s", n, dials.Load(), log.String())
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("got %v, want none", err)
	}
}

// recorder is a log that can be read while it is written.
type recorder struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// TestRunCannotListen checks that a taken port is an error that names the
// setting.
func TestRunCannotListen(t *testing.T) {
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	c := newConnector(t, func(s *Settings) { s.HTTPAddr = taken.Addr().String() })
	if err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "PACKSHIP_HTTP_ADDR") {
		t.Errorf("got %v, want an error that names the setting", err)
	}
}
