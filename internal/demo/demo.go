// Package demo shows a newcomer the whole ground floor on this machine: a
// microVM boots, runs a command and is gone; then the same from a snapshot.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"wrenn"
	"wrenn/internal/envdclient"
	"wrenn/internal/sandbox"
)

// greeting is what runs when the user names no command.
var greeting = []string{"/bin/sh", "-c", "echo hello from $(uname -r)"}

const snapshotName = "demo"

// Config says what to show. Manager and Out are needed.
type Config struct {
	Manager *sandbox.Manager
	Shape   sandbox.Shape
	Command []string // runs after the greeting; may be empty
	Times   *Times   // the manager's Trace feeds it
	Out     io.Writer
}

// Run shows it and returns the exit code of the last command. However it ends,
// also by ctx, no sandbox and no snapshot of it is left.
func Run(ctx context.Context, cfg Config) (code int, err error) {
	if err := cfg.dropSnapshot(context.WithoutCancel(ctx)); err != nil { // of a demo that was killed
		return 1, err
	}
	defer func() { err = errors.Join(err, cfg.dropSnapshot(context.WithoutCancel(ctx))) }()

	fmt.Fprintln(cfg.Out, "\nA new machine:")
	cfg.Times.Column("first boot")
	code, err = session(ctx, cfg, func(ctx context.Context) (*sandbox.Sandbox, error) {
		return cfg.Manager.Create(ctx, wrenn.NewSandboxID(), cfg.Shape)
	}, func(ctx context.Context, sb *sandbox.Sandbox) error {
		defer cfg.Times.Measure("snapshot")()
		return sb.Snapshot(ctx, snapshotName)
	})
	if err != nil {
		return code, err
	}

	fmt.Fprintln(cfg.Out, "\nThe same machine again, from a snapshot of its memory:")
	cfg.Times.Column("from snapshot")
	code, err = session(ctx, cfg, func(ctx context.Context) (*sandbox.Sandbox, error) {
		return cfg.Manager.Restore(ctx, wrenn.NewSandboxID(), snapshotName)
	}, nil)
	if err != nil {
		return code, err
	}
	left, err := cfg.Manager.Leftovers()
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left behind: %s", strings.Join(left, ", "))
	}
	return code, err
}

func (cfg Config) dropSnapshot(ctx context.Context) error {
	err := cfg.Manager.RemoveSnapshot(ctx, snapshotName)
	if wrenn.CodeOf(err) == wrenn.NotFound {
		return nil
	}
	return err
}

// session makes a sandbox, runs the commands in it, does what else is asked and
// destroys it.
func session(ctx context.Context, cfg Config, make func(context.Context) (*sandbox.Sandbox, error), also func(context.Context, *sandbox.Sandbox) error) (code int, err error) {
	sb, err := make(ctx)
	if err != nil {
		return 1, err
	}
	defer func() {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		err = errors.Join(err, sb.Destroy(cleanup))
	}()
	if code, err = cfg.show(ctx, sb, greeting); err != nil {
		return 1, err
	}
	if len(cfg.Command) > 0 {
		if code, err = cfg.show(ctx, sb, cfg.Command); err != nil {
			return 1, err
		}
	}
	if also != nil {
		return code, also(ctx, sb)
	}
	return code, nil
}

// show runs one command and prints it, its output as it comes, and its exit.
func (cfg Config) show(ctx context.Context, sb *sandbox.Sandbox, argv []string) (int, error) {
	defer cfg.Times.Measure("command")()
	fmt.Fprintln(cfg.Out, "  $", quote(argv))
	proc, err := sb.Guest().Start(ctx, envdclient.Command{Path: argv[0], Args: argv[1:]})
	if err != nil {
		return 1, err
	}
	defer proc.Close()
	out := &indenter{w: cfg.Out}
	for {
		ev, err := proc.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 1, err
		}
		for _, part := range [][]byte{ev.Stdout, ev.Stderr} {
			if _, err := out.Write(part); err != nil {
				return 1, err
			}
		}
	}
	out.endLine()
	fmt.Fprintln(cfg.Out, "  "+proc.Exit().Status)
	return proc.Exit().Code, nil
}

// quote prints a command as a shell would take it.
func quote(argv []string) string {
	var b strings.Builder
	for i, arg := range argv {
		if i > 0 {
			b.WriteByte(' ')
		}
		if arg != "" && strings.Trim(arg, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:,@") == "" {
			b.WriteString(arg)
			continue
		}
		b.WriteString("'" + strings.ReplaceAll(arg, "'", `'\''`) + "'")
	}
	return b.String()
}

// indenter sets the guest's output off from ours.
type indenter struct {
	w      io.Writer
	inLine bool
}

func (n *indenter) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		if !n.inLine {
			line = "  " + line
		}
		n.inLine = !strings.HasSuffix(line, "\n")
		if _, err := io.WriteString(n.w, line); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (n *indenter) endLine() {
	if n.inLine {
		fmt.Fprintln(n.w)
		n.inLine = false
	}
}
