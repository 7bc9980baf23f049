package hostclient

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math"
	"sync"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/budget"
	"wrenn.dev/internal/hostwire"
	"wrenn.dev/internal/wire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// maxFrame is the most input in one message, in bytes, and the smallest buffer
// of a file that is reused.
const maxFrame = 64 << 10

// MaxAnswerMemory is the most that an answer with the outputs of Exec, and the request
// for it, take of a budget, in bytes.
const MaxAnswerMemory = 72 << 20

// Exec runs a command to its end, or until its timeout, on behalf of owner. What the
// outputs take is reserved of ctx's budget, see budget.With.
func (c *Client) Exec(ctx context.Context, id wrenn.SandboxID, owner wrenn.TeamID, cmd wrenn.ExecCommand) (*wrenn.ExecResult, error) {
	begin := time.Now()
	limit := cmp.Or(cmd.Timeout, wrenn.DefaultExecTimeout) + c.deadlines.ExecGrace
	res, err := call(budget.Whole(ctx), c, limit, c.streams.Exec, hostwire.ExecRequest(id, owner, cmd))
	if err != nil {
		return nil, err
	}
	result := hostwire.ParseExecResult(res)
	result.Duration = time.Since(begin)
	return &result, nil
}

// ExecStream is the stream of a running command. One goroutine may receive while
// others send.
type ExecStream struct {
	peer   string
	rpc    *connect.BidiStreamForClientSimple[pb.ExecStreamRequest, pb.ExecStreamResponse]
	cancel context.CancelFunc
	first  *wrenn.ExecOutput // received by open
	exited bool

	sending sync.Mutex // held while a message is sent
}

// StartExec starts a command and returns when it runs. The caller closes the
// stream. The end of ctx ends the stream, too; the command continues.
func (c *Client) StartExec(ctx context.Context, id wrenn.SandboxID, start wrenn.ExecStart) (*ExecStream, error) {
	return c.open(ctx, hostwire.ExecStart(id, start))
}

// AttachExec follows a running command. The caller closes the stream.
func (c *Client) AttachExec(ctx context.Context, id wrenn.SandboxID, to wrenn.ExecAttach) (*ExecStream, error) {
	if to.PID < 0 || int64(to.PID) > math.MaxUint32 || to.PID == 0 && to.Session.ID == "" {
		return nil, wrenn.Errorf(wrenn.Invalid, "%d is not a process id", to.PID)
	}
	return c.open(ctx, hostwire.ExecAttach(id, to))
}

// open sends the first message and waits for the first answer, so that a fault
// of the request is an error of open and not of the stream.
func (c *Client) open(ctx context.Context, req *pb.ExecStreamRequest) (*ExecStream, error) {
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

func (s *ExecStream) begin(ctx context.Context, c *Client, req *pb.ExecStreamRequest) error {
	rpc, err := c.streams.ExecStream(c.meant(ctx))
	if err != nil {
		return wire.FromConnect(s.peer, err)
	}
	s.rpc = rpc
	// Once the answer has begun, net/http ignores the context while it waits for
	// more of the request: neither Receive nor the host would notice its end.
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

// Receive returns the next event, and io.EOF after Exit. Any other error means
// that the stream broke: the command may still run.
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
		if out, ok := hostwire.ParseExecOutput(msg); ok {
			s.exited = out.Exit != nil
			return out, nil
		}
	}
}

// SendStdin returns when p is on its way. It waits while the command does not read.
func (s *ExecStream) SendStdin(p []byte) error {
	s.sending.Lock() // the pieces of one call stay together
	defer s.sending.Unlock()
	for len(p) > 0 {
		n := min(len(p), maxFrame)
		if err := s.sendLocked(wrenn.ExecInput{Stdin: p[:n]}); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// CloseStdin ends the command's input.
func (s *ExecStream) CloseStdin() error { return s.send(wrenn.ExecInput{CloseStdin: true}) }

// Resize changes the size of the terminal.
func (s *ExecStream) Resize(size wrenn.PTYSize) error { return s.send(wrenn.ExecInput{Resize: &size}) }

// Signal signals the command's process group. Invalid unless name is one of
// wrenn.Signal.
func (s *ExecStream) Signal(name string) error {
	return s.send(wrenn.ExecInput{Signal: wrenn.Signal(name)})
}

// Ack tells the host that all output before offset has arrived at its reader and
// need not be kept for the session.
func (s *ExecStream) Ack(offset uint64) error { return s.send(wrenn.ExecInput{Ack: &offset}) }

// Leave ends the session: nothing is kept for it, and the stream ends.
func (s *ExecStream) Leave() error { return s.send(wrenn.ExecInput{Leave: true}) }

func (s *ExecStream) send(in wrenn.ExecInput) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.sendLocked(in)
}

// sendLocked sends a message. The caller must hold sending.
func (s *ExecStream) sendLocked(in wrenn.ExecInput) error {
	msg, err := hostwire.ExecInput(in)
	if err != nil {
		return err
	}
	err = s.rpc.Send(msg)
	if errors.Is(err, io.EOF) {
		return wrenn.Errorf(wrenn.FailedPrecondition, "the command or its stream has ended")
	}
	return wire.FromConnect(s.peer, err)
}

// Close ends the stream, not the command. Twice is allowed. Other goroutines may
// receive and send at the same time: their calls end with an error.
func (s *ExecStream) Close() error {
	s.cancel()
	return nil
}
