package main

import (
	"context"
	"log/slog"
	"net"

	"wrenn.dev/internal/controlplane"
	"wrenn.dev/internal/run"
)

type serveCommand struct{}

// Run serves until ctx ends.
func (serveCommand) Run(ctx context.Context, cfg controlplane.Config, log *slog.Logger, env environment) error {
	run.SurviveBrokenPipes()
	return controlplane.Run(ctx, cfg, log, func(at controlplane.Addresses) {
		attrs := []slog.Attr{slog.String("api", at.API.String())}
		if at.Metrics != nil {
			attrs = append(attrs, slog.String("metrics", at.Metrics.String()))
		}
		log.LogAttrs(ctx, slog.LevelInfo, "control plane is ready", attrs...)
		if address, ok := at.API.(*net.TCPAddr); ok && !address.IP.IsLoopback() && cfg.TLS.Certificate == "" {
			log.WarnContext(ctx, "API keys travel unencrypted to this address: set tls, or put a proxy with TLS in front and listen on loopback")
		}
		if err := run.Notify(ctx, env.getenv("NOTIFY_SOCKET"), "READY=1"); err != nil {
			log.LogAttrs(ctx, slog.LevelWarn, "cannot tell systemd that the control plane is ready", slog.Any("err", err))
		}
	})
}
