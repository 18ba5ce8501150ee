package consumer

import (
	"context"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"packship/schema"
)

// The semantic conventions for messaging may still change, so the Shipper's
// spans are described in this file alone. Nothing in them tells where a parcel
// goes or to whom: an order is known by its tid.

// traceHeaders reads the W3C trace context from the headers of a record.
type traceHeaders struct{ rec *schema.Record }

// Get implements [propagation.TextMapCarrier].
func (h traceHeaders) Get(key string) string {
	value, _ := h.rec.Header(key)
	return value
}

// Set implements [propagation.TextMapCarrier]: a record that was read is not
// changed.
func (traceHeaders) Set(string, string) {}

// Keys implements [propagation.TextMapCarrier].
func (traceHeaders) Keys() []string { return propagation.TraceContext{}.Fields() }

// startSpan begins the span of one record, which lasts until its outcome is
// published. It continues the trace of whoever packed the order, if that has
// one, so that the whole life of an order is one trace; the link says the same
// to those who follow messages by their links.
func (s *Shipper) startSpan(ctx context.Context, rec *schema.Record, p *schema.Packed) (context.Context, trace.Span) {
	ctx = propagation.TraceContext{}.Extract(ctx, traceHeaders{rec})
	if s.cfg.Tracer == nil {
		return ctx, noop.Span{}
	}
	attributes := []attribute.KeyValue{
		semconv.MessagingSystemKafka,
		semconv.MessagingOperationName("process"),
		semconv.MessagingOperationTypeProcess,
		semconv.MessagingDestinationName(rec.Topic),
		semconv.MessagingDestinationPartitionID(strconv.Itoa(rec.Partition)),
		semconv.MessagingKafkaOffsetKey.Int64(rec.Offset),
	}
	if s.cfg.GroupID != "" {
		attributes = append(attributes, semconv.MessagingConsumerGroupName(s.cfg.GroupID))
	}
	if p != nil {
		attributes = append(attributes, semconv.MessagingMessageID(p.EventID),
			attribute.String("packship.tid", p.TID), attribute.String("packship.shop_id", p.ShopID))
		if string(rec.Key) == p.TID { // any other key might say anything
			attributes = append(attributes, semconv.MessagingKafkaMessageKey(p.TID))
		}
	}
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(attributes...)}
	if producer := trace.SpanContextFromContext(ctx); producer.IsValid() {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: producer}))
	}
	return s.cfg.Tracer.Start(ctx, "process "+rec.Topic, options...)
}

// endSpan ends the span of a record that was not seen through to the end if err
// is not nil: it goes on elsewhere, or later.
func endSpan(span trace.Span, err error) {
	if !span.IsRecording() {
		return
	}
	if err != nil {
		span.SetAttributes(attribute.String("packship.outcome", "interrupted"))
		span.AddEvent("interrupted", trace.WithAttributes(attribute.String("packship.cause", err.Error())))
	}
	span.End()
}

// traceClaim notes under which attempt the order is called for, and which one
// that takes over from.
func traceClaim(span trace.Span, hold schema.Hold, prev string) {
	if !span.IsRecording() {
		return
	}
	attempt := attribute.String("packship.attempt", hold.Attempt)
	attributes := []attribute.KeyValue{attempt, attribute.Int("packship.round", hold.Round), attribute.Bool("packship.in_doubt", hold.Doubt)}
	if prev != "" {
		attributes = append(attributes, attribute.String("packship.taken_over", prev))
	}
	span.SetAttributes(attempt)
	span.AddEvent("claimed", trace.WithAttributes(attributes...))
}

// traceAnswer notes what one attempt came to.
func traceAnswer(span trace.Span, a schema.Answer) {
	if !span.IsRecording() {
		return
	}
	span.AddEvent("answered", trace.WithAttributes(
		attribute.String("packship.reason", a.Reason),
		attribute.String("packship.effect", a.Effect.String()),
		attribute.Bool("packship.reached", a.Reached),
	))
}

// traceOutcome notes what is published for the record. A failed order fails the
// span, so that it can be found among the others.
func traceOutcome(span trace.Span, o schema.Outcome, attempts int) {
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(
		attribute.String("packship.outcome", string(o.Verdict)),
		attribute.String("packship.result_id", o.ResultID),
		attribute.Int("packship.attempts", attempts),
	)
	if o.Verdict == schema.Shipped {
		return
	}
	span.SetAttributes(semconv.ErrorTypeKey.String(o.Reason),
		attribute.String("packship.class", o.Class), attribute.Bool("packship.maybe_shipped", o.MaybeShipped))
	span.SetStatus(codes.Error, o.Reason)
}

// traceBurial notes that the record is no packed event.
func traceBurial(span trace.Span, reason string) {
	span.SetAttributes(attribute.String("packship.outcome", verdictDeadLettered), semconv.ErrorTypeKey.String(reason))
	span.SetStatus(codes.Error, reason)
}
