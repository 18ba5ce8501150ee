package app

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// TestSignalsRemarks: what OpenTelemetry would pass over is told, by the name of
// its variable and without its value.
func TestSignalsRemarks(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.pem")
	noPEM := filepath.Join(t.TempDir(), "no.pem")
	if err := os.WriteFile(noPEM, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	const otlp = "OTEL_EXPORTER_OTLP_"
	pairs := " must be name=value,name=value with URL-encoded values: number "
	for name, tt := range map[string]struct {
		env  map[string]string
		want []string
	}{
		"headers":            {map[string]string{otlp + "HEADERS": "authorization=Bearer%20secret, x-scope=1"}, nil},
		"a curl header":      {map[string]string{otlp + "HEADERS": "Authorization: Bearer secret"}, []string{otlp + "HEADERS" + pairs + "1 is not like that"}},
		"not encoded":        {map[string]string{otlp + "METRICS_HEADERS": "a=b,authorization=secret%zz"}, []string{otlp + "METRICS_HEADERS" + pairs + "2 is not like that"}},
		"no header's name":   {map[string]string{otlp + "HEADERS": "secret key=1"}, []string{otlp + "HEADERS" + pairs + "1 is not like that"}},
		"time limit":         {map[string]string{otlp + "TIMEOUT": "5000"}, nil},
		"time limit, unit":   {map[string]string{otlp + "TRACES_TIMEOUT": "5s"}, []string{otlp + "TRACES_TIMEOUT must be a whole number of milliseconds, above 0 and without a unit"}},
		"no time":            {map[string]string{otlp + "TIMEOUT": "0"}, []string{otlp + "TIMEOUT must be a whole number of milliseconds, above 0 and without a unit"}},
		"compression":        {map[string]string{otlp + "COMPRESSION": "gzip", otlp + "TRACES_COMPRESSION": "none"}, nil},
		"other compression":  {map[string]string{otlp + "COMPRESSION": "zstd"}, []string{otlp + "COMPRESSION must be gzip or none: nothing is compressed"}},
		"certificate":        {map[string]string{otlp + "CERTIFICATE": none}, []string{otlp + "CERTIFICATE must be a readable file with PEM certificates: those of the system are trusted"}},
		"no certificate":     {map[string]string{otlp + "CERTIFICATE": noPEM}, []string{otlp + "CERTIFICATE must be a readable file with PEM certificates: those of the system are trusted"}},
		"client certificate": {map[string]string{otlp + "CLIENT_CERTIFICATE": none}, []string{otlp + "CLIENT_CERTIFICATE and " + otlp + "CLIENT_KEY must be readable PEM files that belong together: no client certificate is shown"}},
		"insecure":           {map[string]string{otlp + "INSECURE": "true"}, nil},
		"insecure https": {map[string]string{otlp + "INSECURE": "true", otlp + "ENDPOINT": "https://collector:4318"}, []string{
			otlp + "INSECURE turns TLS off, although the endpoint is an https URL: what is exported travels unencrypted",
		}},
		"sampler":         {map[string]string{"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}, nil},
		"unknown sampler": {map[string]string{"OTEL_TRACES_SAMPLER": "sometimes"}, []string{"OTEL_TRACES_SAMPLER is none that is known: parentbased_always_on is used"}},
		"no ratio": {map[string]string{"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "10%"}, []string{
			"OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1: all orders are traced, or all whose producer wants it",
		}},
		"batches": {map[string]string{"OTEL_BSP_MAX_QUEUE_SIZE": "many", "OTEL_BSP_SCHEDULE_DELAY": "1s"}, []string{
			"OTEL_BSP_SCHEDULE_DELAY must be a whole number of milliseconds, above 0 and without a unit",
			"OTEL_BSP_MAX_QUEUE_SIZE must be a whole number, above 0 and without a unit",
		}},
		"interval":    {map[string]string{"OTEL_METRIC_EXPORT_INTERVAL": "-1"}, []string{"OTEL_METRIC_EXPORT_INTERVAL must be a whole number of milliseconds, above 0 and without a unit"}},
		"attributes":  {map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "team=erp,secret"}, []string{"OTEL_RESOURCE_ATTRIBUTES" + pairs + "2 is not like that"}},
		"propagators": {map[string]string{"OTEL_PROPAGATORS": "tracecontext,baggage"}, nil},
		"other propagators": {map[string]string{"OTEL_PROPAGATORS": "b3"}, []string{
			"OTEL_PROPAGATORS has no effect: trace context is read from, and written to, the headers traceparent and tracestate",
		}},
		"deltas":        {map[string]string{otlp + "METRICS_TEMPORALITY_PREFERENCE": "delta"}, []string{otlp + "METRICS_TEMPORALITY_PREFERENCE has no effect: counters are cumulative"}},
		"cumulative":    {map[string]string{otlp + "METRICS_TEMPORALITY_PREFERENCE": "Cumulative"}, nil},
		"other buckets": {map[string]string{otlp + "METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "base2_exponential_bucket_histogram"}, []string{otlp + "METRICS_DEFAULT_HISTOGRAM_AGGREGATION has no effect: histograms have the buckets of /metrics"}},
		"nothing is on": {map[string]string{otlp + "ENDPOINT": " ", otlp + "TIMEOUT": "5s", "OTEL_TRACES_SAMPLER": "sometimes", "OTEL_PROPAGATORS": "b3"}, nil},
	} {
		got := readSignals(func(name string) string {
			if value, ok := tt.env[name]; ok || name != otlp+"ENDPOINT" {
				return value
			}
			return "http://collector:4318"
		})
		if d := cmp.Diff(tt.want, got.remarks); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// TestTelemetryHushed: what OpenTelemetry has to say of its variables is in the
// log, and not the values, which may be secrets.
func TestTelemetryHushed(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization: Bearer topsecret")
	t.Setenv("OTEL_TRACES_SAMPLER", "sometimes")
	lines := new(lineLog)
	log := slog.New(slog.NewTextHandler(lines, &slog.HandlerOptions{Level: slog.LevelDebug}))
	tel := newTelemetry(readSignals(os.Getenv), "p", prometheus.NewRegistry(), log)
	life := &lifecycle{log: testLogger(t)}
	tel.run(t.Context(), life)
	if err := life.stop(t.Context()); err != nil {
		t.Error(err)
	}
	for _, want := range [][]string{
		{"level=WARN", "OTEL_EXPORTER_OTLP_HEADERS must be"},
		{"level=WARN", "OTEL_TRACES_SAMPLER is none"},
		{"level=DEBUG", "opentelemetry", "parse headers"},
		{"level=DEBUG", "opentelemetry", "unsupported sampler"},
	} {
		if lines.count(want...) == 0 {
			t.Errorf("no line with %s:\n%s", strings.Join(want, " "), lines)
		}
	}
	if lines.count("topsecret") != 0 {
		t.Errorf("the log tells a secret:\n%s", lines)
	}
}

// TestTelemetryToThisHost: without an endpoint the collector of this host is
// meant, and it is not spoken to by TLS.
func TestTelemetryToThisHost(t *testing.T) {
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:4318")
	if err != nil {
		t.Skip("somebody else listens there: ", err)
	}
	paths := make(chan string, 100)
	server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		paths <- r.URL.Path
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	t.Setenv("OTEL_TRACES_EXPORTER", "otlp")
	t.Setenv("OTEL_METRICS_EXPORTER", "otlp")
	tel := newTelemetry(readSignals(os.Getenv), "p", prometheus.NewRegistry(), testLogger(t))
	life := &lifecycle{log: testLogger(t)}
	tel.run(t.Context(), life)
	_, span := tel.tracer().Start(t.Context(), "x")
	span.End()
	if err := life.stop(t.Context()); err != nil {
		t.Error(err)
	}
	close(paths)
	got := slices.Sorted(func(yield func(string) bool) {
		for path := range paths {
			if !yield(path) {
				return
			}
		}
	})
	if d := cmp.Diff([]string{"/v1/metrics", "/v1/traces"}, got); d != "" {
		t.Errorf("what was sent (-want +got):\n%s", d)
	}
}
