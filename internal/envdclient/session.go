package envdclient

import (
	"context"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"wrenn/internal/wake"
	"wrenn/proto/gen/envd/process"
)

const (
	// ackTimeout bounds one acknowledgement, ackPause is what comes after one that failed.
	ackTimeout = 10 * time.Second
	ackPause   = 100 * time.Millisecond
)

// Session names a stream that can be resumed: when it is lost, output that
// was not acknowledged is kept for Hold, up to a size at which the command waits.
type Session struct {
	ID   string        // random: 16 to 64 of A-Z a-z 0-9 _ and -
	Hold time.Duration // in whole seconds; 0 is a minute
}

// message is nil for no session.
func (s *Session) message() *process.Session {
	if s == nil {
		return nil
	}
	return &process.Session{Id: s.ID, HoldSec: uint32(s.Hold / time.Second)}
}

func (s *Session) selector() *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Session{Session: s.ID}}
}

// following is this end of a session. Acknowledgements are sent in the
// background, one at a time; of those that come meanwhile the last one counts.
type following struct {
	*Session

	client *Client
	stop   context.CancelFunc
	acked  atomic.Uint64
	wake   wake.Chan     // acked has changed
	taken  atomic.Uint64 // of the input
}

func newFollowing(ctx context.Context, c *Client, s *Session, taken uint64) *following {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	f := &following{Session: s, client: c, stop: stop, wake: wake.New()}
	f.taken.Store(taken)
	go f.acknowledge(ctx)
	return f
}

// acknowledge sends what is to be acknowledged until ctx ends.
func (f *following) acknowledge(ctx context.Context) {
	for {
		select {
		case <-f.wake:
		case <-ctx.Done():
			return
		}
		for f.tell(ctx, &process.AcknowledgeRequest{Session: f.ID, Offset: f.acked.Load()}) != nil {
			select { // the command may wait for it
			case <-time.After(ackPause):
			case <-ctx.Done():
				return
			}
		}
	}
}

// tell makes one call. Its error is one that trying again may help.
func (f *following) tell(ctx context.Context, req *process.AcknowledgeRequest) error {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	_, err := f.client.process.Acknowledge(ctx, req)
	switch connect.CodeOf(err) {
	case connect.CodeNotFound, connect.CodeOutOfRange, connect.CodeInvalidArgument, connect.CodeUnimplemented:
		return nil // it would get the same answer
	}
	return err
}

// Resumable says whether the stream has a session.
func (p *Process) Resumable() bool { return p.session != nil }

// Ack says that the caller has all output before a position, so that envd may
// forget it. It returns at once. A command waits when about a megabyte is not acknowledged.
func (p *Process) Ack(offset uint64) {
	if p.session == nil {
		return
	}
	p.session.acked.Store(offset)
	p.session.wake.Notify()
}

// Leave ends the session: nothing is kept for it when the stream ends.
func (p *Process) Leave(ctx context.Context) error {
	if p.session == nil {
		return nil
	}
	return fromRPC("leave", p.session.tell(ctx, &process.AcknowledgeRequest{Session: p.session.ID, Leave: true}))
}
