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
	"slices"

	"github.com/alecthomas/kong"

	"wrenn.dev/internal/run"
)

// commandLine is the whole command line.
type commandLine struct {
	ShowVersion versionFlag `name:"version" help:"Print the version of this program."`

	Output      string `short:"o" enum:"text,json" default:"text" help:"Format of results: ${enum}."`
	Config      string `type:"path" env:"WRENN_CONFIG" placeholder:"FILE" help:"File with the server's address and key, which up writes; default: wrenn/config.toml in the user's configuration directory."`
	ContextName string `name:"context" env:"WRENN_CONTEXT" placeholder:"NAME" help:"One of the servers that login kept; default: the one in use."`
	URL         string `name:"url" env:"WRENN_API_URL" placeholder:"URL" help:"Address of the server; default: the one in the configuration."`

	Up          upCommand          `cmd:"" help:"Start everything on this machine: database, host agent, control plane."`
	Doctor      doctorCommand      `cmd:"" help:"Check whether this machine can run sandboxes, and print how to fix what is missing."`
	Run         runCommand         `cmd:"" help:"Create a sandbox and run a command in it."`
	Sandbox     sandboxCommands    `cmd:"" aliases:"sb" help:"Create and use sandboxes."`
	Events      eventsCommand      `cmd:"" help:"Print when sandboxes of the team are created, change their state, or end."`
	PortForward portForwardCommand `cmd:"" help:"Forward ports of this machine to TCP ports of a sandbox."`
	SSHConfig   sshConfigCommand   `cmd:"" name:"ssh-config" help:"Print a section for ~/.ssh/config, with which ssh, rsync and VS Code reach sandboxes."`
	Login       loginCommand       `cmd:"" help:"Keep the address and an API key of a server, and use it from now on."`
	Context     contextCommands    `cmd:"" help:"Choose among the servers that login kept."`
	Checkpoint  checkpointCommands `cmd:"" help:"Save and restore states of sandboxes."`
	Template    templateCommands   `cmd:"" help:"Build and list templates, from which sandboxes start."`
	Volume      volumeCommands     `cmd:"" help:"Directories that sandboxes mount and that outlive them."`
	Webhook     webhookCommands    `cmd:"" help:"URLs to which events of sandboxes are sent."`
	Secret      secretCommands     `cmd:"" help:"Secrets, whose values no call returns."`
	Host        hostCommands       `cmd:"" help:"List and cordon hosts, for who operates the platform."`
	Team        teamCommands       `cmd:"" help:"Show and set what is the same for the whole team."`
	Key         keyCommands        `cmd:"" help:"Create, list and revoke the team's API keys."`
	Audit       auditCommand       `cmd:"" help:"Print who changed what: the calls of the team's keys, newest first."`
	Usage       usageCommand       `cmd:"" help:"Print what the team used, by day or hour."`
	Limits      limitsCommand      `cmd:"" help:"Print the limits of the team, with what is used now and who changes them."`
	MCP         mcpCommand         `cmd:"" name:"mcp" help:"Give sandboxes to programs that are agents, by the Model Context Protocol."`
	Cert        certCommand        `cmd:"" help:"Show the certificate authority of wrenn up --domain, and how to trust it."`
	Verify      verifyCommands     `cmd:"" help:"Check properties that the documentation promises on this server."`

	Support    supportCommand    `cmd:"" name:"support-bundle" help:"Collect what is needed to find a fault, without secrets, in a file."`
	Completion completionCommand `cmd:"" help:"Print a script with which a shell completes commands, flags and ids."`
	Complete   completeCommand   `cmd:"" name:"__complete" hidden:""`
	Version    versionCommand    `cmd:"" help:"Print the version, commit and date of this program and of the server."`
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
		kong.Name("wrenn"), kong.Description("Run programs in sandboxes: microVMs that start in milliseconds."), kong.UsageOnError(),
		kong.Writers(std.Out, std.Err), kong.Exit(func(int) { helped = true }),
		kong.Configuration(loadFlags),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: helpWidth}),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.Bind(s))
	if err != nil {
		return err
	}
	addExamples(parser.Model)
	switch {
	case len(args) == 0:
		args = []string{"--help"}
	case args[0] == "help": // wrenn help COMMAND is wrenn COMMAND --help
		args = append(slices.Clone(args[1:]), "--help")
	}
	parsed, err := parser.Parse(args)
	if helped {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %s", run.ErrUsage, err.Error()) // not wrapped: kong's error has another exit code
	}
	if err := s.resolve(ctx, parsed.Path); err != nil {
		return s.explain(ctx, err)
	}
	return s.explain(ctx, parsed.Run())
}

const helpWidth = 120

// exitCode is an error that ends the program with that code and prints nothing.
type exitCode int

func (exitCode) Error() string   { return "" }
func (c exitCode) ExitCode() int { return int(c) }
