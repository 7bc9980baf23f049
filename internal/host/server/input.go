package server

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/hostwire"
	"wrenn.dev/internal/wake"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

const (
	// maxQueue is how much input may wait for the command, in bytes, before the
	// caller's further messages wait behind it. A caller with less input in flight
	// can always send signals and acknowledgments.
	maxQueue = 1 << 20
	// inputPiece is the most input that is sent to the command at once, in bytes.
	inputPiece = 64 << 10
	// leaveTimeout bounds the call that ends a session.
	leaveTimeout = 5 * time.Second
)

// inputs sends the caller's events to the command.
type inputs struct {
	proc     *envdclient.Process
	queue    inputQueue
	taken    atomic.Uint64 // how much of the session's input the command took, or will never take
	progress wake.Chan     // taken has changed
}

func newInputs(proc *envdclient.Process) *inputs {
	in := &inputs{proc: proc, queue: newInputQueue(), progress: wake.New()}
	in.taken.Store(proc.Taken())
	return in
}

// receive carries out the caller's events until there are no more. Their end is
// not the end of the command's input, which is a separate event. The error is for
// the caller.
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

// apply carries out an event of the caller, or queues it.
func (in *inputs) apply(ctx context.Context, msg *pb.ExecStreamRequest) error {
	ev, err := hostwire.ParseExecInput(msg)
	switch {
	case err != nil:
		return err
	case ev.CloseStdin:
		in.queue.finish()
		return nil
	case ev.Resize != nil:
		return in.proc.Resize(ctx, *ev.Resize)
	case ev.Signal != "":
		return in.proc.Signal(ctx, ev.Signal)
	case ev.Ack != nil:
		in.proc.Ack(*ev.Ack)
		return nil
	case ev.Leave:
		return in.leave(ctx)
	}
	return in.queue.put(ctx, ev.Stdin)
}

// leave ends the session and the stream, even if its caller hangs up at once.
func (in *inputs) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	_ = in.proc.Leave(ctx) // otherwise the session ends when its hold time does
	return errLeft
}

// write sends the command its input until ctx ends. The error is for the caller;
// it is no error if the command does not read any more.
func (in *inputs) write(ctx context.Context) error {
	closed := false // the command does not read any more
	for {
		piece, end, err := in.queue.receive(ctx)
		switch {
		case err != nil:
			return nil //nolint:nilerr // the stream is over
		case end:
			err = in.proc.CloseInput(ctx)
		case !closed:
			err = in.proc.Send(ctx, piece)
			closed = err != nil
		}
		if err != nil && (ctx.Err() != nil || !envdclient.InputClosed(err)) {
			return err
		}
		in.report(len(piece))
	}
}

// report tells the caller that it need not keep n further bytes of input.
func (in *inputs) report(n int) {
	in.taken.Add(uint64(n))
	if !in.proc.Resumable() || n == 0 {
		return
	}
	in.progress.Notify()
}

// inputQueue passes input from one goroutine to another.
type inputQueue struct {
	more, room wake.Chan // notified when data was added, or removed

	mu   sync.Mutex // guards what follows
	data []byte
	end  int // the position in data at which the input ends; -1 if it does not
}

func newInputQueue() inputQueue {
	return inputQueue{more: wake.New(), room: wake.New(), end: -1}
}

// put adds a copy of p, when the queue holds less than maxQueue.
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

// finish adds the end of the input. A terminal has no end: more may come.
func (q *inputQueue) finish() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.end = len(q.data)
	q.more.Notify()
}

// receive waits for the next piece, or the end.
func (q *inputQueue) receive(ctx context.Context) (piece []byte, end bool, err error) {
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
