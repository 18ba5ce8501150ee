package upstream

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"packship/schema"
)

// TestCallsAreTraced makes one call for each kind of answer.
func TestCallsAreTraced(t *testing.T) {
	answers := []http.HandlerFunc{
		func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(success)) },
		func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(answerText(614, "运单号已使用")))
		},
		func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "bad gateway", http.StatusBadGateway) },
		func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			if tcp, ok := conn.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0)
			}
			_ = conn.Close()
		},
		func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte("{"))
		},
		func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		},
	}
	n := 0
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"traceparent", "tracestate", "baggage"} {
			if r.Header.Get(name) != "" {
				t.Errorf("the API is told a %s", name)
			}
		}
		n++
		answers[n-1](w, r)
	})
	spans := tracetest.NewSpanRecorder()
	cfg := testConfig(server.URL + "/send?secret=1")
	cfg.Timeout = time.Second
	cfg.BreakerFailures = len(answers)
	cfg.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test")
	u := newUpstream(t, cfg)
	for i := range answers {
		turn, err := u.Admit(t.Context(), order(i+1), false)
		if err != nil {
			t.Fatal(err)
		}
		ctx, parent := cfg.Tracer.Start(t.Context(), "order")
		turn.Send(ctx, schema.Hold{StartBy: time.Now().Add(time.Minute)})
		parent.End()
	}
	type seen struct {
		Status        codes.Code
		HTTP          int64
		Error, Effect string
	}
	var got []seen
	for _, span := range spans.Ended() {
		if span.Name() == "order" {
			continue
		}
		a := attribute.NewSet(span.Attributes()...)
		text := func(key attribute.Key) string {
			v, _ := a.Value(key)
			return v.AsString()
		}
		status, _ := a.Value("http.response.status_code")
		got = append(got, seen{span.Status().Code, status.AsInt64(), text("error.type"), text("packship.effect")})
		if span.SpanKind() != trace.SpanKindClient || span.Name() != "POST" || !span.Parent().IsValid() {
			t.Errorf("span %s of kind %s with parent %v", span.Name(), span.SpanKind(), span.Parent())
		}
		if full := text("url.full"); full != server.URL+"/send" {
			t.Errorf("url.full is %s, want it without the query", full)
		}
		for _, v := range span.Attributes() {
			if s := v.Value.String(); strings.Contains(s, "token-1") || strings.Contains(s, "SF1234567890123") {
				t.Errorf("%s tells %s", v.Key, s)
			}
		}
	}
	want := []seen{
		{codes.Unset, 200, "", "shipped"},
		{codes.Unset, 200, "", "not_shipped"},
		{codes.Error, 502, "502", "unknown"},
		{codes.Error, 200, "unreadable_answer", "unknown"},
		{codes.Error, 0, "connection_closed", "unknown"},
		{codes.Error, 0, "connection_reset", "unknown"},
		{codes.Error, 200, "incomplete_answer", "unknown"},
		{codes.Error, 0, "timeout", "unknown"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("spans of the calls (-want +got):\n%s", diff)
	}
}

// TestWhatDidNotLeaveIsNoCall: neither a closed gate nor an API that is away
// leaves a span, because nothing was sent.
func TestWhatDidNotLeaveIsNoCall(t *testing.T) {
	server := serve(t, func(http.ResponseWriter, *http.Request) {})
	spans := tracetest.NewSpanRecorder()
	cfg := testConfig(server.URL)
	cfg.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test")
	u := newUpstream(t, cfg)
	server.Close()
	send(t, u, order(1))
	turn, err := u.Admit(t.Context(), order(2), false)
	if err != nil {
		t.Fatal(err)
	}
	closed, cancel := context.WithCancel(t.Context())
	cancel()
	turn.Send(closed, schema.Hold{StartBy: time.Now().Add(time.Minute)})
	if ended := spans.Ended(); len(ended) != 0 {
		t.Errorf("%d spans of calls that were never made", len(ended))
	}
}

func TestEndpoint(t *testing.T) {
	for url, want := range map[string]string{
		"http://api.example.com/send":           "POST http://api.example.com/send api.example.com 80",
		"https://user:pw@api.example.com?x=y":   "POST https://api.example.com api.example.com 443",
		"https://[::1]:8443/tool/erps/send?a=b": "POST https://[::1]:8443/tool/erps/send ::1 8443",
	} {
		var got []string
		for _, a := range endpoint(url) {
			got = append(got, a.Value.String())
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("%s: %s, want %s", url, text, want)
		}
	}
}
