package app

import (
	"context"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// spanQueue keeps spans until they are exported, in batches, and bounds how many.
// The SDK's own processor has the same bound, but drops what is beyond it without
// a word; so it is given no more than it can take.
type spanQueue struct {
	sdktrace.SpanProcessor

	log     *slog.Logger
	limit   int
	dropped prometheus.Counter

	mu       sync.Mutex
	waiting  int  // guarded by mu; spans that have ended and were not exported yet
	dropping bool // guarded by mu; whether some were dropped since there was room
}

// newSpanQueue returns a queue of so many spans as the environment says.
func newSpanQueue(exporter sdktrace.SpanExporter, dropped prometheus.Counter, log *slog.Logger) *spanQueue {
	q := &spanQueue{log: log, limit: sdktrace.DefaultMaxQueueSize, dropped: dropped}
	if n, err := strconv.Atoi(strings.TrimSpace(os.Getenv("OTEL_BSP_MAX_QUEUE_SIZE"))); err == nil && n > 0 {
		q.limit = n
	}
	q.SpanProcessor = sdktrace.NewBatchSpanProcessor(queuedExporter{exporter, q}, sdktrace.WithMaxQueueSize(q.limit))
	return q
}

// OnEnd takes a span, or drops it.
func (q *spanQueue) OnEnd(span sdktrace.ReadOnlySpan) {
	if !span.SpanContext().IsSampled() {
		return
	}
	if q.take() {
		q.SpanProcessor.OnEnd(span)
	}
}

func (q *spanQueue) take() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiting < q.limit {
		q.waiting++
		return true
	}
	q.dropped.Inc()
	if !q.dropping {
		q.dropping = true
		q.log.Warn("spans are dropped, they end faster than they are exported", "waiting", q.waiting)
	}
	return false
}

// gone notes that spans were exported, or lost in the attempt.
func (q *spanQueue) gone(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting -= n
	if q.dropping && q.waiting <= q.limit/2 {
		q.dropping = false
		q.log.Info("spans are not dropped any more")
	}
}

// queuedExporter exports what comes out of a queue.
type queuedExporter struct {
	sdktrace.SpanExporter
	queue *spanQueue
}

// ExportSpans exports a batch.
func (e queuedExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	defer e.queue.gone(len(spans))
	return e.SpanExporter.ExportSpans(ctx, spans)
}
