package envdclient

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	"wrenn"
	"wrenn/proto/gen/envd/process"
)

// DefaultMaxOutput bounds each of the two outputs that Exec keeps.
const DefaultMaxOutput = 16 << 20

// killTimeout bounds ending a command whose caller went away.
const killTimeout = 5 * time.Second

// Command is a program to run in the guest.
type Command struct {
	Path string // looked up in PATH when it has no slash
	Args []string
	Env  map[string]string
	Dir  string // "" is the user's default
	User string // "" is the guest's default user
	// Input is the command's input for Exec; nil is no input at all. Start ignores it.
	Input []byte
	// Stdin makes Start give the command an input, for Send. PTY gives it a
	// terminal of that size instead of pipes, which always has an input.
	Stdin bool
	PTY   *Size
	// Session makes Start return a stream that can be resumed. A Start that is
	// repeated with it follows the command of the first one. Exec ignores it.
	Session *Session
	// MaxOutput bounds each output that Exec keeps, in bytes; default DefaultMaxOutput.
	MaxOutput int
}

// check refuses what a message to envd cannot hold.
func (cmd Command) check() error {
	for _, word := range append([]string{cmd.Path, cmd.Dir, cmd.User}, cmd.Args...) {
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

// Result is the result of a command that ended.
type Result struct {
	Stdout, Stderr []byte
	// Truncated is true if an output was longer than MaxOutput; the rest is lost.
	Truncated bool
	Exit
}

// Exit is how a process ended.
type Exit struct {
	Code   int    // -1 when a signal ended it
	Status string // "exit status 3", "signal: killed"
	Reason EndReason
}

// EndReason is why a process ended.
type EndReason int

// The reasons.
const (
	EndUnknown     = EndReason(process.EndReason_END_REASON_UNSPECIFIED)   // the guest's agent is older
	EndExited      = EndReason(process.EndReason_END_REASON_EXITED)        // by itself
	EndOutOfMemory = EndReason(process.EndReason_END_REASON_OUT_OF_MEMORY) // the kernel killed it, or what it started
	EndDeadline    = EndReason(process.EndReason_END_REASON_DEADLINE)      // that of the context that it was started with
	EndSignaled    = EndReason(process.EndReason_END_REASON_SIGNALED)      // by Signal or Kill
)

// Exec runs a command and returns when it ended. A nonzero exit code is no error,
// nor is a command that does not read its input. If ctx ends first the command is
// killed; if that was the deadline, the output until then is returned with the
// error, which is DeadlineExceeded.
func (c *Client) Exec(ctx context.Context, cmd Command) (*Result, error) {
	cmd.Stdin, cmd.PTY, cmd.Session = cmd.Input != nil, nil, nil
	proc, err := c.Start(ctx, cmd)
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	if cmd.Stdin {
		feeding, stop := context.WithCancel(ctx)
		var feeder sync.WaitGroup
		feeder.Go(func() { proc.feed(feeding, cmd.Input) })
		defer feeder.Wait()
		defer stop()
	}
	limit := cmp.Or(cmd.MaxOutput, DefaultMaxOutput)
	stdout, stderr := head{limit: limit}, head{limit: limit}
	for {
		ev, err := proc.Next()
		switch {
		case errors.Is(err, io.EOF):
			res := &Result{
				Stdout: stdout.Bytes(), Stderr: stderr.Bytes(),
				Truncated: stdout.cut || stderr.cut, Exit: proc.Exit(),
			}
			if res.Reason == EndDeadline {
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
func (c *Client) killAbandoned(ctx context.Context, pid uint32) {
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
