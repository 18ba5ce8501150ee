package upstream

import (
	"context"
	"errors"
	"io"
	"net/url"
	"strconv"
	"syscall"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"packship/schema"
)

// endpoint describes the API in the spans of calls. A query might hold a secret
// and is left out, as the token and the form are.
func endpoint(full string) []attribute.KeyValue {
	u, err := url.Parse(full)
	if err != nil {
		return nil // Config.Validate has seen to it that this does not happen
	}
	u.RawQuery, u.User = "", nil
	attributes := []attribute.KeyValue{
		semconv.HTTPRequestMethodPost,
		semconv.URLFull(u.String()),
		semconv.ServerAddress(u.Hostname()),
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	if n, err := strconv.Atoi(port); err == nil {
		attributes = append(attributes, semconv.ServerPort(n))
	}
	return attributes
}

// traceCall writes the span of a call that has left, from its first byte to the
// end of its answer. A call that did not leave is none: nothing was sent, and
// nothing can have been paid.
//
// The API is a stranger's, so the trace context is not sent to it.
func (u *Upstream) traceCall(order context.Context, t *Turn, x exchange, l *launch, a schema.Answer) {
	if u.cfg.Tracer == nil {
		return
	}
	_, left := l.times()
	_, span := u.cfg.Tracer.Start(order, "POST", trace.WithSpanKind(trace.SpanKindClient),
		trace.WithTimestamp(left), trace.WithAttributes(u.endpoint...))
	defer span.End(trace.WithTimestamp(left.Add(x.took)))
	span.SetAttributes(
		attribute.String("packship.account", t.account.name),
		attribute.String("packship.effect", a.Effect.String()),
		attribute.String("packship.reason", a.Reason),
	)
	if x.status != 0 {
		span.SetAttributes(semconv.HTTPResponseStatusCode(x.status))
	}
	if a.Exchange != nil {
		span.SetAttributes(attribute.Int64("packship.code", a.Exchange.Code), attribute.Int64("packship.withheld_points", a.Exchange.Withheld))
	}
	switch {
	case x.status >= 400:
		span.SetAttributes(semconv.ErrorTypeKey.String(strconv.Itoa(x.status)))
		span.SetStatus(codes.Error, "")
	case !a.Answered:
		span.SetAttributes(semconv.ErrorTypeKey.String(x.errorType()))
		span.SetStatus(codes.Error, "no readable answer")
	}
}

// errorType says in a word why there is no answer that can be read.
func (x *exchange) errorType() string {
	switch {
	case errors.Is(x.err, errCallTimeout):
		return "timeout"
	case errors.Is(x.err, syscall.ECONNRESET), errors.Is(x.err, syscall.EPIPE):
		return "connection_reset"
	case errors.Is(x.err, io.EOF), errors.Is(x.err, io.ErrUnexpectedEOF):
		return "connection_closed"
	case x.err != nil:
		return "no_answer"
	case !x.whole:
		return "incomplete_answer"
	default:
		return "unreadable_answer"
	}
}
