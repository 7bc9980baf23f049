package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"syscall"

	"golang.org/x/sync/errgroup"

	"wrenn/internal/host"
	"wrenn/internal/hostserver"
	"wrenn/internal/run"
	"wrenn/internal/sandbox"
	"wrenn/internal/telemetry"
)

type serveCommand struct {
	Config      string `type:"path" help:"The configuration, a TOML file; default: no file."`
	CheckConfig bool   `help:"Print the effective configuration, or what is wrong with it, and exit."`
	Drain       bool   `help:"Destroy all sandboxes when the agent is stopped; otherwise they run on, for the next agent."`
}

// Run serves until ctx ends. The sandboxes of an earlier agent are taken over.
func (c *serveCommand) Run(ctx context.Context, line *commandLine, std streams) (err error) {
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
	registry := telemetry.NewRegistry()
	hostConfig := cfg.host(std.err, log)
	hostConfig.Trace = hostserver.NewSteps(registry).Observe
	hostConfig.Crash = crashAt(os.Getenv(crashVariable))
	h, err := host.Open(ctx, hostConfig)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close(context.WithoutCancel(ctx))) }()
	registry.MustRegister(hostserver.NewCollector(h.Manager))
	c.warm(ctx, cfg, h, log)
	debug.FreeOSMemory() // what starting left would stay for as long as little is allocated
	a := agent{cfg: cfg, host: h, log: log}
	if err := a.listen(ctx); err != nil {
		return err
	}
	err = a.run(ctx, func(ctx context.Context) error { return telemetry.Serve(ctx, a.metrics, registry) })
	if c.Drain {
		err = errors.Join(err, h.Manager.DestroyAll(context.WithoutCancel(ctx)))
	}
	log.LogAttrs(ctx, slog.LevelInfo, "agent stopped", slog.Int("sandboxes_left", h.Manager.Live()))
	return err
}

// warm makes creating fast. Without it creating is slow and works all the same.
func (c *serveCommand) warm(ctx context.Context, cfg config, h *host.Host, log *slog.Logger) {
	if cfg.Warm.Off {
		return
	}
	shape := sandbox.Shape{VCPUs: cfg.Warm.VCPUs, MemoryMiB: cfg.Warm.MemoryMB}
	if err := h.Manager.Warm(ctx, shape); err != nil && ctx.Err() == nil {
		log.LogAttrs(ctx, slog.LevelWarn, "no base snapshot: sandboxes boot", slog.Any("err", err))
	}
}

// agent is the part that answers.
type agent struct {
	cfg          config
	host         *host.Host
	log          *slog.Logger
	rpc, metrics net.Listener // metrics may be nil
}

// listen binds everything before anybody is told that the agent is ready.
func (a *agent) listen(ctx context.Context) (err error) {
	if a.rpc, err = a.cfg.listen().Open(ctx); err != nil {
		return err
	}
	if a.cfg.Metrics == "off" {
		return nil
	}
	if a.metrics, err = new(net.ListenConfig).Listen(ctx, "tcp", a.cfg.Metrics); err != nil {
		_ = a.rpc.Close() // the first error is the one that counts
		return fmt.Errorf("listen for metrics: %w", err)
	}
	return nil
}

// run returns when ctx has ended and every part has, or when one failed.
func (a *agent) run(ctx context.Context, serveMetrics func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.host.Run(ctx) })
	g.Go(func() error {
		return hostserver.Serve(ctx, hostserver.Config{
			Manager: a.host.Manager, Driver: a.host.Driver.Name(), Version: version(), Log: a.log,
		}, a.rpc)
	})
	if a.metrics != nil {
		g.Go(func() error { return serveMetrics(ctx) })
	}
	a.log.LogAttrs(ctx, slog.LevelInfo, "agent ready", slog.String("listen", a.cfg.Listen), slog.String("driver", a.host.Driver.Name()),
		slog.Int("sandboxes", a.host.Manager.Live()))
	if err := run.Notify(ctx, os.Getenv("NOTIFY_SOCKET"), "READY=1"); err != nil {
		a.log.LogAttrs(ctx, slog.LevelWarn, "systemd was not told that the agent is ready", slog.Any("err", err))
	}
	return g.Wait()
}

// version is what the program was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value[:min(12, len(s.Value))]
		}
	}
	return info.Main.Version
}

// crashVariable names a point at which the agent kills itself, for fault tests.
const crashVariable = "WRENN_TEST_CRASH"

// crashAt returns a hook that kills this process as if from outside: nothing
// is cleaned up. It is nil when no point is named.
func crashAt(point string) func(string) {
	if point == "" {
		return nil
	}
	return func(now string) {
		if now == point {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // it does not return
			select {}
		}
	}
}
