package producer

import (
	"context"
	"errors"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"packship/producer/internal/brokertest"
	"packship/schema"
)

// TestPublishTraces: the traceparent of a result is that of the span that has
// sent it, whether or not the span is recorded.
func TestPublishTraces(t *testing.T) {
	b := brokertest.Fake(t)
	for flags, recorded := range map[string]int{"01": 1, "00": 0} {
		names := newTopics(t, b)
		p, _ := newProducer(t, b, names, nil)
		spans := tracetest.NewSpanRecorder()
		p.cfg.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test")
		parent := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-" + flags
		ctx := propagation.TraceContext{}.Extract(t.Context(), propagation.MapCarrier{"traceparent": parent, "tracestate": "vendor=x"})
		pub := schema.Publication{TID: "1", Outcome: outcome(t, "1", false), TraceParent: parent, TraceState: "vendor=x"}
		if err := p.Publish(ctx, pub); err != nil {
			t.Fatal(err)
		}
		rec, _ := find(t, b, names.shipped, 5)
		got := headers(rec)
		if !strings.HasPrefix(got["traceparent"], parent[:36]) || !strings.HasSuffix(got["traceparent"], flags) || got["traceparent"] == parent || got["tracestate"] != "vendor=x" {
			t.Errorf("got traceparent %s, tracestate %s; want another span of the trace of %s", got["traceparent"], got["tracestate"], parent)
		}
		ended := spans.Ended()
		if len(ended) != recorded {
			t.Fatalf("flags %s: %d spans, want %d", flags, len(ended), recorded)
		}
		if recorded == 0 {
			continue
		}
		if span := ended[0]; !strings.Contains(got["traceparent"], span.SpanContext().SpanID().String()) || span.SpanKind() != trace.SpanKindProducer {
			t.Errorf("traceparent %s is not that of the span %s", got["traceparent"], span.SpanContext().SpanID())
		}
	}
}

// TestPublishTracesGivingUp: what is not sent in the end is a span that failed.
func TestPublishTracesGivingUp(t *testing.T) {
	b := brokertest.Fake(t)
	p, _ := newProducer(t, b, newTopics(t, b), nil)
	spans := tracetest.NewSpanRecorder()
	p.cfg.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Publish(ctx, schema.Publication{TID: "1", Outcome: outcome(t, "1", false)}); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if ended := spans.Ended(); len(ended) != 1 || ended[0].Status().Code != codes.Error {
		t.Errorf("spans %v, want one that failed", ended)
	}
}
