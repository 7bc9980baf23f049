package server

import (
	"cmp"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"

	"wrenn"
	"wrenn/internal/envdclient"
	pb "wrenn/proto/gen/hostagent/v1"
)

const (
	// maxOutput bounds each output of an Exec, in bytes.
	maxOutput = 8 << 20
)

func (s *server) Exec(ctx context.Context, req *pb.ExecRequest) (*pb.ExecResponse, error) {
	if req.GetCmd() == "" {
		return nil, wrenn.Errorf(wrenn.Invalid, "cmd is missing")
	}
	sb, ctx, release, err := s.use(ctx, req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	defer release()
	limit := cmp.Or(seconds(req.GetTimeoutSec()), wrenn.DefaultExecTimeout)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	res, err := sb.Guest().Exec(ctx, envdclient.Command{
		Path: req.GetCmd(), Args: req.GetArgs(), Env: req.GetEnv(), Dir: req.GetCwd(), User: req.GetUser(),
		Input: req.GetStdin(), MaxOutput: maxOutput,
	})
	if wrenn.CodeOf(err) == wrenn.DeadlineExceeded || err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, wrenn.Errorf(wrenn.DeadlineExceeded, "the command did not end in time (%s) and was killed: give it a longer timeout, or stream it", limit)
	}
	if err != nil {
		return nil, err
	}
	return &pb.ExecResponse{
		Stdout: res.Stdout, Stderr: res.Stderr, ExitCode: int32(res.Code), Truncated: res.Truncated, Status: res.Status,
	}, nil
}

func (s *server) SignalProcess(ctx context.Context, req *pb.SignalProcessRequest) (*pb.SignalProcessResponse, error) {
	sb, ctx, release, err := s.use(ctx, req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	defer release()
	return &pb.SignalProcessResponse{}, sb.Guest().Signal(ctx, req.GetPid(), envdclient.Signal(req.GetSignal()))
}

var errRestart = wrenn.Errorf(wrenn.Unavailable, "the host's agent restarts; the command runs on: attach to its pid again in a moment")

// execStream is the caller's side of a command's stream.
type execStream = connect.BidiStream[pb.ExecStreamRequest, pb.ExecStreamResponse]

// Commands serves the streams of commands.
type Commands struct {
	// Use returns the guest of a sandbox, which stays until release is called,
	// and a context whose log lines name it.
	Use func(ctx context.Context, sandbox string) (guest *envdclient.Client, _ context.Context, release func(), err error)
	// Closing is closed when streams shall end.
	Closing <-chan struct{}
}

func (s *server) ExecStream(ctx context.Context, stream *execStream) error {
	c := &Commands{Closing: s.closing, Use: func(ctx context.Context, id string) (*envdclient.Client, context.Context, func(), error) {
		sb, ctx, release, err := s.use(ctx, id)
		if err != nil {
			return nil, ctx, nil, err
		}
		return sb.Guest(), ctx, release, nil
	}}
	return c.ExecStream(ctx, stream)
}

var errLeft = errors.New("the caller ended its session")

// ExecStream is a command's output to the caller, and the caller's input to
// the command. There is one event of output on its way: who does not read slows down who
// writes. Input that the command does not take is queued up to a size, so that what is
// not input does not wait behind it.
func (c *Commands) ExecStream(ctx context.Context, stream *execStream) error {
	first, err := stream.Receive()
	if err != nil {
		return wrenn.Errorf(wrenn.Invalid, "the first message must be start or attach")
	}
	ctx, hangUp := context.WithCancelCause(ctx)
	defer hangUp(nil)
	stop := onClosing(c.Closing, func() { hangUp(errRestart) })
	defer stop()
	proc, release, err := c.open(ctx, first)
	if err != nil {
		return err
	}
	defer release()
	defer proc.Close()
	if err := stream.Send(started(proc)); err != nil {
		return err
	}
	in := newInputs(proc)
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer hangUp(nil)
	helpers.Go(func() {
		if err := in.write(ctx); err != nil {
			hangUp(err)
		}
	})
	// It ends when the caller does, or when this handler has returned and the
	// request's body with it; so it is not waited for.
	go func() {
		if err := in.receive(ctx, stream); err != nil {
			hangUp(err)
		}
	}()
	err = relay(ctx, stream, proc, in)
	switch {
	case err == nil || ctx.Err() == nil:
		return err
	case errors.Is(context.Cause(ctx), errLeft):
		return nil
	}
	return context.Cause(ctx)
}

// started is the first answer.
func started(proc *envdclient.Process) *pb.ExecStreamResponse {
	return &pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Started{Started: &pb.ExecStarted{
		Pid: proc.PID(), Offset: proc.Offset(), Lost: proc.Lost(), Input: proc.Taken(),
	}}}
}

// onClosing calls f when closing is closed, until stop is called.
func onClosing(closing <-chan struct{}, f func()) (stop func()) {
	done := make(chan struct{})
	go func() {
		select {
		case <-closing:
			f()
		case <-done:
		}
	}()
	return sync.OnceFunc(func() { close(done) })
}

// open starts the command that the first message names, or attaches to it.
// ctx ends the stream and not the command: its deadline is not passed on.
func (c *Commands) open(ctx context.Context, first *pb.ExecStreamRequest) (_ *envdclient.Process, release func(), _ error) {
	start, attach := first.GetStart(), first.GetAttach()
	if start == nil && attach == nil {
		return nil, nil, wrenn.Errorf(wrenn.Invalid, "the first message must be start or attach")
	}
	guest, ctx, unuse, err := c.Use(ctx, cmp.Or(start.GetSandboxId(), attach.GetSandboxId()))
	if err != nil {
		return nil, nil, err
	}
	var proc *envdclient.Process
	follow, cancel := follow(ctx, seconds(start.GetTimeoutSec()))
	if attach != nil {
		proc, err = guest.Attach(follow, envdclient.Target{
			PID: attach.GetPid(), Session: sessionOf(attach.GetSession(), attach.GetHoldSec()), Offset: attach.Offset,
		})
	} else {
		proc, err = startCommand(follow, guest, start)
	}
	if err != nil {
		cancel()
		unuse()
		return nil, nil, err
	}
	return proc, func() { cancel(); unuse() }, nil
}

// follow is ctx with a deadline of its own, or none for 0, in place of ctx's.
func follow(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	if timeout == 0 {
		return out, func() { stop(); cancel() }
	}
	timed, end := context.WithTimeout(out, timeout)
	return timed, func() { stop(); end(); cancel() }
}

func startCommand(ctx context.Context, guest *envdclient.Client, start *pb.ExecStart) (*envdclient.Process, error) {
	if start.GetCmd() == "" {
		return nil, wrenn.Errorf(wrenn.Invalid, "cmd is missing")
	}
	cmd := envdclient.Command{
		Path: start.GetCmd(), Args: start.GetArgs(), Env: start.GetEnv(), Dir: start.GetCwd(), User: start.GetUser(), Stdin: start.GetStdin(),
		Session: sessionOf(start.GetSession(), start.GetHoldSec()),
	}
	if pty := start.GetPty(); pty != nil {
		cmd.PTY = sizeOf(pty)
	}
	return guest.Start(ctx, cmd)
}

// sessionOf is nil for a stream that cannot be resumed.
func sessionOf(id string, holdSec uint32) *envdclient.Session {
	if id == "" {
		return nil
	}
	return &envdclient.Session{ID: id, Hold: seconds(holdSec)}
}

func sizeOf(size *pb.TerminalSize) *envdclient.Size {
	return &envdclient.Size{Cols: int(size.GetCols()), Rows: int(size.GetRows())}
}

// output is a stream's next event, or why there is none.
type output struct {
	envdclient.Event

	err error
}

// outputs passes on what the command puts out, one event at a time: the next one
// is asked for when done says that the last one was used.
func outputs(ctx context.Context, proc *envdclient.Process) (events <-chan output, done chan<- struct{}) {
	out, used := make(chan output), make(chan struct{})
	go func() {
		for {
			ev, err := proc.Next()
			select {
			case out <- output{ev, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
			select {
			case <-used:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, used
}

// relay sends what the command puts out, how much input it took, and its end.
func relay(ctx context.Context, stream *execStream, proc *envdclient.Process, in *inputs) error {
	events, done := outputs(ctx, proc)
	for {
		var err error
		select {
		case ev := <-events:
			if errors.Is(ev.err, io.EOF) {
				exit := proc.Exit()
				return stream.Send(&pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Exit{
					Exit: &pb.ExecExit{ExitCode: int32(exit.Code), Status: exit.Status},
				}})
			}
			if ev.err != nil {
				return ev.err
			}
			err = stream.Send(message(ev.Event))
			select {
			case done <- struct{}{}:
			case <-ctx.Done():
			}
		case <-in.progress:
			err = stream.Send(&pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Input{Input: in.taken.Load()}})
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

func message(ev envdclient.Event) *pb.ExecStreamResponse {
	switch {
	case ev.Stdout != nil:
		return &pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Stdout{Stdout: ev.Stdout}, Offset: ev.Offset}
	case ev.Stderr != nil:
		return &pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Stderr{Stderr: ev.Stderr}, Offset: ev.Offset}
	case ev.PTY != nil:
		return &pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Pty{Pty: ev.PTY}, Offset: ev.Offset}
	default:
		return &pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Keepalive{Keepalive: true}}
	}
}
