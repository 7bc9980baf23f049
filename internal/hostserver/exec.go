package hostserver

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
	// defaultExecTimeout is that of an Exec that names none.
	defaultExecTimeout = 30 * time.Second
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
	limit := cmp.Or(seconds(req.GetTimeoutSec()), defaultExecTimeout)
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

// ExecStream is a command's output to the caller, and the caller's input to
// the command. There is one event on its way in each direction: who does not
// read slows down who writes.
func (s *server) ExecStream(ctx context.Context, stream *connect.BidiStream[pb.ExecStreamRequest, pb.ExecStreamResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return wrenn.Errorf(wrenn.Invalid, "the first message must be start or attach")
	}
	ctx, hangUp := context.WithCancelCause(ctx)
	defer hangUp(nil)
	stop := s.onClosing(func() { hangUp(errRestart) })
	defer stop()
	proc, release, err := s.open(ctx, first)
	if err != nil {
		return err
	}
	defer release()
	defer proc.Close()
	if err := stream.Send(&pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Started{Started: &pb.ExecStarted{Pid: proc.PID()}}}); err != nil {
		return err
	}
	in := &inputs{proc: proc, events: make(chan *pb.ExecStreamRequest)}
	var writer sync.WaitGroup
	defer writer.Wait()
	defer hangUp(nil)
	writer.Go(func() {
		if err := in.write(ctx); err != nil {
			hangUp(err)
		}
	})
	// It ends when the caller does, or when this handler has returned and the
	// request's body with it; so it is not waited for.
	go in.receive(ctx, stream)
	err = relay(stream, proc)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// onClosing calls f when streams shall end, until stop is called.
func (s *server) onClosing(f func()) (stop func()) {
	done := make(chan struct{})
	go func() {
		select {
		case <-s.closing:
			f()
		case <-done:
		}
	}()
	return sync.OnceFunc(func() { close(done) })
}

// open starts the command that the first message names, or attaches to it.
// ctx ends the stream and not the command: its deadline is not passed on.
func (s *server) open(ctx context.Context, first *pb.ExecStreamRequest) (_ *envdclient.Process, release func(), _ error) {
	start, attach := first.GetStart(), first.GetAttach()
	if start == nil && attach == nil {
		return nil, nil, wrenn.Errorf(wrenn.Invalid, "the first message must be start or attach")
	}
	sb, ctx, unuse, err := s.use(ctx, cmp.Or(start.GetSandboxId(), attach.GetSandboxId()))
	if err != nil {
		return nil, nil, err
	}
	var proc *envdclient.Process
	follow, cancel := follow(ctx, seconds(start.GetTimeoutSec()))
	if attach != nil {
		proc, err = sb.Guest().Attach(follow, attach.GetPid())
	} else {
		proc, err = startCommand(follow, sb.Guest(), start)
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
	}
	if pty := start.GetPty(); pty != nil {
		cmd.PTY = sizeOf(pty)
	}
	return guest.Start(ctx, cmd)
}

func sizeOf(size *pb.TerminalSize) *envdclient.Size {
	return &envdclient.Size{Cols: int(size.GetCols()), Rows: int(size.GetRows())}
}

// relay sends what the command puts out, and its end.
func relay(stream *connect.BidiStream[pb.ExecStreamRequest, pb.ExecStreamResponse], proc *envdclient.Process) error {
	for {
		ev, err := proc.Next()
		if errors.Is(err, io.EOF) {
			exit := proc.Exit()
			return stream.Send(&pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Exit{
				Exit: &pb.ExecExit{ExitCode: int32(exit.Code), Status: exit.Status},
			}})
		}
		if err != nil {
			return err
		}
		if err := stream.Send(message(ev)); err != nil {
			return err
		}
	}
}

func message(ev envdclient.Event) *pb.ExecStreamResponse {
	switch {
	case ev.Stdout != nil:
		return &pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Stdout{Stdout: ev.Stdout}}
	case ev.Stderr != nil:
		return &pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Stderr{Stderr: ev.Stderr}}
	case ev.PTY != nil:
		return &pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Pty{Pty: ev.PTY}}
	default:
		return &pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Keepalive{Keepalive: true}}
	}
}

// inputs carries the caller's events to the command.
type inputs struct {
	proc   *envdclient.Process
	events chan *pb.ExecStreamRequest // unbuffered: one event is being received, one written
}

// receive reads the caller's events until there are no more. The end of them
// is not the end of the command's input, which is an event of its own.
func (in *inputs) receive(ctx context.Context, stream *connect.BidiStream[pb.ExecStreamRequest, pb.ExecStreamResponse]) {
	for {
		ev, err := stream.Receive()
		if err != nil {
			return // when the caller is gone ctx ends as well
		}
		select {
		case in.events <- ev:
		case <-ctx.Done():
			return
		}
	}
}

// write applies the events in order until ctx ends. An error is one that the
// caller must hear of; a command that does not read any more is none.
func (in *inputs) write(ctx context.Context) error {
	for {
		select {
		case ev := <-in.events:
			err := in.apply(ctx, ev)
			if err != nil && ctx.Err() == nil && !envdclient.InputClosed(err) {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (in *inputs) apply(ctx context.Context, ev *pb.ExecStreamRequest) error {
	switch e := ev.GetEvent().(type) {
	case *pb.ExecStreamRequest_Stdin:
		return in.proc.Send(ctx, e.Stdin)
	case *pb.ExecStreamRequest_StdinClose:
		return in.proc.CloseInput(ctx)
	case *pb.ExecStreamRequest_Resize:
		return in.proc.Resize(ctx, *sizeOf(e.Resize))
	case *pb.ExecStreamRequest_Signal:
		return in.proc.Signal(ctx, envdclient.Signal(e.Signal))
	default:
		return wrenn.Errorf(wrenn.Invalid, "after start or attach, messages are stdin, stdin_close, resize or signal")
	}
}
