package app

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
)

// The OpenTelemetry SDK reads most of its variables itself. What it cannot read it
// replaces by a default, and says so, if at all, outside of packship's log and with
// the value, which may be a secret. So it is not asked: the variables that matter
// are looked at here first, and what is told of them holds no value.

// remark notes that a variable has no effect, or another one than it seems to
// have. What is said of both signals is said once.
func (s *signals) remark(format string, args ...any) {
	if r := fmt.Sprintf(format, args...); !slices.Contains(s.remarks, r) {
		s.remarks = append(s.remarks, r)
	}
}

// checkExport looks at how a signal is to be exported, to an endpoint that may be
// "" for the one of the SDK.
func (s *signals) checkExport(getenv func(string) string, signal, endpoint string) {
	for _, prefix := range []string{"OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_" + signal + "_"} {
		get := func(name string) (full, value string) {
			return prefix + name, strings.TrimSpace(getenv(prefix + name))
		}
		if name, value := get("HEADERS"); value != "" {
			s.checkPairs(name, value, isHeaderName)
		}
		if name, value := get("TIMEOUT"); value != "" {
			s.checkNumber(name, value)
		}
		if name, value := get("COMPRESSION"); value != "" && value != "gzip" && value != "none" {
			s.remark("%s must be gzip or none: nothing is compressed", name)
		}
		if name, value := get("INSECURE"); strings.EqualFold(value, "true") && strings.HasPrefix(endpoint, "https:") {
			s.remark("%s turns TLS off, although the endpoint is an https URL: what is exported travels unencrypted", name)
		}
		if name, value := get("CERTIFICATE"); value != "" {
			if pem, err := os.ReadFile(value); err != nil || !x509.NewCertPool().AppendCertsFromPEM(pem) { //nolint:gosec // whoever sets the variable names the file
				s.remark("%s must be a readable file with PEM certificates: those of the system are trusted", name)
			}
		}
		certName, cert := get("CLIENT_CERTIFICATE")
		keyName, key := get("CLIENT_KEY")
		if cert != "" || key != "" {
			if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
				s.remark("%s and %s must be readable PEM files that belong together: no client certificate is shown", certName, keyName)
			}
		}
	}
}

// checkCommon looks at what is said of both signals.
func (s *signals) checkCommon(getenv func(string) string) {
	if value := strings.TrimSpace(getenv("OTEL_RESOURCE_ATTRIBUTES")); value != "" {
		s.checkPairs("OTEL_RESOURCE_ATTRIBUTES", value, func(name string) bool { return name != "" })
	}
	if value := strings.TrimSpace(getenv("OTEL_PROPAGATORS")); value != "" && !slices.Contains(listed(value), "tracecontext") {
		s.remark("OTEL_PROPAGATORS has no effect: trace context is read from, and written to, the headers traceparent and tracestate")
	}
}

// checkTraces looks at which orders are traced, and how their spans are kept.
func (s *signals) checkTraces(getenv func(string) string) {
	sampler := strings.ToLower(strings.TrimSpace(getenv("OTEL_TRACES_SAMPLER")))
	switch sampler {
	case "", "always_on", "always_off", "parentbased_always_on", "parentbased_always_off":
	case "traceidratio", "parentbased_traceidratio":
		value := strings.TrimSpace(getenv("OTEL_TRACES_SAMPLER_ARG"))
		if ratio, err := strconv.ParseFloat(value, 64); value != "" && (err != nil || !(ratio >= 0 && ratio <= 1)) {
			s.remark("OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1: all orders are traced, or all whose producer wants it")
		}
	default:
		s.remark("OTEL_TRACES_SAMPLER is none that is known: parentbased_always_on is used")
	}
	s.checkNumbers(getenv, "OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
}

// checkMetrics looks at how metrics are exported. They are those of /metrics, and
// so they are as that has them.
func (s *signals) checkMetrics(getenv func(string) string) {
	for _, tt := range []struct{ name, only, instead string }{
		{"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "cumulative", "counters are cumulative"},
		{"OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "explicit_bucket_histogram", "histograms have the buckets of /metrics"},
	} {
		if value := strings.TrimSpace(getenv(tt.name)); value != "" && !strings.EqualFold(value, tt.only) {
			s.remark("%s has no effect: %s", tt.name, tt.instead)
		}
	}
	s.checkNumbers(getenv, "OTEL_METRIC_EXPORT_INTERVAL", "OTEL_METRIC_EXPORT_TIMEOUT")
}

func (s *signals) checkNumbers(getenv func(string) string, names ...string) {
	for _, name := range names {
		if value := strings.TrimSpace(getenv(name)); value != "" {
			s.checkNumber(name, value)
		}
	}
}

// checkNumber looks at a number of things or of milliseconds.
func (s *signals) checkNumber(name, value string) {
	if n, err := strconv.Atoi(value); err != nil || n <= 0 {
		unit := " of milliseconds"
		if strings.HasSuffix(name, "_SIZE") {
			unit = ""
		}
		s.remark("%s must be a whole number%s, above 0 and without a unit", name, unit)
	}
}

// checkPairs looks at a list of names and values.
func (s *signals) checkPairs(variable, list string, valid func(name string) bool) {
	for i, pair := range strings.Split(list, ",") {
		name, value, found := strings.Cut(pair, "=")
		if _, err := url.PathUnescape(strings.TrimSpace(value)); !found || err != nil || !valid(strings.TrimSpace(name)) {
			s.remark("%s must be name=value,name=value with URL-encoded values: number %d is not like that", variable, i+1)
		}
	}
}

// isHeaderName reports whether a header of HTTP can be called that.
func isHeaderName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

// listed splits a list at its commas.
func listed(list string) []string {
	all := strings.Split(list, ",")
	for i := range all {
		all[i] = strings.TrimSpace(all[i])
	}
	return all
}
