package app

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"packship/schema"
	"packship/upstream/upstreamtest"
)

// collector stands in for an OpenTelemetry collector: it takes what is exported
// to it by OTLP over HTTP.
type collector struct {
	t *testing.T

	mu       sync.Mutex
	spans    []*tracepb.Span
	metrics  map[string]bool // names
	resource map[string]string
	raw      bytes.Buffer // all that came, undecoded
}

// newCollector starts a collector, and has the standard variables point to it.
func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{t: t, metrics: map[string]bool{}, resource: map[string]string{}}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
	t.Setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
	return c
}

func (c *collector) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Error(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw.Write(body)
	switch r.URL.Path {
	case "/v1/traces":
		var req coltrace.ExportTraceServiceRequest
		err = proto.Unmarshal(body, &req)
		for _, rs := range req.GetResourceSpans() {
			c.describe(rs.GetResource().GetAttributes())
			for _, ss := range rs.GetScopeSpans() {
				c.spans = append(c.spans, ss.GetSpans()...)
			}
		}
	case "/v1/metrics":
		var req colmetrics.ExportMetricsServiceRequest
		err = proto.Unmarshal(body, &req)
		for _, rm := range req.GetResourceMetrics() {
			c.describe(rm.GetResource().GetAttributes())
			for _, sm := range rm.GetScopeMetrics() {
				for _, m := range sm.GetMetrics() {
					c.metrics[m.GetName()] = true
				}
			}
		}
	default:
		err = fmt.Errorf("nothing is to be sent to %s", r.URL.Path)
	}
	if err != nil {
		c.t.Error(err)
	}
}

// describe keeps the attributes of the process that exports. The caller holds
// mu.
func (c *collector) describe(attributes []*commonpb.KeyValue) {
	for _, a := range attributes {
		c.resource[a.GetKey()] = a.GetValue().GetStringValue()
	}
}

// attributes returns the attributes of a span as text.
func attributes(span *tracepb.Span) map[string]string {
	all := map[string]string{}
	for _, a := range span.GetAttributes() {
		switch v := a.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			all[a.GetKey()] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			all[a.GetKey()] = fmt.Sprint(v.IntValue)
		case *commonpb.AnyValue_BoolValue:
			all[a.GetKey()] = fmt.Sprint(v.BoolValue)
		}
	}
	return all
}

// processed waits for the span of a record and returns it with its children, in
// the order of their beginnings.
func (c *collector) processed(topic string, partition int, offset int64) (process *tracepb.Span, children []*tracepb.Span) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("the span of %s/%d/%d", topic, partition, offset), func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, span := range c.spans {
			a := attributes(span)
			if span.GetName() == "process "+topic && a["messaging.destination.partition.id"] == fmt.Sprint(partition) && a["messaging.kafka.offset"] == fmt.Sprint(offset) {
				process = span
				return true
			}
		}
		return false
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, span := range c.spans {
		if bytes.Equal(span.GetParentSpanId(), process.GetSpanId()) {
			children = append(children, span)
			if !bytes.Equal(span.GetTraceId(), process.GetTraceId()) {
				c.t.Errorf("span %s is in another trace than its parent", span.GetName())
			}
		}
	}
	slices.SortFunc(children, func(a, b *tracepb.Span) int { return int(a.GetStartTimeUnixNano()) - int(b.GetStartTimeUnixNano()) })
	return process, children
}

// story tells what happened to an order, one line for each span and event.
func story(process *tracepb.Span, children []*tracepb.Span) []string {
	line := func(span *tracepb.Span, keys ...string) string {
		text := strings.TrimPrefix(span.GetKind().String(), "SPAN_KIND_") + " " + span.GetName()
		a := attributes(span)
		for _, key := range keys {
			if v, ok := a[key]; ok {
				text += " " + v
			}
		}
		if span.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
			text += " error"
		}
		return text
	}
	lines := []string{line(process, "packship.outcome", "packship.attempts", "error.type")}
	for _, e := range process.GetEvents() {
		lines = append(lines, e.GetName())
	}
	for _, child := range children {
		lines = append(lines, line(child, "http.response.status_code", "packship.effect"))
	}
	return lines
}

const (
	producerTrace = "0af7651916cd43dd8448eb211c80319c"
	producerSpan  = "b7ad6b7169203331"
)

// traced returns a packed record whose producer traces.
func traced(partition, tid int) schema.Record {
	return schema.Record{Partition: partition, Key: fmt.Append(nil, tid), Value: []byte(order(tid, "")), Headers: []schema.Header{
		{Key: "traceparent", Value: []byte("00-" + producerTrace + "-" + producerSpan + "-01")},
		{Key: "tracestate", Value: []byte("vendor=x")},
	}}
}

// TestTelemetry has a collector look on as orders are shipped, reconciled,
// refused, replayed and dead-lettered.
func TestTelemetry(t *testing.T) {
	c := newCollector(t)
	w := newWorld(t, upstreamtest.Options{Latency: quick}, func(s *Settings) {
		s.UpstreamTimeout, s.UpstreamSettle = 300*time.Millisecond, 200*time.Millisecond
		s.signals = readSignals(os.Getenv)
	})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.ApplyThenHang, TID: "2", Count: 1})
	w.sim.AddFault(upstreamtest.Fault{Kind: upstreamtest.AnyRow(35), TID: "35"})
	in, shipped, failed, dlq := w.settings.TopicPacked, w.settings.TopicShipped, w.settings.TopicFailed, w.settings.TopicDLQ
	w.append(traced(0, 1))
	w.append(traced(1, 2))
	w.append(schema.Record{Partition: 2, Key: []byte("secret key"), Value: []byte(order(35, ""))}) // its producer does not trace
	w.append(schema.Record{Partition: 2, Value: []byte("not json")})
	r := w.start()
	w.await(2, 1, 1)
	w.append(traced(0, 1)) // once more
	w.await(3, 1, 1)
	w.committed()

	for _, tt := range []struct {
		partition int
		offset    int64
		traced    bool
		want      []string
	}{
		{0, 0, true, []string{
			"CONSUMER process " + in + " shipped 1", "claimed", "answered",
			"CLIENT POST 200 shipped", "PRODUCER send " + shipped,
		}},
		{1, 0, true, []string{
			"CONSUMER process " + in + " shipped 2", "claimed", "answered", "claimed", "answered",
			"CLIENT POST unknown error", "CLIENT POST 200 not_shipped", "PRODUCER send " + shipped,
		}},
		{0, 1, true, []string{
			"CONSUMER process " + in + " shipped 1",
			"PRODUCER send " + shipped,
		}},
		{2, 0, false, []string{
			"CONSUMER process " + in + " failed 1 waybill_already_used error", "claimed", "answered",
			"CLIENT POST 200 not_shipped", "PRODUCER send " + failed,
		}},
		{2, 1, false, []string{
			"CONSUMER process " + in + " dead_lettered not_json error",
			"PRODUCER send " + dlq,
		}},
	} {
		process, children := c.processed(in, tt.partition, tt.offset)
		if d := cmp.Diff(tt.want, story(process, children)); d != "" {
			t.Errorf("record %d/%d (-want +got):\n%s", tt.partition, tt.offset, d)
		}
		if !tt.traced {
			if len(process.GetParentSpanId()) != 0 || len(process.GetLinks()) != 0 {
				t.Errorf("record %d/%d has a parent or a link, and no trace of its own", tt.partition, tt.offset)
			}
			continue
		}
		if got := hex.EncodeToString(process.GetTraceId()) + " " + hex.EncodeToString(process.GetParentSpanId()); got != producerTrace+" "+producerSpan {
			t.Errorf("record %d/%d: trace and parent %s, want the producer's", tt.partition, tt.offset, got)
		}
		if l := process.GetLinks(); len(l) != 1 || hex.EncodeToString(l[0].GetSpanId()) != producerSpan || hex.EncodeToString(l[0].GetTraceId()) != producerTrace {
			t.Errorf("record %d/%d: links %v, want one to the producer's span", tt.partition, tt.offset, l)
		}
	}

	process, children := c.processed(in, 0, 0)
	attempt := attributes(process)["packship.attempt"]
	want := map[string]string{
		"messaging.system": "kafka", "messaging.operation.name": "process", "messaging.operation.type": "process",
		"messaging.destination.name": in, "messaging.destination.partition.id": "0", "messaging.kafka.offset": "0",
		"messaging.consumer.group.name": w.settings.KafkaGroupID, "messaging.message.id": "evt-1", "messaging.kafka.message.key": "1",
		"packship.tid": "1", "packship.shop_id": testShop, "packship.outcome": "shipped", "packship.attempts": "1",
		"packship.result_id": result(t, w.read(shipped)[0]).ResultID, "packship.attempt": attempt,
	}
	want["packship.result_id"] = attributes(children[1])["messaging.message.id"]
	if d := cmp.Diff(want, attributes(process)); d != "" || attempt == "" {
		t.Errorf("attributes of the record's span, attempt %q (-want +got):\n%s", attempt, d)
	}
	_, port, _ := net.SplitHostPort(strings.Split(w.settings.UpstreamURL, "/")[2])
	if d := cmp.Diff(map[string]string{
		"http.request.method": "POST", "http.response.status_code": "200", "url.full": w.settings.UpstreamURL,
		"server.address": "127.0.0.1", "server.port": port, "packship.account": "default", "packship.code": "0",
		"packship.effect": "shipped", "packship.reason": "ok", "packship.withheld_points": "1",
	}, attributes(children[0])); d != "" {
		t.Errorf("attributes of the call's span (-want +got):\n%s", d)
	}
	if _, ok := attributes(must(c.processed(in, 2, 0)))["messaging.kafka.message.key"]; ok {
		t.Error("a key that is not the tid is in a span")
	}

	// A result continues the trace of its order, as the span that has sent it.
	sent := map[string]bool{}
	for _, span := range append(children, must2(c.processed(in, 1, 0))...) {
		sent["00-"+hex.EncodeToString(span.GetTraceId())+"-"+hex.EncodeToString(span.GetSpanId())+"-01"] = true
	}
	again := must2(c.processed(in, 0, 1))[0]
	sent["00-"+hex.EncodeToString(again.GetTraceId())+"-"+hex.EncodeToString(again.GetSpanId())+"-01"] = true
	for _, rec := range w.read(shipped) {
		parent, _ := rec.Header("traceparent")
		state, _ := rec.Header("tracestate")
		if !strings.HasPrefix(parent, "00-"+producerTrace+"-") || !sent[parent] || state != "vendor=x" {
			t.Errorf("result of %s: traceparent %s, tracestate %s; want the span that sent it", rec.Key, parent, state)
		}
	}
	if values := w.identities(); len(values) != 3 {
		t.Errorf("%d results, want 3", len(values))
	}

	eventually(t, "the metrics of a process that works", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.metrics["packship_calls_total"] && c.metrics["packship_events_finished_total"] && c.metrics["packship_call_duration_seconds"] && c.metrics["go_goroutines"]
	})
	_, page := r.get("/metrics")
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, want := range map[string]string{
		"service.name": "packship", "service.version": BuildInfo().Version, "service.instance.id": r.c.name, "deployment.environment.name": "test",
	} {
		if c.resource[key] != want {
			t.Errorf("resource attribute %s is %q, want %q", key, c.resource[key], want)
		}
	}
	// I12, and for metrics also no series of a single order.
	for _, secret := range []string{testToken, "e2e-admin", "SF0000000000001", "secret key"} {
		if bytes.Contains(c.raw.Bytes(), []byte(secret)) {
			t.Errorf("the collector was told %q", secret)
		}
		if strings.Contains(page, secret) {
			t.Errorf("/metrics tells %q", secret)
		}
	}
	if strings.Contains(page, "evt-") || strings.Contains(page, testShop) {
		t.Error("/metrics has series of single orders or shops")
	}
}

func must(span *tracepb.Span, _ []*tracepb.Span) *tracepb.Span { return span }

func must2(_ *tracepb.Span, children []*tracepb.Span) []*tracepb.Span { return children }

// TestTelemetryFlushes stops a process whose spans wait for a batch to be full.
func TestTelemetryFlushes(t *testing.T) {
	c := newCollector(t)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
	t.Setenv("OTEL_METRIC_EXPORT_INTERVAL", "3600000")
	w := newWorld(t, upstreamtest.Options{Latency: quick}, func(s *Settings) { s.signals = readSignals(os.Getenv) })
	w.append(traced(0, 1))
	r := w.start()
	w.await(1, 0, 0)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) != 3 || !c.metrics["packship_calls_total"] {
		t.Errorf("after the stop the collector has %d spans and %d metrics, want 3 and some", len(c.spans), len(c.metrics))
	}
}

// TestTelemetryWithoutCollector ships orders while nobody takes the spans, by
// refusing them or, worse, by not answering.
func TestTelemetryWithoutCollector(t *testing.T) {
	for _, protocol := range []string{"http/protobuf", "grpc"} {
		t.Run(protocol, func(t *testing.T) {
			silent, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = silent.Close() })
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+silent.Addr().String())
			t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
			t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "200")
			t.Setenv("OTEL_BSP_EXPORT_TIMEOUT", "300") // of all tries together
			t.Setenv("OTEL_METRIC_EXPORT_TIMEOUT", "300")
			t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
			t.Setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
			t.Setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
			w := newWorld(t, upstreamtest.Options{Latency: quick}, func(s *Settings) { s.signals = readSignals(os.Getenv) })
			lines := new(lineLog)
			w.logger = slog.New(slog.NewTextHandler(lines, nil))
			w.produce(orders(1, 20)...)
			r := w.start()
			failed := func(signal string) float64 {
				return testutil.ToFloat64(r.c.signals.failures.WithLabelValues(signal))
			}
			w.await(20, 0, 0)
			eventually(t, "a failed export of spans", func() bool { return failed(signalTraces) > 0 })
			w.produce(orders(21, 20)...) // those before may all have been in one batch, the rest of them dropped
			w.await(40, 0, 0)
			w.committed()
			eventually(t, "a second failed export of spans", func() bool { return failed(signalTraces) > 1 })
			eventually(t, "two failed exports of metrics", func() bool { return failed(signalMetrics) > 1 })
			if err := r.stop(); err != nil {
				t.Errorf("a stop without a collector: %v", err)
			}
			for _, signal := range []string{signalTraces, signalMetrics} {
				if n := lines.count("telemetry not exported", "signal="+signal); n != 1 {
					t.Errorf("%d lines about %s that were not exported, want 1:\n%s", n, signal, lines)
				}
			}
		})
	}
}

// TestExports has exports fail and work again, and hang when everything ends.
func TestExports(t *testing.T) {
	lines := new(lineLog)
	tel := newTelemetry(signals{}, "p", prometheus.NewRegistry(), slog.New(slog.NewTextHandler(lines, nil)))
	ctx, cut := context.WithCancel(t.Context())
	e := tel.exports(ctx, signalTraces)
	bad := func(context.Context) error { return io.ErrUnexpectedEOF }
	good := func(context.Context) error { return nil }
	for _, export := range []func(context.Context) error{good, bad, bad, good, good, bad} {
		if err := e.do(t.Context(), export); err != nil {
			t.Errorf("the SDK is told of %v, and would print it", err)
		}
	}
	if not, again := lines.count("telemetry not exported"), lines.count("telemetry is exported again"); not != 2 || again != 1 {
		t.Errorf("%d failures and %d recoveries logged, want 2 and 1:\n%s", not, again, lines)
	}
	if n := testutil.ToFloat64(tel.failures.WithLabelValues(signalTraces)); n != 3 {
		t.Errorf("%g failures counted, want 3", n)
	}
	cut()
	_ = e.do(t.Context(), func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }) // it would hang
}

// TestTelemetryStopsInTime ends while exports to a collector hang that never
// answers and the time for the stop is over. Left alone they would take half a
// minute.
func TestTelemetryStopsInTime(t *testing.T) {
	silent, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+silent.Addr().String())
	for _, transfer := range []transfer{transferHTTP, transferGRPC} {
		tel := newTelemetry(signals{traces: transfer, metrics: transfer}, "p", prometheus.NewRegistry(), testLogger(t))
		life := &lifecycle{log: testLogger(t)}
		tel.run(t.Context(), life)
		_, span := tel.tracer().Start(t.Context(), "x")
		span.End()
		over, cancel := context.WithCancel(t.Context())
		cancel()
		stopped := make(chan error)
		go func() { stopped <- life.stop(over) }()
		select {
		case err := <-stopped:
			if err != nil {
				t.Errorf("%s: %v", transfer, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: the stop waits for the collector", transfer)
		}
	}
}

func TestReadSignals(t *testing.T) {
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"
	url := "http://collector:4318"
	for name, tt := range map[string]struct {
		env  map[string]string
		want signals
	}{
		"nothing":           {nil, signals{}},
		"endpoint":          {map[string]string{endpoint: url}, signals{traces: transferHTTP, metrics: transferHTTP}},
		"blank endpoint":    {map[string]string{endpoint: " "}, signals{}},
		"traces only":       {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url}, signals{traces: transferHTTP}},
		"metrics only":      {map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": url}, signals{metrics: transferHTTP}},
		"exporter":          {map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, signals{traces: transferHTTP, tracesHere: true}},
		"none":              {map[string]string{endpoint: url, "OTEL_METRICS_EXPORTER": "none"}, signals{traces: transferHTTP}},
		"scraped and not":   {map[string]string{endpoint: url, "OTEL_METRICS_EXPORTER": "prometheus"}, signals{traces: transferHTTP}},
		"scraped and sent":  {map[string]string{endpoint: url, "OTEL_METRICS_EXPORTER": "prometheus, otlp"}, signals{traces: transferHTTP, metrics: transferHTTP}},
		"disabled":          {map[string]string{endpoint: url, "OTEL_SDK_DISABLED": "True"}, signals{}},
		"not disabled":      {map[string]string{endpoint: url, "OTEL_SDK_DISABLED": "1"}, signals{traces: transferHTTP, metrics: transferHTTP, remarks: []string{"OTEL_SDK_DISABLED must be true or false: nothing is disabled"}}},
		"grpc":              {map[string]string{endpoint: url, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, signals{traces: transferGRPC, metrics: transferGRPC}},
		"grpc for one":      {map[string]string{endpoint: url, "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"}, signals{traces: transferHTTP, metrics: transferGRPC}},
		"json":              {map[string]string{endpoint: url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, signals{traces: transferHTTP, metrics: transferHTTP, remarks: []string{"OTEL_EXPORTER_OTLP_PROTOCOL is http/json, which is for traces only: metrics are sent as http/protobuf"}}},
		"json for traces":   {map[string]string{endpoint: url, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, signals{traces: transferHTTP, metrics: transferHTTP}},
		"unknown protocol":  {map[string]string{endpoint: url, "OTEL_EXPORTER_OTLP_PROTOCOL": "udp"}, signals{traces: transferHTTP, metrics: transferHTTP, remarks: []string{"OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf, http/json or grpc: http/protobuf is used"}}},
		"unknown exporter":  {map[string]string{endpoint: url, "OTEL_TRACES_EXPORTER": "zipkin"}, signals{metrics: transferHTTP, remarks: []string{`OTEL_TRACES_EXPORTER must be otlp or none: nothing is exported to "zipkin"`}}},
		"scraped traces":    {map[string]string{"OTEL_TRACES_EXPORTER": "prometheus"}, signals{remarks: []string{`OTEL_TRACES_EXPORTER must be otlp or none: nothing is exported to "prometheus"`}}},
		"endpoint no URL":   {map[string]string{endpoint: "collector:4318"}, signals{remarks: []string{endpoint + " must be a URL like http://collector:4318: nothing is exported to it"}}},
		"endpoint no host":  {map[string]string{endpoint: "http://"}, signals{remarks: []string{endpoint + " must be a URL like http://collector:4318: nothing is exported to it"}}},
		"endpoint for none": {map[string]string{endpoint: "nonsense", "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}, signals{}},
	} {
		got := readSignals(func(name string) string { return tt.env[name] })
		if d := cmp.Diff(tt.want, got, cmp.AllowUnexported(signals{})); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// TestResource: what the environment says of the process counts more than what
// packship says of itself.
func TestResource(t *testing.T) {
	t.Setenv("OTEL_SERVICE_NAME", "shipping")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=7,team=erp")
	tel := newTelemetry(signals{metrics: transferHTTP}, "p-1", prometheus.NewRegistry(), testLogger(t))
	got := map[string]string{}
	for _, a := range tel.resource.Attributes() {
		got[string(a.Key)] = a.Value.String()
	}
	for key, want := range map[string]string{
		"service.name": "shipping", "service.version": "7", "team": "erp", "service.instance.id": "p-1", "telemetry.sdk.language": "go",
	} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
	if tel.tracer() != nil {
		t.Error("somebody traces although only metrics are asked for")
	}
}

// TestTraceHandler finds the trace of a line in it, and nothing where there is
// none.
func TestTraceHandler(t *testing.T) {
	lines := new(lineLog)
	log := slog.New(traceHandler{slog.NewTextHandler(lines, nil)}).With("component", "x").WithGroup("g")
	log.InfoContext(t.Context(), "outside", "a", 1)
	provider := (&telemetry{}).tracer()
	if provider != nil {
		t.Error("somebody traces who was not asked to")
	}
	tel := newTelemetry(signals{traces: transferHTTP}, "p", prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	ctx, span := tel.tracer().Start(t.Context(), "x")
	log.InfoContext(ctx, "inside", "a", 1)
	span.End()
	if lines.count("outside", "trace_id") != 0 || lines.count("inside", "component=x", "g.a=1", "trace_id="+span.SpanContext().TraceID().String()) != 1 {
		t.Errorf("lines:\n%s", lines)
	}
}

// lineLog keeps what is logged.
type lineLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lineLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lineLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// count returns how many lines hold all the texts.
func (l *lineLog) count(texts ...string) int {
	n := 0
	for line := range strings.Lines(l.String()) {
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
			n++
		}
	}
	return n
}
