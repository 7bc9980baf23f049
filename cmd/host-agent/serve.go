package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync/atomic"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"wrenn.dev"
	"wrenn.dev/internal/budget"
	"wrenn.dev/internal/buildinfo"
	"wrenn.dev/internal/host"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/host/server"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/run"
	"wrenn.dev/internal/telemetry"
	"wrenn.dev/internal/tracing"
)

type serveCommand struct {
	Config      string `type:"path" help:"The configuration, a TOML file; default: built-in defaults."`
	CheckConfig bool   `help:"Print the effective configuration or its errors, and exit."`
	Drain       bool   `help:"Destroy all sandboxes when the agent is stopped; otherwise they keep running and the next agent adopts them."`
}

// Run serves until ctx ends. It adopts the sandboxes of an earlier agent.
func (c *serveCommand) Run(ctx context.Context, line *commandLine, std streams) (err error) {
	run.SurviveBrokenPipes()
	cfg, err := readConfig(c.Config, line.State)
	if err != nil {
		return err
	}
	if c.CheckConfig {
		return cfg.print(std.out)
	}
	log, err := cfg.logger(std.err)
	if err != nil {
		return err
	}
	a := &agent{cfg: cfg, log: log, registry: telemetry.NewRegistry(), drain: c.Drain}
	metrics, err := a.listenForMetrics(ctx)
	if err != nil {
		return err
	}
	spans, err := tracing.Open(ctx, cfg.Traces, tracing.Process{Name: "wrenn-host-agent", Sampler: tracing.Joined(), Registry: a.registry, Log: log})
	if err != nil {
		return err
	}
	defer spans.Close(ctx)
	a.traces = spans.Provider()
	if metrics == nil {
		return a.work(ctx, std.err)
	}
	// First to start and last to end: monitoring shows what takes long.
	watched, unwatch := context.WithCancel(context.WithoutCancel(ctx))
	defer unwatch()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return telemetry.Serve(watched, metrics, a.registry, a.ready) })
	g.Go(func() error {
		defer unwatch()
		return a.work(ctx, std.err)
	})
	return g.Wait()
}

// agent is a run of the program.
type agent struct {
	cfg      config
	log      *slog.Logger
	registry *prometheus.Registry
	drain    bool
	traces   trace.TracerProvider // nil makes no spans
	memory   *budget.Budget
	serving  atomic.Pointer[sandbox.Manager] // nil before requests are served, and during the stop
}

// listenForMetrics returns nil if none is configured.
func (a *agent) listenForMetrics(ctx context.Context) (net.Listener, error) {
	if a.cfg.Metrics == "off" {
		return nil, nil //nolint:nilnil // none is no error
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", a.cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics: %w", err)
	}
	a.log.LogAttrs(ctx, slog.LevelInfo, "agent starts", slog.String("metrics", l.Addr().String()))
	return l, nil
}

// ready returns an error unless requests for sandboxes are served and the store can
// be read.
func (a *agent) ready(context.Context) error {
	manager := a.serving.Load()
	if manager == nil {
		return wrenn.Errorf(wrenn.Unavailable, "the agent starts or stops")
	}
	_, err := manager.Capacity()
	return err
}

// work opens the host, serves, and closes it.
func (a *agent) work(ctx context.Context, out io.Writer) (err error) {
	hostConfig := a.cfg.host(out, a.log)
	hostConfig.Trace = server.NewSteps(a.registry).Observe
	hostConfig.Hook = crashAt(os.Getenv(crashVariable))
	if hostConfig.Objects, err = a.cfg.Store.open(); err != nil {
		return err
	}
	h, err := host.Open(ctx, hostConfig)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close(context.WithoutCancel(ctx))) }()
	a.registry.MustRegister(server.NewCollector(h.Manager))
	a.warm(ctx, h)
	debug.FreeOSMemory() // what the start allocated would stay for as long as little is allocated
	// Bound before the agent is reported as ready.
	rpc, err := a.cfg.listen().Open(ctx, a.log)
	if err != nil {
		return err
	}
	a.limitMemory(ctx)
	err = a.serve(ctx, h, rpc)
	if a.drain {
		err = errors.Join(err, h.Manager.DestroyAll(context.WithoutCancel(ctx)))
	}
	a.log.LogAttrs(ctx, slog.LevelInfo, "agent stopped", slog.Int("sandboxes_left", h.Manager.Live()))
	return err
}

// limitMemory sets the limit of this process, and makes the budget of what callers wait for.
func (a *agent) limitMemory(ctx context.Context) {
	limit := budget.SetLimit(a.cfg.MemoryLimitMB)
	a.memory = budget.New(budget.Share(limit), server.MaxExecMemory, "the host by the agent's memory_limit_mb")
	a.log.LogAttrs(ctx, slog.LevelInfo, "memory limit", slog.Int64("mib", limit>>20))
}

// warm prepares the base template. Without it creating a sandbox is slow, but works.
func (a *agent) warm(ctx context.Context, h *host.Host) {
	if a.cfg.Warm.Off {
		return
	}
	size := wrenn.Size{VCPUs: a.cfg.Warm.VCPUs, MemoryMiB: a.cfg.Warm.MemoryMB}
	if err := h.Warm(ctx, size); err != nil && ctx.Err() == nil {
		a.log.LogAttrs(ctx, slog.LevelWarn, "no base snapshot: sandboxes boot", slog.Any("err", err))
	}
}

// facts are what the agent says of its host.
func (a *agent) facts(h *host.Host) wrenn.HostFacts {
	return wrenn.HostFacts{Zone: a.cfg.Zone, Labels: a.cfg.Labels, Platform: h.Driver.Platform()}
}

// serve returns when ctx has ended and every part has, or when one failed.
func (a *agent) serve(ctx context.Context, h *host.Host, rpc net.Listener) error {
	joined, err := a.cfg.member()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	a.serving.Store(h.Manager)
	context.AfterFunc(ctx, func() { a.serving.Store(nil) })
	g.Go(func() error { return h.Run(ctx) })
	if joined != nil {
		g.Go(func() error { return joined.KeepRenewed(ctx, a.log) })
	}
	g.Go(func() error {
		return server.Serve(ctx, server.Config{Manager: h.Manager, Templates: h.Templates, Volumes: h.Volumes, Driver: h.Driver.Name(), Facts: a.facts(h), Version: buildinfo.Read().Short(), Log: a.log, Memory: a.memory, Traces: a.traces}, rpc)
	})
	a.log.LogAttrs(ctx, slog.LevelInfo, "agent ready", slog.String("listen", rpc.Addr().String()), slog.String("driver", h.Driver.Name()),
		slog.Int("sandboxes", h.Manager.Live()))
	if err := run.Notify(ctx, os.Getenv("NOTIFY_SOCKET"), "READY=1"); err != nil {
		a.log.LogAttrs(ctx, slog.LevelWarn, "cannot tell systemd that the agent is ready", slog.Any("err", err))
	}
	return g.Wait()
}

// crashVariable names a point at which the agent kills itself, for fault tests.
const crashVariable = "WRENN_TEST_CRASH"

// crashAt returns a hook that kills this process as if from outside: nothing
// is cleaned up. It is nil when no point is named.
func crashAt(point string) rollback.Hook {
	if point == "" {
		return nil
	}
	return func(now string) error {
		if now == point {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // it does not return
			select {}
		}
		return nil
	}
}
