package app

import (
	"context"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	bridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// The signals that can be exported, as metric labels.
const (
	signalTraces  = "traces"
	signalMetrics = "metrics"
)

// transfer is how a signal gets to a collector.
type transfer string

const (
	transferNone transfer = ""
	transferHTTP transfer = "http"
	transferGRPC transfer = "grpc"
)

// signals is what the standard variables of OpenTelemetry ask for. Their details
// (endpoints, headers, certificates, time limits, batches, sampling) are read by
// the OpenTelemetry SDK itself; here it is only decided what is switched on, and
// found out what is wrong with the rest.
//
// Wrong values are told and passed over, as the OpenTelemetry specification
// asks: orders do not wait for somebody to mend their telemetry.
type signals struct {
	traces, metrics transfer
	// tracesHere and metricsHere are true if no endpoint is named, which means
	// the collector of this host, and no TLS.
	tracesHere, metricsHere bool
	remarks                 []string // on values that have no effect, or another than they seem to
}

// readSignals reads the variables. Nothing is exported unless an endpoint or an
// exporter is named.
func readSignals(getenv func(string) string) signals {
	var s signals
	switch disabled := strings.TrimSpace(getenv("OTEL_SDK_DISABLED")); {
	case strings.EqualFold(disabled, "true"):
		return s
	case disabled != "" && !strings.EqualFold(disabled, "false"):
		s.remark("OTEL_SDK_DISABLED must be true or false: nothing is disabled")
	}
	s.traces, s.tracesHere = s.read(getenv, "TRACES")
	s.metrics, s.metricsHere = s.read(getenv, "METRICS")
	if s.traces != transferNone {
		s.checkTraces(getenv)
	}
	if s.metrics != transferNone {
		s.checkMetrics(getenv)
	}
	if s.traces != transferNone || s.metrics != transferNone {
		s.checkCommon(getenv)
	}
	return s
}

// read reads the variables of one signal: how it is exported, and whether to the
// collector of this host because no other is named.
func (s *signals) read(getenv func(string) string, signal string) (how transfer, here bool) {
	first := func(names ...string) (name, value string) {
		for _, name := range names {
			if value := strings.TrimSpace(getenv(name)); value != "" {
				return name, value
			}
		}
		return "", ""
	}
	endpointName, endpoint := first("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
	exporterName, exporters := first("OTEL_" + signal + "_EXPORTER")
	on := endpoint != ""
	if exporters != "" {
		on = false
		for _, exporter := range listed(exporters) {
			switch exporter {
			case "otlp":
				on = true
			case "none":
			case "prometheus": // for metrics: /metrics is always there
				if signal != "METRICS" {
					s.remark("%s must be otlp or none: nothing is exported to %q", exporterName, "prometheus")
				}
			default:
				s.remark("%s must be otlp or none: nothing is exported to %q", exporterName, exporter)
			}
		}
	}
	if !on {
		return transferNone, false
	}
	if u, err := url.Parse(endpoint); endpoint != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		s.remark("%s must be a URL like http://collector:4318: nothing is exported to it", endpointName)
		return transferNone, false
	}
	s.checkExport(getenv, signal, endpoint)
	how = transferHTTP
	switch name, protocol := first("OTEL_EXPORTER_OTLP_"+signal+"_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"); protocol {
	case "grpc":
		how = transferGRPC
	case "", "http/protobuf":
	case "http/json":
		if signal == "METRICS" { // a collector takes both at the same URL
			s.remark("%s is http/json, which is for traces only: metrics are sent as http/protobuf", name)
		}
	default:
		s.remark("%s must be http/protobuf, http/json or grpc: http/protobuf is used", name)
	}
	return how, endpoint == ""
}

// telemetry exports spans and metrics, if that is asked for. Whatever becomes of
// them, orders do not notice: spans are handed over without waiting, too many
// are dropped, and a collector that is away is told of once.
type telemetry struct {
	signals  signals
	log      *slog.Logger
	registry *prometheus.Registry
	resource *resource.Resource
	spans    *sdktrace.TracerProvider // nil: nobody traces
	failures *prometheus.CounterVec
	dropped  prometheus.Counter
}

// newTelemetry prepares the telemetry of a process; nothing runs yet.
func newTelemetry(s signals, process string, registry *prometheus.Registry, log *slog.Logger) *telemetry {
	t := &telemetry{signals: s, log: log, registry: registry, failures: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "packship_telemetry_export_failures_total",
		Help: "Batches of spans or metrics that no OpenTelemetry collector took; they are lost.",
	}, []string{"signal"})}
	t.dropped = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "packship_telemetry_dropped_spans_total",
		Help: "Spans that were dropped because too many waited to be exported.",
	})
	registry.MustRegister(t.failures, t.dropped)
	for _, signal := range []string{signalTraces, signalMetrics} {
		t.failures.WithLabelValues(signal)
	}
	for _, remark := range s.remarks {
		log.Warn("a variable of OpenTelemetry is not understood as it stands", "detail", remark)
	}
	if s.traces == transferNone && s.metrics == transferNone {
		return t
	}
	t.hush()
	t.resource = resource.Default()
	for _, more := range []*resource.Resource{
		resource.NewSchemaless(
			semconv.ServiceName("packship"),
			semconv.ServiceVersion(BuildInfo().Version),
			semconv.ServiceInstanceID(process),
		),
		resource.Environment(), // what is said there counts more
	} {
		merged, err := resource.Merge(t.resource, more)
		if err != nil {
			log.Warn("what this process is called is told in part", "err", err)
		}
		t.resource = merged
	}
	if s.traces != transferNone {
		// It has no processor, and so does nothing, before run.
		t.spans = sdktrace.NewTracerProvider(sdktrace.WithResource(t.resource))
	}
	return t
}

// hush has the SDK speak in packship's log, and there is one SDK in a process.
// Left alone it prints lines of its own among those of the log, with the values of
// variables that it cannot read, which may be secrets. What is wrong with those
// was told by readSignals, and what is wrong with exports is told by exports; so
// nothing that it says is news.
func (t *telemetry) hush() {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { t.log.Debug("opentelemetry", "err", err) }))
	otel.SetLogger(logr.FromSlogHandler(sdkHandler{t.log}))
}

// sdkHandler logs what the SDK says, without the values that belong to it.
type sdkHandler struct{ log *slog.Logger }

// Enabled lets the log decide.
func (h sdkHandler) Enabled(ctx context.Context, _ slog.Level) bool {
	return h.log.Enabled(ctx, slog.LevelDebug)
}

// Handle logs a line.
func (h sdkHandler) Handle(ctx context.Context, r slog.Record) error {
	h.log.DebugContext(ctx, "opentelemetry", "detail", r.Message)
	return nil
}

// WithAttrs leaves out the values.
func (h sdkHandler) WithAttrs([]slog.Attr) slog.Handler { return h }

// WithGroup leaves out the values.
func (h sdkHandler) WithGroup(string) slog.Handler { return h }

// tracer returns what makes spans, nil if nobody traces.
func (t *telemetry) tracer() trace.Tracer {
	if t.spans == nil {
		return nil
	}
	return t.spans.Tracer("packship", trace.WithInstrumentationVersion(BuildInfo().Version))
}

// flushLimit bounds the last exports of a process that stops.
const flushLimit = 2 * time.Second

// run exports until life stops it. An exporter that cannot be made is told of
// and left out.
func (t *telemetry) run(ctx context.Context, life *lifecycle) {
	if t.resource == nil {
		return // nothing is asked for
	}
	exporting, cut := context.WithCancel(context.WithoutCancel(ctx))
	var shutdowns []func(context.Context) error
	if t.spans != nil {
		exporter, err := t.signals.spanExporter(ctx)
		if err != nil {
			t.log.Warn("spans are not exported", "err", err)
		} else {
			t.spans.RegisterSpanProcessor(newSpanQueue(spanExporter{exporter, t.exports(exporting, signalTraces)}, t.dropped, t.log))
		}
		shutdowns = append(shutdowns, t.spans.Shutdown)
	}
	if t.signals.metrics != transferNone {
		exporter, err := t.signals.metricExporter(ctx)
		if err != nil {
			t.log.Warn("metrics are not exported", "err", err)
		} else {
			reader := sdkmetric.NewPeriodicReader(metricExporter{exporter, t.exports(exporting, signalMetrics)},
				sdkmetric.WithProducer(bridge.NewMetricProducer(bridge.WithGatherer(t.registry))))
			shutdowns = append(shutdowns, sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader), sdkmetric.WithResource(t.resource)).Shutdown)
		}
	}
	life.onStop("telemetry", func(limit context.Context) error {
		limit, cancel := context.WithTimeout(limit, flushLimit)
		defer cancel()
		// After the limit no export goes on, so that the shutdowns end by
		// themselves and with all of their goroutines.
		defer context.AfterFunc(limit, cut)()
		var wg sync.WaitGroup
		for _, shutdown := range shutdowns {
			wg.Go(func() {
				if err := shutdown(context.WithoutCancel(limit)); err != nil {
					t.log.Debug("telemetry not shut down", "err", err)
				}
			})
		}
		wg.Wait()
		cut()
		return nil // the orders are settled; spans do not make a stop fail
	})
}

// spanExporter makes the exporter of spans. Without an endpoint the SDK of Go
// would want TLS from the collector of this host, against the specification.
func (s *signals) spanExporter(ctx context.Context) (sdktrace.SpanExporter, error) {
	switch {
	case s.traces == transferGRPC && s.tracesHere:
		return otlptracegrpc.New(ctx, otlptracegrpc.WithInsecure())
	case s.traces == transferGRPC:
		return otlptracegrpc.New(ctx)
	case s.tracesHere:
		return otlptracehttp.New(ctx, otlptracehttp.WithInsecure())
	default:
		return otlptracehttp.New(ctx)
	}
}

// metricExporter makes the exporter of metrics, as spanExporter does for spans.
func (s *signals) metricExporter(ctx context.Context) (sdkmetric.Exporter, error) {
	switch {
	case s.metrics == transferGRPC && s.metricsHere:
		return otlpmetricgrpc.New(ctx, otlpmetricgrpc.WithInsecure())
	case s.metrics == transferGRPC:
		return otlpmetricgrpc.New(ctx)
	case s.metricsHere:
		return otlpmetrichttp.New(ctx, otlpmetrichttp.WithInsecure())
	default:
		return otlpmetrichttp.New(ctx)
	}
}

// exports watches the exports of one signal.
type exports struct {
	ctx    context.Context //nolint:containedctx // the exports of a process end with it
	log    *slog.Logger
	failed prometheus.Counter

	mu      sync.Mutex
	failing bool // guarded by mu
}

func (t *telemetry) exports(ctx context.Context, signal string) *exports {
	return &exports{ctx: ctx, log: t.log.With("signal", signal), failed: t.failures.WithLabelValues(signal)}
}

// do makes one export, which ends with the exports' context at the latest.
func (e *exports) do(ctx context.Context, export func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)() //nolint:contextcheck // that is what it is for
	e.note(export(ctx))
	return nil // the SDK would only print it
}

// note counts a failure, and logs the first one and the end of them.
func (e *exports) note(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		e.failed.Inc()
	}
	if e.failing == (err != nil) {
		return
	}
	e.failing = err != nil
	if err != nil {
		e.log.Warn("telemetry not exported, it is lost until that works again", "err", err)
		return
	}
	e.log.Info("telemetry is exported again")
}

// spanExporter is a watched exporter of spans.
type spanExporter struct {
	sdktrace.SpanExporter
	exports *exports
}

// ExportSpans exports a batch.
func (e spanExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	return e.exports.do(ctx, func(ctx context.Context) error { return e.SpanExporter.ExportSpans(ctx, spans) })
}

// metricExporter is a watched exporter of metrics.
type metricExporter struct {
	sdkmetric.Exporter
	exports *exports
}

// Export exports what was gathered.
func (e metricExporter) Export(ctx context.Context, metrics *metricdata.ResourceMetrics) error {
	return e.exports.do(ctx, func(ctx context.Context) error { return e.Exporter.Export(ctx, metrics) })
}
