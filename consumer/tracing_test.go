package consumer

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"packship/schema"
)

// traceTo has the Shipper's spans recorded.
func traceTo(spans *tracetest.SpanRecorder, options ...sdktrace.TracerProviderOption) func(*ShipperConfig) {
	provider := sdktrace.NewTracerProvider(append(options, sdktrace.WithSpanProcessor(spans))...)
	return func(cfg *ShipperConfig) { cfg.Tracer = provider.Tracer("test") }
}

// attributesOf returns the attributes as text, those of packship without its
// name.
func attributesOf(list []attribute.KeyValue) string {
	var all []string
	for _, a := range list {
		all = append(all, fmt.Sprintf("%s=%s", strings.TrimPrefix(string(a.Key), "packship."), a.Value.String()))
	}
	return strings.Join(all, " ")
}

// TestShipperTracesAttempts looks at the span of an order that is taken over from
// a process that is gone, is not answered, and is then told to be shipped.
func TestShipperTracesAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spans := tracetest.NewSpanRecorder()
		b := newBench(traceTo(spans), silence, already)
		b.ledger.standing = schema.Standing{State: schema.StateHeld, Round: 1, Holder: "other-9", FreeAt: time.Now()}
		if err := b.handle(t, t.Context(), "E1"); err != nil {
			t.Fatal(err)
		}
		ended := spans.Ended()
		if len(ended) != 1 {
			t.Fatalf("%d spans, want 1: an order has one, however often it is called for", len(ended))
		}
		span := ended[0]
		var got []string
		for _, e := range span.Events() {
			got = append(got, e.Name+" "+attributesOf(e.Attributes))
		}
		want := []string{
			"claimed attempt=me-1 round=1 in_doubt=true taken_over=other-9",
			"answered reason=" + silence.Reason + " effect=unknown reached=true",
			"claimed attempt=me-2 round=1 in_doubt=true taken_over=me-1",
			"answered reason=" + already.Reason + " effect=not_shipped reached=true",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		if took := span.EndTime().Sub(span.StartTime()); took != 30*time.Second {
			t.Errorf("the span takes %s, want the 30s of the order", took)
		}
		if span.Status().Code != codes.Unset || !strings.Contains(attributesOf(span.Attributes()), "attempt=me-2 outcome=shipped") {
			t.Errorf("status %v, attributes %s", span.Status(), attributesOf(span.Attributes()))
		}
		if n := testutil.ToFloat64(b.shipper.metrics.reconciled.WithLabelValues(toldConfirmed)); n != 1 {
			t.Errorf("%g confirmed reconciliations, want 1", n)
		}
	})
}

// TestShipperTracesInterruption: what is not seen through to the end says so, and
// is not taken for a failure.
func TestShipperTracesInterruption(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	b := newBench(traceTo(spans), yes)
	b.closeGate()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errShelved)
	if err := b.handle(t, ctx, "E1"); err == nil {
		t.Fatal("an order behind a closed gate was settled")
	}
	span := spans.Ended()[0]
	if got := attributesOf(span.Attributes()); !strings.HasSuffix(got, "outcome=interrupted") || span.Status().Code != codes.Unset {
		t.Errorf("status %v, attributes %s", span.Status(), got)
	}
}

// TestShipperKeepsToTheProducersSampling: an order whose producer does not record
// its trace is not recorded here either, unless that is asked for.
func TestShipperKeepsToTheProducersSampling(t *testing.T) {
	for _, tt := range []struct {
		parent string
		want   int
	}{
		{"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", 1},
		{"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", 0},
		{"nonsense", 1},
	} {
		spans := tracetest.NewSpanRecorder()
		b := newBench(traceTo(spans), yes)
		rec := packedRecord("E1", time.Now())
		rec.Headers = []schema.Header{{Key: "traceparent", Value: []byte(tt.parent)}}
		p, err := schema.DecodePacked(rec)
		if err := b.shipper.Handle(t.Context(), b.gate, rec, p, err); err != nil {
			t.Fatal(err)
		}
		if got := len(spans.Ended()); got != tt.want {
			t.Errorf("%s: %d spans, want %d", tt.parent, got, tt.want)
		}
	}
}

// TestShipperCounts looks at the counters that tell repeated orders and
// reconciliations apart, and at those that are there before anything happens.
func TestShipperCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(func(cfg *ShipperConfig) { cfg.Classes = []string{"transient", "waybill_rejected"} }, silence, yes)
		for _, class := range []string{"transient", "waybill_rejected", classNeedsHuman} {
			if !b.shipper.metrics.finished.DeleteLabelValues(string(schema.Failed), class) {
				t.Errorf("no series of failures of class %s from the start", class)
			}
		}
		repeated, shipped := b.shipper.metrics.repeated, b.shipper.metrics.reconciled.WithLabelValues(toldShipped)
		for n := range 3 {
			if err := b.handle(t, t.Context(), "E1"); err != nil {
				t.Fatal(err)
			}
			if got := testutil.ToFloat64(repeated); got != float64(n) {
				t.Errorf("after %d more records of the order: %g repeated", n, got)
			}
		}
		if got := testutil.ToFloat64(shipped); got != 1 {
			t.Errorf("%g orders in doubt were shipped by a further call, want 1", got)
		}

		b = newBench(nil, silence, no)
		if err := b.handle(t, t.Context(), "E1"); err != nil {
			t.Fatal(err)
		}
		if got := testutil.ToFloat64(b.shipper.metrics.reconciled.WithLabelValues(toldFailed)); got != 1 {
			t.Errorf("%g orders in doubt have failed, want 1", got)
		}
		if testutil.ToFloat64(b.shipper.metrics.repeated) != 0 {
			t.Error("an order that came once counts as repeated")
		}
	})
}

func TestAttemptsOf(t *testing.T) {
	for event, want := range map[string]int{
		`{"attempts":1,"reconciled":false}`:                      1,
		`{"msg":"\"attempts\":7","attempts":12}`:                 12,
		`{"msg":"\\","tid":"\"attempts\"","attempts":0,"x":[3]}`: 0,
		`{}`: 0,
	} {
		if got := attemptsOf(schema.Outcome{Event: []byte(event)}); got != want {
			t.Errorf("%s: %d attempts, want %d", event, got, want)
		}
	}
	s := schema.Shipment{ShopID: "1", TID: "2", Split: "0", OutSID: "SF1", CompanyCode: "SF"}
	o, err := (&schema.Result{ShopID: "1", TID: "2", Attempts: 345}).Outcome(&s, 1, time.Now())
	if got := attemptsOf(o); err != nil || got != 345 {
		t.Errorf("%s: %d attempts, %v; want 345", o.Event, got, err)
	}
}
