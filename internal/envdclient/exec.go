package envdclient

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	"wrenn"
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
	stdout, stderr := head{limit: maxOutput}, head{limit: maxOutput}
	for {
		ev, err := proc.Next()
		switch {
		case errors.Is(err, io.EOF):
			exit := proc.Exit()
			res := &wrenn.ExecResult{
				Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), Truncated: stdout.cut || stderr.cut,
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
		stdout.Write(ev.Stdout)
		stderr.Write(ev.Stderr)
	}
}

// killAbandoned kills a command whose caller has canceled ctx. On a deadline envd
// does that itself: it knows the deadline from the request.
func (c *Client) killAbandoned(ctx context.Context, pid int) {
	if !errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	_ = c.Kill(ctx, pid) // it may have ended already; the caller's error matters
}

// head keeps the first limit bytes written to it.
type head struct {
	bytes.Buffer
	limit int
	cut   bool
}

func (h *head) Write(p []byte) {
	if room := h.limit - h.Len(); len(p) > room {
		p, h.cut = p[:room], true
	}
	h.Buffer.Write(p)
}
