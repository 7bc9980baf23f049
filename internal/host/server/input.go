package server

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"wrenn"
	"wrenn/internal/envdclient"
	"wrenn/internal/wake"
	pb "wrenn/proto/gen/hostagent/v1"
)

const (
	// maxQueue is how much input may wait for the command, in bytes, before
	// what comes behind it waits, too. A caller that has no more than that on its way
	// always gets through with signals and acknowledgements.
	maxQueue = 1 << 20
	// inputPiece is what the command is given at once.
	inputPiece = 64 << 10
	// leaveTimeout bounds telling the guest that a session is over.
	leaveTimeout = 5 * time.Second
)

// inputs carries the caller's events to the command.
type inputs struct {
	proc     *envdclient.Process
	queue    inputQueue
	taken    atomic.Uint64 // of a session's input, what the command took or will never take
	progress wake.Chan     // taken has changed
}

func newInputs(proc *envdclient.Process) *inputs {
	in := &inputs{proc: proc, queue: newInputQueue(), progress: wake.New()}
	in.taken.Store(proc.Taken())
	return in
}

// receive takes the caller's events until there are no more. The end of them
// is not the end of the command's input, which is an event of its own. An error is
// one that the caller must hear of.
func (in *inputs) receive(ctx context.Context, stream *execStream) error {
	for {
		ev, err := stream.Receive()
		if err != nil {
			return nil //nolint:nilerr // when the caller is gone ctx ends as well
		}
		err = in.apply(ctx, ev)
		if err != nil && ctx.Err() == nil && !envdclient.InputClosed(err) {
			return err
		}
	}
}

// apply does what an event says, or queues it.
func (in *inputs) apply(ctx context.Context, ev *pb.ExecStreamRequest) error {
	switch e := ev.GetEvent().(type) {
	case *pb.ExecStreamRequest_Stdin:
		return in.queue.put(ctx, e.Stdin)
	case *pb.ExecStreamRequest_StdinClose:
		in.queue.finish()
		return nil
	case *pb.ExecStreamRequest_Resize:
		return in.proc.Resize(ctx, *sizeOf(e.Resize))
	case *pb.ExecStreamRequest_Signal:
		return in.proc.Signal(ctx, envdclient.Signal(e.Signal))
	case *pb.ExecStreamRequest_Ack:
		in.proc.Ack(e.Ack)
		return nil
	case *pb.ExecStreamRequest_Leave:
		return in.leave(ctx)
	default:
		return wrenn.Errorf(wrenn.Invalid, "after start or attach, messages are stdin, stdin_close, resize, signal, ack or leave")
	}
}

// leave ends the session, though its caller may hang up at once, and then the stream.
func (in *inputs) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	_ = in.proc.Leave(ctx) // what is kept for it is kept for a time only
	return errLeft
}

// write gives the command its input until ctx ends. An error is one that the
// caller must hear of; a command that does not read any more is none.
func (in *inputs) write(ctx context.Context) error {
	deaf := false
	for {
		piece, end, err := in.queue.take(ctx)
		switch {
		case err != nil:
			return nil //nolint:nilerr // the stream is over
		case end:
			err = in.proc.CloseInput(ctx)
		case !deaf:
			err = in.proc.Send(ctx, piece)
			deaf = err != nil
		}
		if err != nil && (ctx.Err() != nil || !envdclient.InputClosed(err)) {
			return err
		}
		in.note(len(piece))
	}
}

// note tells the caller of input that it need not keep.
func (in *inputs) note(n int) {
	in.taken.Add(uint64(n))
	if !in.proc.Resumable() || n == 0 {
		return
	}
	in.progress.Notify()
}

// inputQueue is input on its way from one goroutine to another.
type inputQueue struct {
	more, room wake.Chan // there is more to take, or room again

	mu   sync.Mutex // guards what follows
	data []byte
	end  int // after how much of data the input ends; -1: it does not
}

func newInputQueue() inputQueue {
	return inputQueue{more: wake.New(), room: wake.New(), end: -1}
}

// put adds a copy of p, once there is less than maxQueue.
func (q *inputQueue) put(ctx context.Context, p []byte) error {
	for !q.add(p) {
		select {
		case <-q.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (q *inputQueue) add(p []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.data) >= maxQueue {
		return false
	}
	q.data = append(q.data, p...)
	q.more.Notify()
	return true
}

// finish adds the end of the input. More may come, for a terminal, which has no end.
func (q *inputQueue) finish() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.end = len(q.data)
	q.more.Notify()
}

// take waits for the next piece, or the end.
func (q *inputQueue) take(ctx context.Context) (piece []byte, end bool, err error) {
	for {
		if piece, end := q.next(); end || len(piece) > 0 {
			return piece, end, nil
		}
		select {
		case <-q.more:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}

func (q *inputQueue) next() (piece []byte, end bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.end == 0 {
		q.end = -1
		return nil, true
	}
	n := min(len(q.data), inputPiece)
	if q.end > 0 {
		n = min(n, q.end)
		q.end -= n
	}
	piece = q.data[:n:n]
	if q.data = q.data[n:]; len(q.data) == 0 {
		q.data = nil
	}
	q.room.Notify()
	return piece, false
}
