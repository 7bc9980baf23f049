// Command control-plane serves Wrenn's public API over a PostgreSQL database
// and the host agents of its configuration.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"

	"wrenn/internal/controlplane"
	"wrenn/internal/controlplane/service"
	"wrenn/internal/run"
)

func main() { run.Main(start) }

const usage = `usage: control-plane [flags] [command]

Commands:
  serve            serve the API; what happens without a command
  migrate          bring the database's schema to what this program needs
  key TEAM NAME    print a new API key of a team, which is made when there is none
  hosts            print the hosts, and what they have that nobody can explain
  move ID HOST     resume a paused sandbox on HOST from now on, where its files were copied

Flags:
`

// start parses args, the command line without the program's name, and runs the command.
func start(ctx context.Context, args []string) error {
	return command(ctx, args, os.Stdout, os.Stderr, os.Getenv)
}

func command(ctx context.Context, args []string, stdout, stderr io.Writer, environ func(string) string) error {
	flags := flag.NewFlagSet("control-plane", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		_, _ = fmt.Fprint(stderr, usage) // where else could it go
		flags.PrintDefaults()
	}
	path := flags.String("config", "", "the configuration, a TOML file; none is the defaults")
	check := flags.Bool("check-config", false, "print the effective configuration without secrets, or what is wrong with it, and exit")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return run.ErrUsage // flags has said what
	}
	cfg, err := controlplane.Load(*path, environ)
	if err != nil {
		return err
	}
	if *check {
		_, err := fmt.Fprint(stdout, cfg)
		return err
	}
	log, err := controlplane.NewLogger(stderr, cfg.Log)
	if err != nil {
		return err
	}
	switch name := flags.Arg(0); {
	case (name == "" || name == "serve") && flags.NArg() <= 1:
		return serve(ctx, cfg, log, environ("NOTIFY_SOCKET"))
	case name == "migrate" && flags.NArg() == 1:
		return controlplane.Migrate(ctx, cfg)
	case name == "key" && flags.NArg() == 3:
		return key(ctx, cfg, log, flags.Arg(1), flags.Arg(2), stdout)
	case name == "hosts" && flags.NArg() == 1:
		return hosts(ctx, cfg, log, stdout)
	case name == "move" && flags.NArg() == 3:
		return move(ctx, cfg, log, flags.Arg(1), flags.Arg(2))
	}
	flags.Usage()
	return fmt.Errorf("%w: %q", run.ErrUsage, flags.Args())
}

func serve(ctx context.Context, cfg controlplane.Config, log *slog.Logger, notifySocket string) error {
	run.SurviveBrokenPipes()
	return controlplane.Run(ctx, cfg, log, func(at controlplane.Addresses) {
		attrs := []slog.Attr{slog.String("api", at.API.String())}
		if at.Metrics != nil {
			attrs = append(attrs, slog.String("metrics", at.Metrics.String()))
		}
		log.LogAttrs(ctx, slog.LevelInfo, "control plane is ready", attrs...)
		if address, ok := at.API.(*net.TCPAddr); ok && !address.IP.IsLoopback() && cfg.TLS.Certificate == "" {
			log.WarnContext(ctx, "API keys travel in the clear on this address: set tls, or put a proxy with TLS in front and listen on loopback")
		}
		if err := run.Notify(ctx, notifySocket, "READY=1"); err != nil {
			log.LogAttrs(ctx, slog.LevelWarn, "systemd was not told that the control plane is ready", slog.Any("error", err))
		}
	})
}

// key prints a key for whoever has none yet; all others come by POST /v1/keys.
func key(ctx context.Context, cfg controlplane.Config, log *slog.Logger, team, name string, stdout io.Writer) error {
	svc, closeStore, err := controlplane.Open(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer closeStore()
	id, err := svc.EnsureTeam(ctx, team)
	if err != nil {
		return fmt.Errorf("team %s: %w", team, err)
	}
	_, secret, err := svc.CreateKey(ctx, service.Caller{Team: id}, name)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	_, err = fmt.Fprintln(stdout, secret)
	return err
}
