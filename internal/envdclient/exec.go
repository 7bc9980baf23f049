package envdclient

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"

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
	// MaxOutput bounds each output that Exec keeps, in bytes; default DefaultMaxOutput.
	MaxOutput int
}

// Result is a command that ended.
type Result struct {
	Stdout, Stderr []byte
	// Truncated says that an output went on after MaxOutput; the rest is lost.
	Truncated bool
	Exit
}

// Exit says how a process ended.
type Exit struct {
	Code   int    // -1 when a signal ended it
	Status string // "exit status 3", "signal: killed"
}

// Exec runs a command without input and returns when it ended. A nonzero exit
// is no error. When ctx ends first the command is killed.
func (c *Client) Exec(ctx context.Context, cmd Command) (*Result, error) {
	proc, err := c.Start(ctx, cmd)
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	limit := cmp.Or(cmd.MaxOutput, DefaultMaxOutput)
	stdout, stderr := head{limit: limit}, head{limit: limit}
	for {
		ev, err := proc.Next()
		switch {
		case errors.Is(err, io.EOF):
			return &Result{
				Stdout: stdout.Bytes(), Stderr: stderr.Bytes(),
				Truncated: stdout.cut || stderr.cut, Exit: proc.Exit(),
			}, nil
		case err != nil:
			c.killAbandoned(ctx, proc.PID())
			return nil, err
		}
		stdout.Write(ev.Stdout)
		stderr.Write(ev.Stderr)
	}
}

// killAbandoned ends a command that nobody waits for any more. A deadline is
// already envd's business: it travels with the request.
func (c *Client) killAbandoned(ctx context.Context, pid uint32) {
	if !errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	_ = c.Kill(ctx, pid) // it may have ended meanwhile; the caller's error is the one that counts
}

// Kill sends SIGKILL to a process that Start made, and to its group. NotFound
// when it has ended.
func (c *Client) Kill(ctx context.Context, pid uint32) error {
	_, err := c.process.SendSignal(ctx, &process.SendSignalRequest{
		Process: &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: pid}},
		Signal:  process.Signal_SIGNAL_SIGKILL,
	})
	return fromRPC("kill", err)
}

// Event is a piece of output; exactly one field is set.
type Event struct{ Stdout, Stderr []byte }

// Process is a running command whose output is read piece by piece. It is not
// safe for concurrent use.
type Process struct {
	stream *connect.ServerStreamForClient[process.StartResponse]
	cancel context.CancelFunc // of the stream
	pid    uint32
	exit   Exit
	ended  bool
}

// Start runs a command without input and returns when it runs. A reader that
// does not call Next slows the command down; nothing is buffered without
// bound. The command outlives ctx and Close; a deadline of ctx ends it. So does
// a ctx that is cancelled before Start returns.
func (c *Client) Start(ctx context.Context, cmd Command) (*Process, error) {
	p := &Process{}
	if err := p.begin(ctx, c, cmd); err != nil {
		p.Close()
		return nil, fromRPC("start "+cmd.Path, err)
	}
	return p, nil
}

// begin opens the stream and takes the first event. The stream does not end
// with ctx before that has come: nobody else knows which process to end.
func (p *Process) begin(ctx context.Context, c *Client, cmd Command) error {
	var streamCtx context.Context
	streamCtx, p.cancel = withoutCancel(ctx)
	began := make(chan error, 1)
	go func() { began <- p.receiveStart(streamCtx, c, cmd) }()
	select {
	case err := <-began:
		context.AfterFunc(ctx, func() {
			if errors.Is(ctx.Err(), context.Canceled) { // the stream has ctx's deadline itself
				p.cancel()
			}
		})
		return err
	case <-ctx.Done():
		defer time.AfterFunc(killTimeout, p.cancel).Stop()
		if <-began == nil {
			c.killAbandoned(ctx, p.pid)
		}
		code := connect.CodeCanceled
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			code = connect.CodeDeadlineExceeded
		}
		return connect.NewError(code, context.Cause(ctx))
	}
}

func (p *Process) receiveStart(ctx context.Context, c *Client, cmd Command) (err error) {
	if p.stream, err = c.startStream(ctx, cmd); err != nil {
		return err
	}
	if !p.stream.Receive() {
		return cmp.Or(p.stream.Err(), io.ErrUnexpectedEOF)
	}
	start := p.stream.Msg().GetEvent().GetStart()
	if start == nil {
		return connect.NewError(connect.CodeInternal, errors.New("the guest's agent did not begin with a start event"))
	}
	p.pid = start.GetPid()
	return nil
}

// withoutCancel returns a context that ends at ctx's deadline, or by its own
// cancel, but not when ctx is cancelled.
func withoutCancel(ctx context.Context) (context.Context, context.CancelFunc) {
	free := context.WithoutCancel(ctx)
	if deadline, ok := ctx.Deadline(); ok {
		return context.WithDeadline(free, deadline)
	}
	return context.WithCancel(free)
}

func (c *Client) startStream(ctx context.Context, cmd Command) (*connect.ServerStreamForClient[process.StartResponse], error) {
	ctx, call := connect.NewClientContext(ctx)
	if cmd.User != "" {
		call.RequestHeader().Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(cmd.User+":")))
	}
	req := &process.StartRequest{
		Process: &process.ProcessConfig{Cmd: cmd.Path, Args: cmd.Args, Envs: cmd.Env},
		Stdin:   new(bool),
	}
	if cmd.Dir != "" {
		req.Process.Cwd = &cmd.Dir
	}
	return c.process.Start(ctx, req)
}

// PID is the process's id in the guest.
func (p *Process) PID() uint32 { return p.pid }

// Next returns the next piece of output, valid until the next call, and io.EOF
// when the process ended: then Exit is set. Any other error says that the
// stream broke; the process may run on.
func (p *Process) Next() (Event, error) {
	for p.stream.Receive() {
		switch ev := p.stream.Msg().GetEvent(); {
		case ev.GetData() != nil:
			return Event{Stdout: ev.GetData().GetStdout(), Stderr: ev.GetData().GetStderr()}, nil
		case ev.GetEnd() != nil:
			p.exit = Exit{Code: int(ev.GetEnd().GetExitCode()), Status: ev.GetEnd().GetStatus()}
			p.ended = true
			return Event{}, io.EOF
		}
	}
	if p.ended {
		return Event{}, io.EOF
	}
	return Event{}, fromRPC("read output", cmp.Or(p.stream.Err(), io.ErrUnexpectedEOF))
}

// Exit says how the process ended; the zero Exit before Next returned io.EOF.
func (p *Process) Exit() Exit { return p.exit }

// Close ends the stream, not the process. Twice is allowed.
func (p *Process) Close() {
	p.cancel()
	if p.stream != nil {
		_ = p.stream.Close() // nothing is lost that Next did not report
	}
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

// codes translates what envd answers; what is not here is Internal.
var codes = map[connect.Code]wrenn.Code{
	connect.CodeInvalidArgument:    wrenn.Invalid,
	connect.CodeNotFound:           wrenn.NotFound,
	connect.CodeAlreadyExists:      wrenn.AlreadyExists,
	connect.CodeFailedPrecondition: wrenn.FailedPrecondition,
	connect.CodeResourceExhausted:  wrenn.Exhausted,
	connect.CodePermissionDenied:   wrenn.PermissionDenied,
	connect.CodeUnauthenticated:    wrenn.Unauthenticated,
	connect.CodeUnavailable:        wrenn.Unavailable,
	connect.CodeDeadlineExceeded:   wrenn.DeadlineExceeded,
	connect.CodeCanceled:           wrenn.Canceled,
}

// fromRPC turns a Connect error into one of ours. What envd said is the
// message; only the caller's own end stays visible as a cause.
func fromRPC(doing string, err error) error {
	if err == nil {
		return nil
	}
	rpc, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return fmt.Errorf("%s: %w", doing, err)
	}
	out := wrenn.Errorf(cmp.Or(codes[rpc.Code()], wrenn.Internal), "%s: %s", doing, rpc.Message())
	for _, cause := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, cause) {
			out.Err = cause
		}
	}
	return out
}
