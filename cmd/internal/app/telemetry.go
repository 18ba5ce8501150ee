package app

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

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
// the OpenTelemetry SDK itself; here it is only decided what is switched on.
//
// Wrong values are told and passed over, as the OpenTelemetry specification
// asks: orders do not wait for somebody to mend their telemetry.
type signals struct {
	traces, metrics transfer
	remarks         []string // on values that have no effect
}

// readSignals reads the variables. Nothing is exported unless an endpoint or an
// exporter is named.
func readSignals(getenv func(string) string) signals {
	if strings.EqualFold(strings.TrimSpace(getenv("OTEL_SDK_DISABLED")), "true") {
		return signals{}
	}
	var s signals
	s.traces = s.read(getenv, "TRACES")
	s.metrics = s.read(getenv, "METRICS")
	return s
}

// read reads the variables of one signal.
func (s *signals) read(getenv func(string) string, signal string) transfer {
	first := func(names ...string) (name, value string) {
		for _, name := range names {
			if value := strings.TrimSpace(getenv(name)); value != "" {
				return name, value
			}
		}
		return "", ""
	}
	remark := func(format string, args ...any) {
		// What is said of both signals is said once.
		if r := fmt.Sprintf(format, args...); !slices.Contains(s.remarks, r) {
			s.remarks = append(s.remarks, r)
		}
	}
	endpointName, endpoint := first("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
	exporterName, exporters := first("OTEL_" + signal + "_EXPORTER")
	on := endpoint != ""
	if exporters != "" {
		on = false
		for exporter := range strings.SplitSeq(exporters, ",") {
			switch strings.TrimSpace(exporter) {
			case "otlp":
				on = true
			case "none":
			case "prometheus": // for metrics: /metrics is always there
				if signal != "METRICS" {
					remark("%s must be otlp or none: nothing is exported to %q", exporterName, "prometheus")
				}
			default:
				remark("%s must be otlp or none: nothing is exported to %q", exporterName, exporter)
			}
		}
	}
	if !on {
		return transferNone
	}
	if u, err := url.Parse(endpoint); endpoint != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		remark("%s must be a URL like http://collector:4318: nothing is exported to it", endpointName)
		return transferNone
	}
	switch name, protocol := first("OTEL_EXPORTER_OTLP_"+signal+"_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"); protocol {
	case "grpc":
		return transferGRPC
	case "", "http/protobuf", "http/json":
	default:
		remark("%s must be http/protobuf, http/json or grpc: http/protobuf is used", name)
	}
	return transferHTTP
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
}

// newTelemetry prepares the telemetry of a process; nothing runs yet.
func newTelemetry(s signals, process string, registry *prometheus.Registry, log *slog.Logger) *telemetry {
	t := &telemetry{signals: s, log: log, registry: registry, failures: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "packship_telemetry_export_failures_total",
		Help: "Batches of spans or metrics that no OpenTelemetry collector took; they are lost.",
	}, []string{"signal"})}
	registry.MustRegister(t.failures)
	for _, signal := range []string{signalTraces, signalMetrics} {
		t.failures.WithLabelValues(signal)
	}
	for _, remark := range s.remarks {
		log.Warn("a variable of OpenTelemetry has no effect", "detail", remark)
	}
	if s.traces == transferNone && s.metrics == transferNone {
		return t
	}
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
	// What is left to the SDK's own handler, which prints it among the log's
	// lines, are exports that a stop has cut off. There is one handler in a
	// process.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { t.log.Debug("opentelemetry", "err", err) }))
	exporting, cut := context.WithCancel(context.WithoutCancel(ctx))
	var shutdowns []func(context.Context) error
	if t.spans != nil {
		exporter, err := t.signals.traces.spanExporter(ctx)
		if err != nil {
			t.log.Warn("spans are not exported", "err", err)
		} else {
			t.spans.RegisterSpanProcessor(sdktrace.NewBatchSpanProcessor(spanExporter{exporter, t.exports(exporting, signalTraces)}))
		}
		shutdowns = append(shutdowns, t.spans.Shutdown)
	}
	if t.signals.metrics != transferNone {
		exporter, err := t.signals.metrics.metricExporter(ctx)
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

func (t transfer) spanExporter(ctx context.Context) (sdktrace.SpanExporter, error) {
	if t == transferGRPC {
		return otlptracegrpc.New(ctx)
	}
	return otlptracehttp.New(ctx)
}

func (t transfer) metricExporter(ctx context.Context) (sdkmetric.Exporter, error) {
	if t == transferGRPC {
		return otlpmetricgrpc.New(ctx)
	}
	return otlpmetrichttp.New(ctx)
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
