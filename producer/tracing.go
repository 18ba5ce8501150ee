package producer

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

// The semantic conventions for messaging may still change, so the Producer's
// spans are described in this file alone.

// startSend begins the span of one record on its way to a topic. It is what a
// reader of the record links to.
func (p *Producer) startSend(ctx context.Context, topic string, attributes ...attribute.KeyValue) (context.Context, trace.Span) {
	if p.cfg.Tracer == nil {
		return ctx, noop.Span{}
	}
	attributes = append(attributes,
		semconv.MessagingSystemKafka,
		semconv.MessagingOperationName("send"),
		semconv.MessagingOperationTypeSend,
		semconv.MessagingDestinationName(topic),
	)
	return p.cfg.Tracer.Start(ctx, "send "+topic, trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(attributes...))
}

// resultAttributes tell which result is sent, and for which order.
func resultAttributes(pub *schema.Publication) []attribute.KeyValue {
	return []attribute.KeyValue{semconv.MessagingMessageID(pub.Outcome.ResultID), semconv.MessagingKafkaMessageKey(pub.TID)}
}

// endSend ends the span of a record that was appended, or given up if err is
// not nil.
func endSend(span trace.Span, partition int, offset int64, err error) {
	if !span.IsRecording() {
		return
	}
	if err != nil {
		span.SetAttributes(semconv.ErrorTypeKey.String("given_up"))
		span.SetStatus(codes.Error, err.Error())
	} else {
		span.SetAttributes(
			semconv.MessagingDestinationPartitionID(strconv.Itoa(partition)),
			semconv.MessagingKafkaOffsetKey.Int64(offset),
		)
	}
	span.End()
}

// traced gives the publication the context of the span that sends it. If
// nobody traces, it is in the packed record's trace as a span that nobody sees;
// if the packed record has no trace either, it has none.
func traced(ctx context.Context, pub schema.Publication) schema.Publication {
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() && !sc.IsRemote() {
		headers := propagation.MapCarrier{}
		propagation.TraceContext{}.Inject(ctx, headers)
		pub.TraceParent, pub.TraceState = headers["traceparent"], headers["tracestate"]
		return pub
	}
	next, ok := nextSpan(pub.TraceParent)
	if !ok {
		pub.TraceState = "" // it means nothing without its parent
	}
	pub.TraceParent = next
	return pub
}
