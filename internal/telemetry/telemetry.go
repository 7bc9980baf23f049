// Package telemetry is what operators see of a program: log lines that name
// the request and the sandbox that they are about, and metrics for Prometheus
// on a listener of their own.
package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"wrenn"
)

// Log says how a program logs.
type Log struct {
	Level  slog.Level
	Format string // "text" or "json"; "" is text
}

// NewLogger returns a logger to w whose lines carry the ids that their context
// holds. An unknown format is an error.
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

// ids are what lines of one context are about.
type ids struct {
	request string
	sandbox wrenn.SandboxID
}

type idsKey struct{}

func from(ctx context.Context) ids {
	v, _ := ctx.Value(idsKey{}).(ids)
	return v
}

// WithRequest makes every line that is logged with the context name the request.
func WithRequest(ctx context.Context, id string) context.Context {
	v := from(ctx)
	v.request = id
	return context.WithValue(ctx, idsKey{}, v)
}

// WithSandbox makes every line that is logged with the context name the sandbox.
func WithSandbox(ctx context.Context, id wrenn.SandboxID) context.Context {
	v := from(ctx)
	v.sandbox = id
	return context.WithValue(ctx, idsKey{}, v)
}

// RequestID returns the id that WithRequest put into ctx, or "".
func RequestID(ctx context.Context) string { return from(ctx).request }

// handler adds the ids of the context to each line.
type handler struct{ slog.Handler }

func (h handler) Handle(ctx context.Context, line slog.Record) error {
	v := from(ctx)
	if v.request != "" {
		line.AddAttrs(slog.String("request", v.request))
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
