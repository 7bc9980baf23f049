// Package cli is the command line of wrenn. Commands talk to the public API
// through the Go SDK; up and doctor work on this machine.
//
// A command prints its result to standard output and everything else to standard
// error. The exit code is 0 on success, 1 when the command failed and 2 for a
// wrong command line. For exec and shell it is that of the command in the sandbox.
//
// Shell completion uses no library: values such as ids of sandboxes come from the
// server, within a time limit, and kong's completion libraries suggest only the
// words of the command line's grammar.
package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/alecthomas/kong"

	"wrenn/internal/run"
)

// commandLine is the whole command line.
type commandLine struct {
	Output string `short:"o" enum:"text,json" default:"text" help:"How results are printed: ${enum}."`
	Config string `type:"path" env:"WRENN_CONFIG" placeholder:"FILE" help:"The configuration that up writes; default: wrenn/config.toml in the user's configuration directory."`
	URL    string `name:"url" env:"WRENN_API_URL" placeholder:"URL" help:"The server; default: that of the configuration."`

	Up          upCommand          `cmd:"" help:"Start everything on this machine: database, host agent, control plane."`
	Doctor      doctorCommand      `cmd:"" help:"Say what this machine has for sandboxes, and what to do about the rest."`
	Sandbox     sandboxCommands    `cmd:"" aliases:"sb" help:"Create and use sandboxes."`
	PortForward portForwardCommand `cmd:"" help:"Make ports of a sandbox ports of this machine, for any protocol over TCP."`
	Checkpoint  checkpointCommands `cmd:"" help:"Moments of sandboxes to go back to."`
	Template    templateCommands   `cmd:"" help:"What sandboxes start from."`
	Key         keyCommands        `cmd:"" help:"API keys of the team."`
	Cert        certCommand        `cmd:"" help:"The certificate authority of wrenn up --domain, and how to trust it."`
	Verify      verifyCommands     `cmd:"" help:"Show on this server what the documentation promises."`

	Completion completionCommand `cmd:"" help:"Print what makes a shell complete commands, flags and ids."`
	Complete   completeCommand   `cmd:"" name:"__complete" hidden:""`
	Version    versionCommand    `cmd:"" help:"Print the version."`
}

// Std holds the streams and the environment of a command.
type Std struct {
	In      io.Reader
	Out     io.Writer
	Err     io.Writer
	Environ func(string) string
}

// Start runs the program with the process's own streams; it is a run.Start.
func Start(ctx context.Context, args []string) error {
	return Command(ctx, args, Std{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Environ: os.Getenv})
}

// Command parses args, the command line without the program's name, and runs the command.
func Command(ctx context.Context, args []string, std Std) error {
	var line commandLine
	s := &session{Std: std, line: &line}
	helped := false
	parser, err := kong.New(&line,
		kong.Name("wrenn"), kong.Description("Linux machines for programs, in milliseconds."), kong.UsageOnError(),
		kong.Writers(std.Out, std.Err), kong.Exit(func(int) { helped = true }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: helpWidth}),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.Bind(s))
	if err != nil {
		return err
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	if helped {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %s", run.ErrUsage, err.Error()) // not wrapped: kong's error has another exit code
	}
	return s.explain(ctx, parsed.Run())
}

const helpWidth = 120

// exitCode is an error that ends the program with that code and prints nothing.
type exitCode int

func (exitCode) Error() string   { return "" }
func (c exitCode) ExitCode() int { return int(c) }

type versionCommand struct{}

// Run prints the revision that this program was built from.
func (*versionCommand) Run(s *session) error {
	v := version()
	return s.print(map[string]string{"version": v}, func(w io.Writer) { fmt.Fprintln(w, "wrenn", v) })
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, set := range info.Settings {
		if set.Key == "vcs.revision" {
			return set.Value[:min(12, len(set.Value))]
		}
	}
	return info.Main.Version
}
