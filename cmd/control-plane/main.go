// Command control-plane serves Wrenn's public API on a PostgreSQL database
// and the host agents of its configuration.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/alecthomas/kong"

	"wrenn.dev/internal/controlplane"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/run"
)

func main() { run.Main(start) }

// commandLine is the whole command line.
type commandLine struct {
	Config      string `type:"path" placeholder:"FILE" help:"The configuration, a TOML file; default: built-in defaults."`
	CheckConfig bool   `help:"Print the effective configuration without secrets, or its errors, and exit."`

	Serve     serveCommand     `cmd:"" default:"1" help:"Serve the API; the default."`
	Database  databaseCommand  `cmd:"" help:"Make the role and the database on a PostgreSQL of this machine, unless they exist; as root."`
	Migrate   migrateCommand   `cmd:"" help:"Migrate the database's schema to the version of this program."`
	Key       keyCommand       `cmd:"" help:"Print a new API key of a team, which is created if it does not exist."`
	Hosts     hostsCommand     `cmd:"" help:"Print the hosts, and the sandboxes on them that the database does not know."`
	Authority authorityCommand `cmd:"" help:"Make the file of the authority that signs the certificates of hosts that join."`
	Garbage   garbageCommand   `cmd:"" help:"Print what nothing needs in the snapshot store, and what of it would be deleted now. Deletes nothing."`
	Move      moveCommand      `cmd:"" help:"Assign a paused sandbox to the host to which its files were copied."`
}

// environment is what the process gives a command.
type environment struct {
	out, err io.Writer
	getenv   func(string) string
}

// start parses args, the command line without the program's name, and runs the command.
func start(ctx context.Context, args []string) error {
	return command(ctx, args, environment{os.Stdout, os.Stderr, os.Getenv})
}

func command(ctx context.Context, args []string, env environment) error {
	var line commandLine
	helped := false
	parser, err := kong.New(&line,
		kong.Name("control-plane"), kong.Description("Serves Wrenn's public API."), kong.UsageOnError(),
		kong.Writers(env.out, env.err), kong.Exit(func(int) { helped = true }),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.Bind(env))
	if err != nil {
		return err
	}
	parsed, err := parser.Parse(withTwoDashes(args))
	if helped {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %s", run.ErrUsage, err.Error()) // not wrapped: kong has its own exit codes
	}
	cfg, err := controlplane.Load(line.Config, env.getenv)
	if err != nil {
		return err
	}
	if line.CheckConfig {
		_, err := fmt.Fprint(env.out, cfg)
		return err
	}
	log, err := controlplane.NewLogger(env.err, cfg.Log)
	if err != nil {
		return err
	}
	return parsed.Run(cfg, log)
}

// withTwoDashes adds the second dash to flags before the command that have one:
// units and scripts were written when this program read -config as --config.
func withTwoDashes(args []string) []string {
	out := append([]string{}, args...)
	for i := 0; i < len(out) && strings.HasPrefix(out[i], "-"); i++ {
		name, _, hasValue := strings.Cut(strings.TrimLeft(out[i], "-"), "=")
		if name == "config" || name == "check-config" || name == "help" {
			out[i] = "--" + strings.TrimLeft(out[i], "-")
		}
		if name == "config" && !hasValue {
			i++ // its value
		}
	}
	return out
}

// open calls f with the use cases on the configured database.
func open(ctx context.Context, cfg controlplane.Config, log *slog.Logger, f func(*service.Service) error) error {
	svc, closeStore, err := controlplane.Open(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer closeStore()
	return f(svc)
}
