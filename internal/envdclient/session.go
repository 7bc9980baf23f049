package envdclient

import (
	"context"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/wake"
	"wrenn.dev/proto/gen/envd/process"
)

const (
	// ackTimeout bounds one acknowledgement, ackPause is the pause after one that failed.
	ackTimeout = 10 * time.Second
	ackPause   = 100 * time.Millisecond
)

// sessionMessage returns the session for a request, nil for a stream without one.
func sessionMessage(s wrenn.ExecSession) *process.Session {
	if s.ID == "" {
		return nil
	}
	return &process.Session{Id: s.ID, HoldSec: uint32(s.Hold / time.Second)}
}

func sessionSelector(s wrenn.ExecSession) *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Session{Session: s.ID}}
}

// following is the client's end of a session. It sends acknowledgements in the
// background, one at a time, and always the latest.
type following struct {
	wrenn.ExecSession

	client *Client
	stop   context.CancelFunc
	acked  atomic.Uint64
	wake   wake.Chan     // acked has changed
	taken  atomic.Uint64 // bytes of input that the process has taken
}

func newFollowing(ctx context.Context, c *Client, s wrenn.ExecSession, taken uint64) *following {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	f := &following{ExecSession: s, client: c, stop: stop, wake: wake.New()}
	f.taken.Store(taken)
	go f.acknowledge(ctx)
	return f
}

// acknowledge sends acknowledgements until ctx ends.
func (f *following) acknowledge(ctx context.Context) {
	for {
		select {
		case <-f.wake:
		case <-ctx.Done():
			return
		}
		for f.tell(ctx, &process.AcknowledgeRequest{Session: f.ID, Offset: f.acked.Load()}) != nil {
			select { // it must try again: the command may be waiting for the acknowledgement
			case <-time.After(ackPause):
			case <-ctx.Done():
				return
			}
		}
	}
}

// tell makes one call. It returns only errors after which a retry may succeed.
func (f *following) tell(ctx context.Context, req *process.AcknowledgeRequest) error {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	_, err := f.client.process.Acknowledge(ctx, req)
	switch connect.CodeOf(err) {
	case connect.CodeNotFound, connect.CodeOutOfRange, connect.CodeInvalidArgument, connect.CodeUnimplemented:
		return nil // a retry would get the same answer
	}
	return err
}

// Resumable reports whether the stream has a session.
func (p *Process) Resumable() bool { return p.session != nil }

// Ack acknowledges all output before a position, which envd may then discard. It
// returns at once. A command waits when about a megabyte is not acknowledged.
func (p *Process) Ack(offset uint64) {
	if p.session == nil {
		return
	}
	p.session.acked.Store(offset)
	p.session.wake.Notify()
}

// Leave ends the session: envd keeps no output when the stream ends.
func (p *Process) Leave(ctx context.Context) error {
	if p.session == nil {
		return nil
	}
	return fromRPC("leave", p.session.tell(ctx, &process.AcknowledgeRequest{Session: p.session.ID, Leave: true}))
}
