// Package telemetry has the logger and the metrics server of a program. Log lines
// name their request and their sandbox; metrics are for Prometheus, on a separate
// listener.
package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"go.opentelemetry.io/otel/trace"

	"wrenn.dev"
)

// Log configures a logger.
type Log struct {
	Level  slog.Level
	Format string // "text" or "json"; "" is text
}

// NewLogger returns a logger to w that adds the ids of the context to each line.
// An unknown format is an error.
func NewLogger(w io.Writer, cfg Log) (*slog.Logger, error) {
	options := &slog.HandlerOptions{Level: cfg.Level}
	switch cfg.Format {
	case "", "text":
		return slog.New(handler{slog.NewTextHandler(w, options)}), nil
	case "json":
		return slog.New(handler{slog.NewJSONHandler(w, options)}), nil
	}
	return nil, fmt.Errorf("log format %q: it is text or json", cfg.Format)
}

// ids are the attributes that a context adds to log lines.
type ids struct {
	request string
	sandbox wrenn.SandboxID
}

type idsKey struct{}

func from(ctx context.Context) ids {
	v, _ := ctx.Value(idsKey{}).(ids)
	return v
}

// WithRequest returns a context with which every log line names the request.
func WithRequest(ctx context.Context, id string) context.Context {
	v := from(ctx)
	v.request = id
	return context.WithValue(ctx, idsKey{}, v)
}

// WithSandbox returns a context with which every log line names the sandbox.
func WithSandbox(ctx context.Context, id wrenn.SandboxID) context.Context {
	v := from(ctx)
	v.sandbox = id
	return context.WithValue(ctx, idsKey{}, v)
}

// RequestID returns the id that WithRequest put into ctx, or "".
func RequestID(ctx context.Context) string { return from(ctx).request }

// handler adds the ids of the context to each line. An id that the line names
// itself is not repeated.
type handler struct{ slog.Handler }

func (h handler) Handle(ctx context.Context, line slog.Record) error {
	v := from(ctx)
	line.Attrs(func(a slog.Attr) bool {
		if a.Key == "sandbox" {
			v.sandbox = ""
		}
		return v.sandbox != ""
	})
	if v.request != "" {
		line.AddAttrs(slog.String("request", v.request))
	}
	if span := trace.SpanContextFromContext(ctx); span.IsSampled() {
		line.AddAttrs(slog.String("trace", span.TraceID().String()))
	}
	if v.sandbox != "" {
		line.AddAttrs(slog.String("sandbox", string(v.sandbox)))
	}
	return h.Handler.Handle(ctx, line)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs)}
}

func (h handler) WithGroup(name string) slog.Handler { return handler{h.Handler.WithGroup(name)} }
