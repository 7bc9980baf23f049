package sandbox

import (
	"context"
	"log/slog"
	"runtime/debug"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/telemetry"
)

// reporter tells what happens to a sandbox: in the log, in traces, and to the hook of tests.
type reporter struct {
	id     wrenn.SandboxID
	pooled bool // it is a machine of the warm pool
	cfg    *Config
}

// at calls the hook at a point. Those of the warm pool have their own names.
func (r reporter) at(point string) error { return r.cfg.Hook.At(r.label(point)) }

func (r reporter) trace(ctx context.Context, step string, took time.Duration) {
	if r.cfg.Trace != nil {
		r.cfg.Trace(ctx, r.id, r.label(step), took)
	}
}

func (r reporter) label(step string) string {
	if r.pooled {
		return "pool: " + step
	}
	return step
}

// context returns a context whose log lines name the sandbox.
func (r reporter) context(ctx context.Context) context.Context {
	return telemetry.WithSandbox(ctx, r.id)
}

// log logs what happened to the sandbox.
func (r reporter) log(ctx context.Context, level slog.Level, message string, attrs ...slog.Attr) {
	//nolint:sloglint // every caller's message is a constant
	r.cfg.Log.LogAttrs(r.context(ctx), level, message, attrs...)
}

// logError logs a failure that the caller cannot return.
func (r reporter) logError(ctx context.Context, level slog.Level, message string, err error) {
	r.log(ctx, level, message, slog.Any("err", err))
}

// logRefused logs a mistake of this package: a status that may not follow another.
func (r reporter) logRefused(from, to Status) {
	r.log(context.Background(), slog.LevelError, "status of a sandbox may not change so",
		slog.String("from", string(from)), slog.String("to", string(to)), slog.String("stack", string(debug.Stack())))
}
