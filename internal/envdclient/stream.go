package envdclient

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"wrenn"
	"wrenn/proto/gen/envd/process"
)

const (
	// maxInput bounds one piece of input on its way; it is envd's to write as a whole.
	maxInput = 64 << 10
	// keepaliveSeconds is the silence after which envd sends a keepalive.
	keepaliveSeconds = "30"
)

// Size is a terminal's.
type Size struct{ Cols, Rows int }

// Signal is one that envd can send.
type Signal int

// The signals.
const (
	SIGKILL = Signal(process.Signal_SIGNAL_SIGKILL)
	SIGTERM = Signal(process.Signal_SIGNAL_SIGTERM)
)

// Event is a piece of output, valid until the next one is asked for, or a sign
// of life after a silence; exactly one field is set, and Offset.
type Event struct {
	Stdout, Stderr, PTY []byte
	Keepalive           bool
	Offset              uint64 // of the first byte of output, when it was asked for by a session or an offset
}

// Process is a running command that is followed. Next and Exit are for one
// goroutine, the other methods for any.
type Process struct {
	client  *Client
	stream  stream
	cancel  context.CancelFunc // of the stream; nil when that ends with its caller's context
	start   *process.ProcessEvent_StartEvent
	session *following // nil: it cannot be resumed
	exit    Exit
	ended   bool
	tty     atomic.Int32 // a ttyKind
}

// ttyKind is whether a process has a terminal.
type ttyKind int32

const (
	ttyUnknown ttyKind = iota // somebody else started it
	ttyNo
	ttyYes
)

// stream is what Start and Connect of envd answer with.
type stream interface {
	Receive() bool
	Err() error
	Close() error
	event() *process.ProcessEvent
}

type started struct {
	*connect.ServerStreamForClient[process.StartResponse]
}

func (s started) event() *process.ProcessEvent { return s.Msg().GetEvent() }

type connected struct {
	*connect.ServerStreamForClient[process.ConnectResponse]
}

func (s connected) event() *process.ProcessEvent { return s.Msg().GetEvent() }

// Start runs a command and returns when it runs. A reader that does not call
// Next slows the command down; nothing is buffered without bound. The command
// outlives ctx and Close; a deadline of ctx ends it, with DeadlineExceeded
// from Next. So does a ctx that is cancelled before Start returns: the stream
// goes on until the command's id has come, for nobody else knows what to end.
// Whoever has the command's session knows: then it runs on.
func (c *Client) Start(ctx context.Context, cmd Command) (*Process, error) {
	streamCtx, cancel := withoutCancel(ctx)
	type result struct {
		p   *Process
		err error
	}
	began := make(chan result, 1)
	go func() {
		p, err := c.start(streamCtx, cmd)
		began <- result{p, err}
	}()
	select {
	case r := <-began:
		if r.err != nil {
			cancel()
			return nil, r.err
		}
		r.p.cancel = cancel
		context.AfterFunc(ctx, func() {
			if errors.Is(ctx.Err(), context.Canceled) { // the stream has ctx's deadline itself
				cancel()
			}
		})
		return r.p, nil
	case <-ctx.Done():
		defer cancel()
		defer time.AfterFunc(killTimeout, cancel).Stop()
		if r := <-began; r.err == nil {
			if cmd.Session == nil {
				c.killAbandoned(ctx, r.p.PID())
			}
			r.p.Close()
		}
		return nil, fromRPC("start "+cmd.Path, endOf(ctx))
	}
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

func endOf(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return connect.NewError(connect.CodeDeadlineExceeded, context.Cause(ctx))
	}
	return connect.NewError(connect.CodeCanceled, context.Cause(ctx))
}

func (c *Client) start(ctx context.Context, cmd Command) (*Process, error) {
	ctx, call := connect.NewClientContext(ctx)
	call.RequestHeader().Set("Keepalive-Ping-Interval", keepaliveSeconds)
	if cmd.User != "" {
		call.RequestHeader().Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(cmd.User+":")))
	}
	req := &process.StartRequest{
		Process: &process.ProcessConfig{Cmd: cmd.Path, Args: cmd.Args, Envs: cmd.Env},
		Stdin:   &cmd.Stdin,
		Session: cmd.Session.message(),
	}
	if cmd.Dir != "" {
		req.Process.Cwd = &cmd.Dir
	}
	tty := ttyNo
	if cmd.PTY != nil {
		req.Pty, tty = cmd.PTY.message(), ttyYes
	}
	s, err := c.process.Start(ctx, req)
	if err != nil {
		return nil, fromRPC("start "+cmd.Path, err)
	}
	return c.follow(ctx, "start "+cmd.Path, started{s}, tty, cmd.Session)
}

// Target says which command to follow, and from where.
type Target struct {
	PID     uint32   // 0: the one that has Session, which is resumed
	Session *Session // nil: the stream cannot be resumed
	// Offset is the position in the output to begin at; nil is where the session
	// acknowledged, or now. Lost says how much of it is gone.
	Offset *uint64
}

// Attach follows a command that runs, or shows the end of one that ended not
// long ago. NotFound when there is no such process or session; only those that Start
// made can be followed. A stream that the session still has ends.
func (c *Client) Attach(ctx context.Context, to Target) (*Process, error) {
	ctx, call := connect.NewClientContext(ctx)
	call.RequestHeader().Set("Keepalive-Ping-Interval", keepaliveSeconds)
	req := &process.ConnectRequest{Process: selector(to.PID), Offset: to.Offset, Session: to.Session.message()}
	if to.PID == 0 {
		if to.Session == nil {
			return nil, wrenn.Errorf(wrenn.Invalid, "attach: neither a process nor a session is named")
		}
		req.Process = to.Session.selector()
	}
	s, err := c.process.Connect(ctx, req)
	if err != nil {
		return nil, fromRPC("attach", err)
	}
	return c.follow(ctx, "attach", connected{s}, ttyUnknown, to.Session)
}

// follow reads the first event, which says the pid.
func (c *Client) follow(ctx context.Context, doing string, s stream, tty ttyKind, session *Session) (*Process, error) {
	p := &Process{client: c, stream: s}
	p.tty.Store(int32(tty))
	if !s.Receive() {
		err := cmp.Or(s.Err(), io.ErrUnexpectedEOF)
		p.Close()
		return nil, fromRPC(doing, err)
	}
	start := s.event().GetStart()
	if start == nil {
		p.Close()
		return nil, wrenn.Errorf(wrenn.Internal, "%s: the guest's agent did not begin with a start event", doing)
	}
	p.start = start
	if session != nil {
		p.session = newFollowing(ctx, c, session, start.GetInput())
	}
	return p, nil
}

// PID is the process's id in the guest.
func (p *Process) PID() uint32 { return p.start.GetPid() }

// Offset is where the output of this stream begins, and Lost how much of what
// was asked for is gone, which came right before. 0 for streams that asked for neither a session nor an offset.
func (p *Process) Offset() uint64 { return p.start.GetOffset() }

// Lost is explained at Offset.
func (p *Process) Lost() uint64 { return p.start.GetLost() }

// selector names the process in calls. A session is never another process's, as a pid may be.
func (p *Process) selector() *process.ProcessSelector {
	if p.session != nil {
		return p.session.selector()
	}
	return selector(p.PID())
}

// Next returns the next event, and io.EOF when the process ended: then Exit is
// set. Any other error says that the stream broke; the process may run on.
func (p *Process) Next() (Event, error) {
	for p.stream.Receive() {
		switch ev := p.stream.event(); {
		case ev.GetData() != nil:
			return p.output(ev.GetData()), nil
		case ev.GetKeepalive() != nil:
			return Event{Keepalive: true}, nil
		case ev.GetEnd() != nil:
			p.exit = Exit{Code: int(ev.GetEnd().GetExitCode()), Status: said(ev.GetEnd().GetStatus())}
			p.ended = true
			return Event{}, io.EOF
		}
	}
	if p.ended {
		return Event{}, io.EOF
	}
	return Event{}, fromRPC("read output", cmp.Or(p.stream.Err(), io.ErrUnexpectedEOF))
}

func (p *Process) output(data *process.ProcessEvent_DataEvent) Event {
	ev := Event{Stdout: data.GetStdout(), Stderr: data.GetStderr(), PTY: data.GetPty(), Offset: data.GetOffset()}
	if ev.PTY != nil {
		p.tty.Store(int32(ttyYes))
	}
	return ev
}

// Exit says how the process ended; the zero Exit before Next returned io.EOF.
func (p *Process) Exit() Exit { return p.exit }

// Close ends the stream, not the process. Twice is allowed.
func (p *Process) Close() {
	if p.cancel != nil {
		p.cancel()
	}
	if p.session != nil {
		p.session.stop()
	}
	_ = p.stream.Close() // nothing is lost that Next did not report
}

// Send writes to the process's input or terminal and returns when all is
// written, which waits while the process does not read. FailedPrecondition when it has
// no input or has closed it, NotFound when it has ended. With a session, what is sent
// follows on what Taken said at the beginning, and may have been sent before; calls must not overlap then.
func (p *Process) Send(ctx context.Context, data []byte) error {
	for len(data) > 0 {
		piece := data[:min(len(data), maxInput)]
		data = data[len(piece):]
		if err := p.sendPiece(ctx, piece); err != nil {
			return err
		}
	}
	return nil
}

// sendPiece finds out whether a process that somebody else started has a
// terminal: envd refuses the wrong kind of input without writing any.
func (p *Process) sendPiece(ctx context.Context, piece []byte) error {
	stdin := &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: piece}}
	tty := &process.ProcessInput{Input: &process.ProcessInput_Pty{Pty: piece}}
	switch ttyKind(p.tty.Load()) {
	case ttyNo:
		return p.sendInput(ctx, stdin)
	case ttyYes:
		return p.sendInput(ctx, tty)
	}
	err := p.sendInput(ctx, stdin)
	if wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		return err
	}
	if p.sendInput(ctx, tty) != nil {
		return err
	}
	p.tty.Store(int32(ttyYes))
	return nil
}

func (p *Process) sendInput(ctx context.Context, input *process.ProcessInput) error {
	req := &process.SendInputRequest{Process: p.selector(), Input: input}
	if p.session != nil {
		req.Offset = new(p.session.taken.Load())
	}
	_, err := p.client.process.SendInput(ctx, req)
	if err == nil && p.session != nil {
		p.session.taken.Add(uint64(len(input.GetStdin()) + len(input.GetPty())))
	}
	return fromRPC("send input", err)
}

// Taken is how much of the session's input the process has taken, as far as is known here.
func (p *Process) Taken() uint64 {
	if p.session == nil {
		return 0
	}
	return p.session.taken.Load()
}

// CloseInput shows the process the end of its input, after what was sent.
// Twice is allowed. A terminal has no end: FailedPrecondition.
func (p *Process) CloseInput(ctx context.Context) error {
	_, err := p.client.process.CloseStdin(ctx, &process.CloseStdinRequest{Process: p.selector()})
	return fromRPC("close input", err)
}

// Resize changes the size of the process's terminal. FailedPrecondition when it has none.
func (p *Process) Resize(ctx context.Context, size Size) error {
	_, err := p.client.process.Update(ctx, &process.UpdateRequest{Process: p.selector(), Pty: size.message()})
	return fromRPC("resize terminal", err)
}

// Signal signals the process and its group. NotFound when it has ended, Invalid
// for a signal that envd cannot send.
func (p *Process) Signal(ctx context.Context, signal Signal) error {
	return p.client.signal(ctx, p.selector(), signal)
}

// feed writes input and closes it. That a process ends or stops reading early
// is its own affair.
func (p *Process) feed(ctx context.Context, input []byte) {
	if p.Send(ctx, input) == nil {
		_ = p.CloseInput(ctx)
	}
}

// Kill sends SIGKILL to a process that Start made, and to its group. NotFound
// when it has ended.
func (c *Client) Kill(ctx context.Context, pid uint32) error { return c.Signal(ctx, pid, SIGKILL) }

// Signal signals a process that Start made, and its group. NotFound when it has
// ended, Invalid for a signal that envd cannot send.
func (c *Client) Signal(ctx context.Context, pid uint32, signal Signal) error {
	return c.signal(ctx, selector(pid), signal)
}

func (c *Client) signal(ctx context.Context, to *process.ProcessSelector, signal Signal) error {
	_, err := c.process.SendSignal(ctx, &process.SendSignalRequest{Process: to, Signal: process.Signal(signal)})
	return fromRPC("signal", err)
}

func selector(pid uint32) *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: pid}}
}

func (s Size) message() *process.PTY {
	return &process.PTY{Size: &process.PTY_Size{Cols: uint32(s.Cols), Rows: uint32(s.Rows)}}
}

// InputClosed says that an error of Send or CloseInput means no more than that
// the process does not read any more.
func InputClosed(err error) bool {
	code := wrenn.CodeOf(err)
	return code == wrenn.FailedPrecondition || code == wrenn.NotFound
}
