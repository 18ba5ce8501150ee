package app

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// heldExporter exports when it is let.
type heldExporter struct {
	let      chan struct{}
	exported atomic.Int64
}

func (e *heldExporter) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	<-e.let
	e.exported.Add(int64(len(spans)))
	return nil
}

func (*heldExporter) Shutdown(context.Context) error { return nil }

// TestSpanQueue has more spans end than can be kept while a collector is slow:
// what is beyond the bound is dropped and counted, and told once each time.
func TestSpanQueue(t *testing.T) {
	t.Setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
	t.Setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
	synctest.Test(t, func(t *testing.T) {
		lines := new(lineLog)
		dropped := prometheus.NewCounter(prometheus.CounterOpts{Name: "dropped_total", Help: "Spans."})
		e := &heldExporter{let: make(chan struct{})}
		provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(newSpanQueue(e, dropped, slog.New(slog.NewTextHandler(lines, nil)))))
		end := func(n int) {
			for range n {
				_, span := provider.Tracer("x").Start(t.Context(), "x")
				span.End()
			}
		}
		check := func(exported, lost float64, told, over int) {
			t.Helper()
			if got := float64(e.exported.Load()); got != exported {
				t.Errorf("%g spans exported, want %g", got, exported)
			}
			if got := testutil.ToFloat64(dropped); got != lost {
				t.Errorf("%g spans dropped, want %g", got, lost)
			}
			if a, b := strings.Count(lines.String(), "spans are dropped"), strings.Count(lines.String(), "not dropped any more"); a != told || b != over {
				t.Errorf("told %d times that spans are dropped and %d times that no more are, want %d and %d", a, b, told, over)
			}
		}
		end(13)
		synctest.Wait()
		check(0, 3, 1, 0)
		for e.exported.Load() < 10 {
			e.let <- struct{}{}
			synctest.Wait()
		}
		check(10, 3, 1, 1)
		end(9) // there is room again
		synctest.Wait()
		check(10, 3, 1, 1)
		end(2)
		synctest.Wait()
		check(10, 4, 2, 1)
		close(e.let)
		if err := provider.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		check(20, 4, 2, 2)
	})
}

// TestSpanQueueSampling: spans that nobody wants take no room.
func TestSpanQueueSampling(t *testing.T) {
	t.Setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")
	dropped := prometheus.NewCounter(prometheus.CounterOpts{Name: "dropped_total", Help: "Spans."})
	q := newSpanQueue(new(heldExporter), dropped, testLogger(t))
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(q), sdktrace.WithSampler(recordOnly{}))
	for range 10 {
		_, span := provider.Tracer("x").Start(t.Context(), "x")
		span.End()
	}
	if err := provider.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if got := testutil.ToFloat64(dropped); got != 0 || q.waiting != 0 {
		t.Errorf("%g spans dropped and %d wait, want none", got, q.waiting)
	}
}

// recordOnly has spans recorded and not exported.
type recordOnly struct{ sdktrace.Sampler }

func (recordOnly) ShouldSample(sdktrace.SamplingParameters) sdktrace.SamplingResult {
	return sdktrace.SamplingResult{Decision: sdktrace.RecordOnly}
}

func (recordOnly) Description() string { return "record only" }
