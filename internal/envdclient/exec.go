package envdclient

import (
	"cmp"
	"context"
	"errors"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	"wrenn.dev"
)

// defaultMaxOutput bounds each of the two outputs that Exec keeps, in bytes.
const defaultMaxOutput = 16 << 20

// killTimeout bounds ending a command whose caller went away.
const killTimeout = 5 * time.Second

// checkCommand refuses what a message to envd cannot hold.
func checkCommand(cmd wrenn.ExecCommand) error {
	for _, word := range append([]string{cmd.Cmd, cmd.Cwd, cmd.User}, cmd.Args...) {
		if !utf8.ValidString(word) {
			return wrenn.Errorf(wrenn.Invalid, "the command has %.80q, which is not UTF-8 text", word)
		}
	}
	for name, value := range cmd.Env {
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return wrenn.Errorf(wrenn.Invalid, "the environment variable %.80q is not UTF-8 text", name)
		}
	}
	return nil
}

// Exec runs a command and returns when it ended. It keeps the first 16 MiB of each
// output. A nonzero exit code is no error, nor is a command that does not read its
// input. The command may take until the deadline of ctx; its Timeout is not used. If
// ctx ends first the command is killed; if that was the deadline, the output until
// then is returned with the error, which is DeadlineExceeded.
func (c *Client) Exec(ctx context.Context, cmd wrenn.ExecCommand) (*wrenn.ExecResult, error) {
	return c.ExecUpTo(ctx, cmd, defaultMaxOutput)
}

// ExecUpTo is Exec that keeps the first maxOutput bytes of each output.
func (c *Client) ExecUpTo(ctx context.Context, cmd wrenn.ExecCommand, maxOutput int) (*wrenn.ExecResult, error) {
	return c.ExecKeeping(ctx, cmd, Outputs{Most: maxOutput})
}

// Outputs say how much of its outputs Exec keeps.
type Outputs struct {
	Most int // the first bytes of each
	// Reserve, if set, is called before n further bytes are kept, but for the first
	// 64 KiB of an output. The command waits until it returns, and is killed if it
	// returns an error, which Exec returns.
	Reserve func(ctx context.Context, n int) error
}

// ExecKeeping is Exec that keeps what keep says of each output.
func (c *Client) ExecKeeping(ctx context.Context, cmd wrenn.ExecCommand, keep Outputs) (*wrenn.ExecResult, error) {
	proc, err := c.Start(ctx, wrenn.ExecStart{ExecCommand: cmd, WantStdin: cmd.Stdin != nil})
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	if cmd.Stdin != nil {
		feeding, stop := context.WithCancel(ctx)
		var feeder sync.WaitGroup
		feeder.Go(func() { proc.feed(feeding, cmd.Stdin) })
		defer feeder.Wait()
		defer stop()
	}
	stdout, stderr := head{keep: keep}, head{keep: keep}
	for {
		ev, err := proc.Next()
		switch {
		case errors.Is(err, io.EOF):
			exit := proc.Exit()
			res := &wrenn.ExecResult{
				Stdout: stdout.kept, Stderr: stderr.kept, Truncated: stdout.cut || stderr.cut,
				ExitCode: exit.Code, Status: exit.Status, Reason: exit.Reason,
			}
			if res.Reason == wrenn.EndTimeout {
				return res, &wrenn.Error{Code: wrenn.DeadlineExceeded, Message: "the command did not end in time and was killed", Err: context.DeadlineExceeded}
			}
			return res, nil
		case err != nil:
			c.killAbandoned(ctx, proc.PID())
			return nil, err
		}
		if err := cmp.Or(stdout.write(ctx, ev.Stdout), stderr.write(ctx, ev.Stderr)); err != nil {
			c.kill(ctx, proc.PID())
			return nil, err
		}
	}
}

// killAbandoned kills a command whose caller has canceled ctx. On a deadline envd
// does that itself: it knows the deadline from the request.
func (c *Client) killAbandoned(ctx context.Context, pid int) {
	if errors.Is(ctx.Err(), context.Canceled) {
		c.kill(ctx, pid)
	}
}

func (c *Client) kill(ctx context.Context, pid int) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	_ = c.Kill(ctx, pid) // it may have ended already; the caller's error matters
}

// unreserved is how much of an output is kept without Outputs.Reserve.
const unreserved = 64 << 10

// head keeps the first bytes written to it.
type head struct {
	keep Outputs
	kept []byte
	cut  bool
}

func (h *head) write(ctx context.Context, p []byte) error {
	if room := h.keep.Most - len(h.kept); len(p) > room {
		p, h.cut = p[:room], true
	}
	if need := len(h.kept) + len(p); need > cap(h.kept) {
		if err := h.grow(ctx, need); err != nil {
			return err
		}
	}
	h.kept = append(h.kept, p...)
	return nil
}

// grow makes room for need bytes or more.
func (h *head) grow(ctx context.Context, need int) error {
	size := min(max(need, 2*cap(h.kept), 1<<10), h.keep.Most)
	if size > unreserved && h.keep.Reserve != nil {
		if err := h.keep.Reserve(ctx, size-max(cap(h.kept), unreserved)); err != nil {
			return err
		}
	}
	h.kept = append(make([]byte, 0, size), h.kept...)
	return nil
}
