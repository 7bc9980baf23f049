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

	"wrenn.dev"
	"wrenn.dev/proto/gen/envd/process"
)

const (
	// maxInput bounds one message of input.
	maxInput = 64 << 10
	// keepaliveSeconds is the silence after which envd sends a keepalive.
	keepaliveSeconds = "30"
)

// signals are envd's names of the signals.
var signals = map[wrenn.Signal]process.Signal{
	wrenn.SIGTERM: process.Signal_SIGNAL_SIGTERM, wrenn.SIGKILL: process.Signal_SIGNAL_SIGKILL,
}

// endReasons are the reasons of envd. Others, of a newer one, are wrenn.EndUnknown.
var endReasons = map[process.EndReason]wrenn.EndReason{
	process.EndReason_END_REASON_EXITED:        wrenn.EndExited,
	process.EndReason_END_REASON_SIGNALED:      wrenn.EndSignaled,
	process.EndReason_END_REASON_DEADLINE:      wrenn.EndTimeout,
	process.EndReason_END_REASON_OUT_OF_MEMORY: wrenn.EndOutOfMemory,
}

// Process is a running command that is followed. Next and Exit are for one
// goroutine, the other methods for any.
type Process struct {
	client  *Client
	stream  stream
	cancel  context.CancelFunc // of the stream; nil when that ends with its caller's context
	start   *process.ProcessEvent_StartEvent
	session *following // nil: it cannot be resumed
	until   time.Time  // the deadline that envd has; zero for none
	exit    wrenn.ExecExit
	ended   bool
	tty     atomic.Int32 // a ttyKind
}

// ttyKind is whether a process has a terminal.
type ttyKind int32

const (
	ttyUnknown ttyKind = iota // another client started it
	ttyNo
	ttyYes
)

// stream is the answer of envd's Start or Connect.
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

// Start starts a command and returns when it runs. A command with WantStdin has an
// input, for Send, and so has one with a PTY; its Stdin and Timeout are not used. A
// start that is repeated with a session follows the command of the first one. A caller that does not call
// Next slows the command down; nothing is buffered without bound. The command
// outlives Close and a canceled ctx; a deadline of ctx ends it, with
// DeadlineExceeded from Next. If ctx is canceled before Start returns, Start waits
// for the command's pid and kills it, because no client knows the pid otherwise. A
// command with a session keeps running: the session names it.
func (c *Client) Start(ctx context.Context, cmd wrenn.ExecStart) (*Process, error) {
	if err := checkCommand(cmd.ExecCommand); err != nil {
		return nil, err
	}
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
			if cmd.Session.ID == "" {
				c.killAbandoned(ctx, r.p.PID())
			}
			r.p.Close()
		}
		return nil, fromRPC("start "+cmd.Cmd, endOf(ctx))
	}
}

// withoutCancel returns a context that ends at ctx's deadline, or by the returned
// function, but not when ctx is canceled.
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

func (c *Client) start(ctx context.Context, cmd wrenn.ExecStart) (*Process, error) {
	ctx, call := connect.NewClientContext(ctx)
	call.RequestHeader().Set("Keepalive-Ping-Interval", keepaliveSeconds)
	if cmd.User != "" {
		call.RequestHeader().Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(cmd.User+":")))
	}
	req := &process.StartRequest{
		Process: &process.ProcessConfig{Cmd: cmd.Cmd, Args: cmd.Args, Envs: cmd.Env},
		Stdin:   &cmd.WantStdin,
		Session: sessionMessage(cmd.Session), EndReason: true,
	}
	if cmd.Cwd != "" {
		req.Process.Cwd = &cmd.Cwd
	}
	tty := ttyNo
	if cmd.PTY != nil {
		req.Pty, tty = terminal(*cmd.PTY), ttyYes
	}
	s, err := c.process.Start(ctx, req)
	if err != nil {
		return nil, believeDeadline(deadlineOf(ctx), fromRPC("start "+cmd.Cmd, err))
	}
	return c.follow(ctx, "start "+cmd.Cmd, started{s}, tty, cmd.Session)
}

// Attach follows a command that runs, or returns the end of one that ended
// recently. NotFound when there is no such process or session; only commands of
// Start can be followed. It ends another stream of the session.
func (c *Client) Attach(ctx context.Context, to wrenn.ExecAttach) (*Process, error) {
	ctx, call := connect.NewClientContext(ctx)
	call.RequestHeader().Set("Keepalive-Ping-Interval", keepaliveSeconds)
	req := &process.ConnectRequest{Process: selector(to.PID), Offset: to.Offset, Session: sessionMessage(to.Session), EndReason: true}
	if to.PID == 0 {
		if to.Session.ID == "" {
			return nil, wrenn.Errorf(wrenn.Invalid, "attach: neither a process nor a session is named")
		}
		req.Process = sessionSelector(to.Session)
	}
	s, err := c.process.Connect(ctx, req)
	if err != nil {
		return nil, fromRPC("attach", err)
	}
	return c.follow(ctx, "attach", connected{s}, ttyUnknown, to.Session)
}

// follow reads the first event, which has the pid.
func (c *Client) follow(ctx context.Context, doing string, s stream, tty ttyKind, session wrenn.ExecSession) (*Process, error) {
	p := &Process{client: c, stream: s, until: deadlineOf(ctx)}
	p.tty.Store(int32(tty))
	if !s.Receive() {
		err := cmp.Or(s.Err(), io.ErrUnexpectedEOF)
		p.Close()
		return nil, believeDeadline(p.until, fromRPC(doing, err))
	}
	start := s.event().GetStart()
	if start == nil {
		p.Close()
		return nil, wrenn.Errorf(wrenn.Internal, "%s: the guest's agent did not begin with a start event", doing)
	}
	p.start = start
	if session.ID != "" {
		p.session = newFollowing(ctx, c, session, start.GetInput())
	}
	return p, nil
}

// PID is the process's id in the guest.
func (p *Process) PID() int { return int(p.start.GetPid()) }

// Offset returns the position at which the output of this stream begins; 0 for a
// stream without a session and without an ExecAttach.Offset.
func (p *Process) Offset() uint64 { return p.start.GetOffset() }

// Lost returns how many bytes before Offset were requested but are no longer kept.
func (p *Process) Lost() uint64 { return p.start.GetLost() }

// selector names the process in calls, if possible by its session: a pid may be
// reused for another process.
func (p *Process) selector() *process.ProcessSelector {
	if p.session != nil {
		return sessionSelector(p.session.ExecSession)
	}
	return selector(p.PID())
}

// Next returns the next output, which is valid until the next call, or a keepalive;
// and io.EOF when the process ended: then Exit is set. Offset is set in a stream
// with a session or an ExecAttach.Offset. Any other error means that the stream broke; the process may still run.
func (p *Process) Next() (wrenn.ExecOutput, error) {
	for p.stream.Receive() {
		switch ev := p.stream.event(); {
		case ev.GetData() != nil:
			return p.output(ev.GetData()), nil
		case ev.GetKeepalive() != nil:
			return wrenn.ExecOutput{Keepalive: true}, nil
		case ev.GetEnd() != nil:
			p.exit = exitOf(ev.GetEnd())
			p.ended = true
			return wrenn.ExecOutput{}, io.EOF
		}
	}
	if p.ended {
		return wrenn.ExecOutput{}, io.EOF
	}
	err := believeDeadline(p.until, fromRPC("read output", cmp.Or(p.stream.Err(), io.ErrUnexpectedEOF)))
	if errors.Is(err, context.DeadlineExceeded) { // envd has it, too, and kills the process
		p.exit, p.ended = wrenn.ExecExit{Code: -1, Status: "signal: killed", Reason: wrenn.EndTimeout}, true
		return wrenn.ExecOutput{}, io.EOF
	}
	return wrenn.ExecOutput{}, err
}

func exitOf(end *process.ProcessEvent_EndEvent) wrenn.ExecExit {
	return wrenn.ExecExit{Code: int(end.GetExitCode()), Status: clean(end.GetStatus()), Reason: endReasons[end.GetReason()]}
}

func (p *Process) output(data *process.ProcessEvent_DataEvent) wrenn.ExecOutput {
	ev := wrenn.ExecOutput{Stdout: data.GetStdout(), Stderr: data.GetStderr(), PTY: data.GetPty(), Offset: data.GetOffset()}
	if ev.PTY != nil {
		p.tty.Store(int32(ttyYes))
	}
	return ev
}

// Exit returns how the process ended; the zero value before Next returned io.EOF.
func (p *Process) Exit() wrenn.ExecExit { return p.exit }

// Close ends the stream, not the process. Twice is allowed.
func (p *Process) Close() {
	if p.cancel != nil {
		p.cancel()
	}
	if p.session != nil {
		p.session.stop()
	}
	_ = p.stream.Close() // Next reports the errors that matter
}

// Send writes to the process's input or terminal, and waits while the process does
// not read. InputClosed reports whether an error means that the process has no
// input, has closed it, or has ended. With a session, data is sent at the position Taken,
// and envd ignores bytes that it has already; calls must not overlap then.
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

// SendFrom writes what r has to the input of a process without a terminal, until r
// ends, and returns when the process has taken all. Where Send waits for an answer
// after every 64 KiB, all of it is one request: it is for input that is large. The
// process must have no session. Errors are those of r and of Send.
func (p *Process) SendFrom(ctx context.Context, r io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the request if r fails
	stream, err := p.client.process.StreamInput(ctx)
	if err != nil {
		return fromRPC("send input", err)
	}
	err = stream.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Start{
		Start: &process.StreamInputRequest_StartEvent{Process: p.selector()},
	}})
	buf := make([]byte, maxInput)
	for err == nil {
		n, failed := io.ReadFull(r, buf) // small reads are joined
		if n > 0 {
			input := &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: buf[:n]}}
			err = stream.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Data{
				Data: &process.StreamInputRequest_DataEvent{Input: input},
			}})
		}
		if errors.Is(failed, io.EOF) || errors.Is(failed, io.ErrUnexpectedEOF) {
			break
		}
		if failed != nil {
			return failed
		}
	}
	_, answer := stream.CloseAndReceive() // says why a send failed
	return fromRPC("send input", answer)
}

// sendPiece sends one message of input. If another client started the process it
// tries both kinds of input: envd refuses the wrong one without writing any.
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
	if code, _ := answered(err); code != connect.CodeFailedPrecondition {
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

// Taken returns how many bytes of the session's input the process has taken, as
// far as this client knows.
func (p *Process) Taken() uint64 {
	if p.session == nil {
		return 0
	}
	return p.session.taken.Load()
}

// CloseInput closes the process's input, after the data of Send. Twice is allowed.
// GuestFailed for a terminal, which cannot be closed.
func (p *Process) CloseInput(ctx context.Context) error {
	_, err := p.client.process.CloseStdin(ctx, &process.CloseStdinRequest{Process: p.selector()})
	return fromRPC("close input", err)
}

// Resize changes the size of the process's terminal. GuestFailed when it has none.
func (p *Process) Resize(ctx context.Context, size wrenn.PTYSize) error {
	_, err := p.client.process.Update(ctx, &process.UpdateRequest{Process: p.selector(), Pty: terminal(size)})
	return fromRPC("resize terminal", err)
}

// Signal signals the process and its group. NotFound when it has ended, Invalid
// for a signal that envd cannot send.
func (p *Process) Signal(ctx context.Context, signal wrenn.Signal) error {
	return p.client.signal(ctx, p.selector(), signal)
}

// feed writes input and closes it. It ignores errors: a process may end or stop
// reading early.
func (p *Process) feed(ctx context.Context, input []byte) {
	if p.Send(ctx, input) == nil {
		_ = p.CloseInput(ctx)
	}
}

// Kill sends SIGKILL to a process that Start made, and to its group. NotFound
// when it has ended.
func (c *Client) Kill(ctx context.Context, pid int) error {
	return c.Signal(ctx, pid, wrenn.SIGKILL)
}

// Signal signals a process that Start made, and its group. NotFound when it has
// ended, Invalid for a signal that envd cannot send.
func (c *Client) Signal(ctx context.Context, pid int, signal wrenn.Signal) error {
	return c.signal(ctx, selector(pid), signal)
}

func (c *Client) signal(ctx context.Context, to *process.ProcessSelector, signal wrenn.Signal) error {
	_, err := c.process.SendSignal(ctx, &process.SendSignalRequest{Process: to, Signal: signals[signal]})
	return fromRPC("signal", err)
}

func selector(pid int) *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: uint32(pid)}}
}

func terminal(size wrenn.PTYSize) *process.PTY {
	return &process.PTY{Size: &process.PTY_Size{Cols: uint32(size.Cols), Rows: uint32(size.Rows)}}
}

// InputClosed reports whether an error of Send or CloseInput only means that the
// process no longer reads its input.
func InputClosed(err error) bool {
	code, _ := answered(err)
	return code == connect.CodeFailedPrecondition || code == connect.CodeNotFound || Gone(err) != nil
}
