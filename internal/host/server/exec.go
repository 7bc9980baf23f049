package server

import (
	"cmp"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/budget"
	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/hostwire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

const (
	// maxOutput bounds each of the two outputs of an Exec, in bytes.
	maxOutput = 8 << 20
	// outputCost is what a kept byte of output takes until it is sent: the buffer, which
	// doubles when it is full, and the encoded answer.
	outputCost = 3
)

func (s *server) Exec(ctx context.Context, msg *pb.ExecRequest) (*pb.ExecResponse, error) {
	id, cmd, err := hostwire.ParseExecRequest(msg)
	if err != nil {
		return nil, err
	}
	sb, ctx, release, err := s.use(ctx, string(id))
	if err != nil {
		return nil, err
	}
	defer release()
	limit := cmp.Or(cmd.Timeout, wrenn.DefaultExecTimeout)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	memory := budget.Of(ctx)
	memory.SetOwner(cmp.Or(msg.GetOwner(), string(id)))
	res, err := sb.Guest().ExecKeeping(ctx, cmd, envdclient.Outputs{Most: maxOutput, Reserve: func(ctx context.Context, n int) error {
		return memory.Grow(ctx, int64(n)*outputCost)
	}})
	if res == nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = wrenn.Errorf(wrenn.DeadlineExceeded, "the command could not be started in time (%s): give it a longer timeout, or stream it", limit)
		}
		return nil, err
	}
	return hostwire.ExecResult(*res), nil // after a timeout, too: with the output until then
}

func (s *server) SignalProcess(ctx context.Context, req *pb.SignalProcessRequest) (*pb.SignalProcessResponse, error) {
	signal, err := hostwire.ParseSignal(req.GetSignal())
	if err != nil {
		return nil, err
	}
	sb, ctx, release, err := s.use(ctx, req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	defer release()
	return &pb.SignalProcessResponse{}, sb.Guest().Signal(ctx, int(req.GetPid()), signal)
}

var errRestart = wrenn.Errorf(wrenn.Unavailable, "the host's agent restarts; the command runs on: attach to its pid again in a moment")

// execStream is the caller's side of a command's stream.
type execStream = connect.BidiStream[pb.ExecStreamRequest, pb.ExecStreamResponse]

// Commands serves the streams of commands.
type Commands struct {
	// Use returns the guest of a sandbox, which stays until release is called,
	// and a context whose log lines name the sandbox.
	Use func(ctx context.Context, id wrenn.SandboxID) (guest *envdclient.Client, _ context.Context, release func(), err error)
	// Closing is closed when streams must end.
	Closing <-chan struct{}
}

func (s *server) ExecStream(ctx context.Context, stream *execStream) error {
	c := &Commands{Closing: s.closing, Use: func(ctx context.Context, id wrenn.SandboxID) (*envdclient.Client, context.Context, func(), error) {
		sb, ctx, release, err := s.use(ctx, string(id))
		if err != nil {
			return nil, ctx, nil, err
		}
		return sb.Guest(), ctx, release, nil
	}}
	return c.ExecStream(ctx, stream)
}

var errLeft = errors.New("the caller ended its session")

// ExecStream sends a command's output to the caller, and the caller's input to
// the command. One event of output is in flight, so a slow reader slows down the
// command. Input that the command does not read is queued up to a size, so that
// signals and the like do not wait behind it.
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
	if err := stream.Send(hostwire.ExecOutput(started(proc))); err != nil {
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
	// request's body is closed; nothing needs to wait for it.
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

// started returns the first event of a stream.
func started(proc *envdclient.Process) wrenn.ExecOutput {
	return wrenn.ExecOutput{Started: &wrenn.ExecStarted{
		PID: proc.PID(), Offset: proc.Offset(), Lost: proc.Lost(), Taken: proc.Taken(),
	}}
}

// onClosing calls f when closing is closed, unless stop was called before.
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

// open starts the command of the first message, or attaches to it. ctx ends the
// stream and not the command: its deadline is not passed on.
func (c *Commands) open(ctx context.Context, first *pb.ExecStreamRequest) (_ *envdclient.Process, release func(), _ error) {
	if msg := first.GetStart(); msg != nil {
		id, start, err := hostwire.ParseExecStart(msg)
		if err != nil {
			return nil, nil, err
		}
		return c.follow(ctx, id, start.Timeout, func(ctx context.Context, guest *envdclient.Client) (*envdclient.Process, error) {
			return guest.Start(ctx, start)
		})
	}
	msg := first.GetAttach()
	if msg == nil {
		return nil, nil, wrenn.Errorf(wrenn.Invalid, "the first message must be start or attach")
	}
	id, to, err := hostwire.ParseExecAttach(msg)
	if err != nil {
		return nil, nil, err
	}
	return c.follow(ctx, id, 0, func(ctx context.Context, guest *envdclient.Client) (*envdclient.Process, error) {
		return guest.Attach(ctx, to)
	})
}

// follow opens the stream of a command in the sandbox, which is in use until
// release is called.
func (c *Commands) follow(ctx context.Context, id wrenn.SandboxID, timeout time.Duration,
	open func(context.Context, *envdclient.Client) (*envdclient.Process, error),
) (_ *envdclient.Process, release func(), _ error) {
	guest, ctx, unuse, err := c.Use(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := withTimeoutOnly(ctx, timeout)
	proc, err := open(ctx, guest)
	if err != nil {
		cancel()
		unuse()
		return nil, nil, err
	}
	return proc, func() { cancel(); unuse() }, nil
}

// withTimeoutOnly returns a context that ends with ctx and after timeout, 0 for
// never; it does not have the deadline of ctx.
func withTimeoutOnly(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	if timeout == 0 {
		return out, func() { stop(); cancel() }
	}
	timed, end := context.WithTimeout(out, timeout)
	return timed, func() { stop(); end(); cancel() }
}

// output is a stream's next event, or its error.
type output struct {
	wrenn.ExecOutput

	err error
}

// outputs receives the command's output, one event at a time: the next one when
// the last one was used, which done reports.
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

// relay sends the command's output, how much input it took, and its end.
func relay(ctx context.Context, stream *execStream, proc *envdclient.Process, in *inputs) error {
	events, done := outputs(ctx, proc)
	for {
		var err error
		select {
		case ev := <-events:
			if errors.Is(ev.err, io.EOF) {
				return stream.Send(hostwire.ExecOutput(wrenn.ExecOutput{Exit: new(proc.Exit())}))
			}
			if ev.err != nil {
				return ev.err
			}
			err = stream.Send(hostwire.ExecOutput(ev.ExecOutput))
			select {
			case done <- struct{}{}:
			case <-ctx.Done():
			}
		case <-in.progress:
			err = stream.Send(hostwire.ExecOutput(wrenn.ExecOutput{Taken: new(in.taken.Load())}))
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}
