package hostclient

import (
	"cmp"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"

	"wrenn"
	"wrenn/internal/wire"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

// maxFrame is the most input in one message, in bytes, and the smallest buffer
// of a file that is reused.
const maxFrame = 64 << 10

// Exec runs a command to its end, or until its timeout.
func (c *Client) Exec(ctx context.Context, id wrenn.SandboxID, cmd wrenn.ExecCommand) (*wrenn.ExecResult, error) {
	begin := time.Now()
	limit := cmp.Or(cmd.Timeout, wrenn.DefaultExecTimeout) + c.deadlines.ExecGrace
	res, err := call(ctx, c, limit, c.rpc.Exec, &hostagentv1.ExecRequest{
		SandboxId: string(id), Cmd: cmd.Cmd, Args: cmd.Args, Env: cmd.Env, Cwd: cmd.Cwd, User: cmd.User,
		TimeoutSec: seconds(cmd.Timeout), Stdin: cmd.Stdin,
	})
	if err != nil {
		return nil, err
	}
	return &wrenn.ExecResult{
		Stdout: res.GetStdout(), Stderr: res.GetStderr(), ExitCode: int(res.GetExitCode()), Status: res.GetStatus(),
		Truncated: res.GetTruncated(), Duration: time.Since(begin),
	}, nil
}

// ExecStream is one live stream of a command. One goroutine may receive while
// others send.
type ExecStream struct {
	peer   string
	rpc    *connect.BidiStreamForClientSimple[hostagentv1.ExecStreamRequest, hostagentv1.ExecStreamResponse]
	cancel context.CancelFunc
	first  *wrenn.ExecOutput // received by open
	exited bool

	send sync.Mutex // one frame at a time
}

// StartExec starts a command and returns when it runs. The caller closes the
// stream. The end of ctx ends the stream, too; the command runs on.
func (c *Client) StartExec(ctx context.Context, id wrenn.SandboxID, start wrenn.ExecStart) (*ExecStream, error) {
	msg := &hostagentv1.ExecStart{
		SandboxId: string(id), Cmd: start.Cmd, Args: start.Args, Env: start.Env, Cwd: start.Cwd, User: start.User,
		TimeoutSec: seconds(start.Timeout), Stdin: start.WantStdin,
		Session: start.Session.ID, HoldSec: seconds(start.Session.Hold),
	}
	if start.PTY != nil {
		msg.Pty = terminal(*start.PTY)
	}
	return c.open(ctx, &hostagentv1.ExecStreamRequest{Event: &hostagentv1.ExecStreamRequest_Start{Start: msg}})
}

// AttachExec watches a command that runs.
func (c *Client) AttachExec(ctx context.Context, id wrenn.SandboxID, to wrenn.ExecAttach) (*ExecStream, error) {
	if to.PID < 0 || int64(to.PID) > 1<<32-1 || to.PID == 0 && to.Session.ID == "" {
		return nil, wrenn.Errorf(wrenn.Invalid, "%d is no process id", to.PID)
	}
	msg := &hostagentv1.ExecAttach{
		SandboxId: string(id), Pid: uint32(to.PID), Session: to.Session.ID, HoldSec: seconds(to.Session.Hold), Offset: to.Offset,
	}
	return c.open(ctx, &hostagentv1.ExecStreamRequest{Event: &hostagentv1.ExecStreamRequest_Attach{Attach: msg}})
}

// open sends the first frame and waits for the first answer, so that what is
// wrong with the request is an error of it and not of the stream.
func (c *Client) open(ctx context.Context, req *hostagentv1.ExecStreamRequest) (*ExecStream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := time.AfterFunc(c.deadlines.Start, func() { cancel(errStalled) })
	s := &ExecStream{peer: c.peer, cancel: func() { cancel(nil) }}
	err := s.begin(ctx, c, req)
	if err != nil || !stop.Stop() {
		if err == nil || errors.Is(context.Cause(ctx), errStalled) {
			err = stalled(c.peer)
		}
		s.cancel()
		return nil, err
	}
	return s, nil
}

func (s *ExecStream) begin(ctx context.Context, c *Client, req *hostagentv1.ExecStreamRequest) error {
	rpc, err := c.rpc.ExecStream(ctx)
	if err != nil {
		return wire.FromConnect(s.peer, err)
	}
	s.rpc = rpc
	// Once the answer has begun, net/http does not look at the context while it
	// waits for more of the request: neither Receive nor the host would hear of it.
	context.AfterFunc(ctx, func() { _ = rpc.CloseResponse() })
	if err := rpc.Send(req); err != nil && !errors.Is(err, io.EOF) { // io.EOF: Receive says why
		return wire.FromConnect(s.peer, err)
	}
	out, err := s.Receive()
	if err != nil {
		return err
	}
	if out.Started == nil {
		return wrenn.Errorf(wrenn.Internal, "%s did not begin with a process id", s.peer)
	}
	s.first = &out
	return nil
}

// Receive returns what happens next, and io.EOF after Exit. Every other error
// says that the stream broke: the command may run on.
func (s *ExecStream) Receive() (wrenn.ExecOutput, error) {
	if first := s.first; first != nil {
		s.first = nil
		return *first, nil
	}
	if s.exited {
		return wrenn.ExecOutput{}, io.EOF
	}
	for {
		msg, err := s.rpc.Receive()
		if errors.Is(err, io.EOF) {
			return wrenn.ExecOutput{}, wrenn.Errorf(wrenn.Unavailable, "the stream broke before the command ended, which may still run: attach to it")
		}
		if err != nil {
			return wrenn.ExecOutput{}, wire.FromConnect(s.peer, err)
		}
		if out, ok := output(msg); ok {
			s.exited = out.Exit != nil
			return out, nil
		}
	}
}

// output returns the frame in our words, and false for one that a newer host may send.
func output(msg *hostagentv1.ExecStreamResponse) (wrenn.ExecOutput, bool) {
	switch ev := msg.GetEvent().(type) {
	case *hostagentv1.ExecStreamResponse_Started:
		return wrenn.ExecOutput{Started: &wrenn.ExecStarted{
			PID: int(ev.Started.GetPid()), Offset: ev.Started.GetOffset(), Lost: ev.Started.GetLost(), Taken: ev.Started.GetInput(),
		}}, true
	case *hostagentv1.ExecStreamResponse_Stdout:
		return wrenn.ExecOutput{Stdout: ev.Stdout, Offset: msg.GetOffset()}, len(ev.Stdout) > 0
	case *hostagentv1.ExecStreamResponse_Stderr:
		return wrenn.ExecOutput{Stderr: ev.Stderr, Offset: msg.GetOffset()}, len(ev.Stderr) > 0
	case *hostagentv1.ExecStreamResponse_Pty:
		return wrenn.ExecOutput{PTY: ev.Pty, Offset: msg.GetOffset()}, len(ev.Pty) > 0
	case *hostagentv1.ExecStreamResponse_Input:
		return wrenn.ExecOutput{Taken: &ev.Input}, true
	case *hostagentv1.ExecStreamResponse_Exit:
		return wrenn.ExecOutput{Exit: &wrenn.ExecExit{Code: int(ev.Exit.GetExitCode()), Status: ev.Exit.GetStatus()}}, true
	case *hostagentv1.ExecStreamResponse_Keepalive:
		return wrenn.ExecOutput{Keepalive: true}, true
	}
	return wrenn.ExecOutput{}, false
}

// SendStdin returns when p is on its way; a command that does not read holds it up.
func (s *ExecStream) SendStdin(p []byte) error {
	s.send.Lock() // the pieces of one call stay together
	defer s.send.Unlock()
	for len(p) > 0 {
		n := min(len(p), maxFrame)
		if err := s.frame(&hostagentv1.ExecStreamRequest{Event: &hostagentv1.ExecStreamRequest_Stdin{Stdin: p[:n]}}); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// CloseStdin ends the command's input.
func (s *ExecStream) CloseStdin() error {
	return s.sendOne(&hostagentv1.ExecStreamRequest{Event: &hostagentv1.ExecStreamRequest_StdinClose{StdinClose: true}})
}

// Resize changes the size of the terminal.
func (s *ExecStream) Resize(size wrenn.PTYSize) error {
	return s.sendOne(&hostagentv1.ExecStreamRequest{Event: &hostagentv1.ExecStreamRequest_Resize{Resize: terminal(size)}})
}

// signals are those that a caller may send; the set is the protocol's.
var signals = map[string]hostagentv1.Signal{
	"SIGTERM": hostagentv1.Signal_SIGNAL_SIGTERM,
	"SIGKILL": hostagentv1.Signal_SIGNAL_SIGKILL,
}

// Signal signals the command's process group.
func (s *ExecStream) Signal(name string) error {
	signal, ok := signals[name]
	if !ok {
		return wrenn.Errorf(wrenn.Invalid, "%.20q is no signal that can be sent: SIGTERM or SIGKILL", name)
	}
	return s.sendOne(&hostagentv1.ExecStreamRequest{Event: &hostagentv1.ExecStreamRequest_Signal{Signal: signal}})
}

// Ack says that all output before a position has arrived where it is needed,
// so that it need not be kept for the session.
func (s *ExecStream) Ack(offset uint64) error {
	return s.sendOne(&hostagentv1.ExecStreamRequest{Event: &hostagentv1.ExecStreamRequest_Ack{Ack: offset}})
}

// Leave ends the session: nothing is kept for it any more, and the stream ends.
func (s *ExecStream) Leave() error {
	return s.sendOne(&hostagentv1.ExecStreamRequest{Event: &hostagentv1.ExecStreamRequest_Leave{Leave: true}})
}

func (s *ExecStream) sendOne(req *hostagentv1.ExecStreamRequest) error {
	s.send.Lock()
	defer s.send.Unlock()
	return s.frame(req)
}

func (s *ExecStream) frame(req *hostagentv1.ExecStreamRequest) error {
	err := s.rpc.Send(req)
	if errors.Is(err, io.EOF) {
		return wrenn.Errorf(wrenn.FailedPrecondition, "the command has ended, or its stream")
	}
	return wire.FromConnect(s.peer, err)
}

// Close ends the stream, not the command. Twice is allowed, and while others
// receive or send: their calls end with an error.
func (s *ExecStream) Close() error {
	s.cancel()
	return nil
}

func terminal(size wrenn.PTYSize) *hostagentv1.TerminalSize {
	const most = 1<<16 - 1 // struct winsize has 16 bits
	return &hostagentv1.TerminalSize{Cols: uint32(max(1, min(size.Cols, most))), Rows: uint32(max(1, min(size.Rows, most)))}
}
