// Package tracing makes spans of calls and sends them to a collector by OTLP. A span
// has names and ids of Wrenn, but no errors' texts, paths or values of users.
package tracing

import (
	"context"
	"net/http"

	"connectrpc.com/connect"
	"connectrpc.com/otelconnect"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"wrenn.dev"
)

// scope is the name of Wrenn's spans' library.
const scope = "wrenn"

// Do runs f in a span below that of ctx. Without a recorded span there it only calls
// f. A failed span has the error's code.
func Do(ctx context.Context, name string, f func(context.Context) error) error {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return f(ctx)
	}
	ctx, span := parent.TracerProvider().Tracer(scope).Start(ctx, name)
	defer span.End()
	err := f(ctx)
	if err != nil {
		span.SetAttributes(attribute.String("wrenn.code", string(wrenn.CodeOf(err))))
		span.SetStatus(codes.Error, "")
	}
	return err
}

// Child starts the span of a call to another program below the span of ctx, which the
// caller ends; nil if that is not recorded.
func Child(ctx context.Context, name string, attributes ...attribute.KeyValue) trace.Span {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return nil
	}
	_, span := parent.TracerProvider().Tracer(scope).Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attributes...))
	return span
}

// Transport makes spans of HTTP requests below the spans of their contexts, until the
// beginning of the answer. Their names are name and the path, which must have no values of users.
// The other side learns nothing of them, and what it answers is not in them.
type Transport struct {
	http.RoundTripper

	Name string
}

// RoundTrip implements http.RoundTripper.
func (t Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	span := Child(r.Context(), t.Name+" "+r.URL.Path)
	resp, err := t.RoundTripper.RoundTrip(r)
	if span == nil {
		return resp, err
	}
	if err != nil {
		span.SetStatus(codes.Error, "")
	}
	span.End()
	return resp, err
}

// Answered ends the span of a request that was answered with that status; 0 is none.
func Answered(span trace.Span, status int) {
	if status != 0 {
		span.SetAttributes(attribute.Int("http.response.status_code", status))
	}
	if status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, "")
	}
	span.End()
}

// Request starts the span of a client's request, the root of a trace. A traceparent
// of the client is linked and not continued: the client decides neither the trace's
// id nor whether it is sampled. A nil provider makes no span. The caller ends it.
func Request(r *http.Request, provider trace.TracerProvider) (context.Context, trace.Span) {
	ctx := r.Context()
	if provider == nil {
		return ctx, trace.SpanFromContext(ctx)
	}
	options := []trace.SpanStartOption{trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindServer)}
	if r.Header.Get("Traceparent") != "" {
		theirs := propagation.TraceContext{}.Extract(context.Background(), propagation.HeaderCarrier(r.Header))
		if sc := trace.SpanContextFromContext(theirs); sc.IsValid() {
			options = append(options, trace.WithLinks(trace.Link{SpanContext: sc.WithTraceState(trace.TraceState{})}))
		}
	}
	return provider.Tracer(scope).Start(ctx, "request", options...)
}

// Client returns the interceptors of calls to a host agent, which continue the trace
// of a request there. Calls outside of one have no spans. A nil provider has none.
func Client(provider trace.TracerProvider) ([]connect.Interceptor, error) {
	return interceptors(provider, otelconnect.WithFilter(func(ctx context.Context, _ connect.Spec) bool {
		return trace.SpanFromContext(ctx).IsRecording()
	}))
}

// Server returns the interceptors of a host agent, which continue the traces of
// control planes. A nil provider has none.
func Server(provider trace.TracerProvider) ([]connect.Interceptor, error) {
	return interceptors(provider, otelconnect.WithTrustRemote())
}

func interceptors(provider trace.TracerProvider, more otelconnect.Option) ([]connect.Interceptor, error) {
	if provider == nil {
		return nil, nil
	}
	i, err := otelconnect.NewInterceptor(otelconnect.WithTracerProvider(provider), otelconnect.WithPropagator(propagation.TraceContext{}), otelconnect.WithoutMetrics(), more)
	if err != nil {
		return nil, err
	}
	return []connect.Interceptor{i}, nil
}
