package process

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"

	pb "wrenn/proto/gen/envd/process"
)

const (
	// patience is how long a follower may keep another one waiting before it is
	// cut off. A lone follower has all the time it wants: its program waits.
	patience = 10 * time.Second

	// ahead is how much a program may put out that one of its followers was not sent.
	ahead = 64 << 10
	// window is how much it may put out that a session has not acknowledged. It
	// covers what all hops between here and there hold.
	window = 1 << 20
	// history is how much stays there of a process with sessions, acknowledged or
	// not, for who comes later.
	history = 256 << 10
)

// hub hands the output of one process to its followers, to all in one order.
//
// A publisher waits while a follower is too far behind, so slow readers slow
// the program and memory stays flat. A follower without a session is behind by what
// it was not sent, and nobody waits for it when it is gone. One with a session is behind
// by what it did not acknowledge, and the session outlasts it for a while.
//
// Lock order: turn, then mu.
type hub struct {
	turn sync.Mutex    // held while a publisher waits
	wake chan struct{} // size 1; somebody came forward, came or left

	mu        sync.Mutex // guards the following, and the fields of followers and sessions
	out       output
	followers map[*follower]struct{}
	sessions  map[string]*session
	end       *pb.ProcessEvent // the last event, once it was published
	hasty     bool             // nobody is waited for any more
	brief     bool             // no history is kept
}

// follower is one stream that follows a process.
type follower struct {
	more    chan struct{} // size 1; there is something new
	cut     chan struct{} // closed when it has to end
	reason  error         // why it was cut; set before that
	next    uint64        // all before this position was sent
	busy    bool          // something is being sent
	session *session      // nil: it cannot be resumed
	exact   bool          // it is told positions
}

// newHub returns a hub without output, whose memory comes from a pool of newBlocks.
func newHub(blocks *sync.Pool) *hub {
	return &hub{
		wake: make(chan struct{}, 1), out: output{pool: blocks},
		followers: make(map[*follower]struct{}), sessions: make(map[string]*session),
	}
}

// subscribe returns a follower that gets all output from now on, at least the
// last event. The caller must follow or leave.
func (h *hub) subscribe() *follower {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.join(&follower{next: h.out.head})
}

// subscribeAt returns a follower from a position on, and how much of what came
// right before the place where it begins is gone.
func (h *hub) subscribeAt(at uint64) (f *follower, lost uint64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at, lost, err = h.reach(at)
	if err != nil {
		return nil, 0, err
	}
	return h.join(&follower{next: at, exact: true}), lost, nil
}

// join adds f; h.mu is held.
func (h *hub) join(f *follower) *follower {
	f.more, f.cut = make(chan struct{}, 1), make(chan struct{})
	h.followers[f] = struct{}{}
	h.rouse()
	return f
}

// reach is the nearest position to at that is there; h.mu is held.
func (h *hub) reach(at uint64) (position, lost uint64, err error) {
	if at > h.out.head {
		return 0, 0, connect.NewError(connect.CodeOutOfRange, fmt.Errorf("offset %d: the process has put out %d bytes", at, h.out.head))
	}
	if at < h.out.tail {
		return h.out.tail, h.out.tail - at, nil
	}
	return at, 0, nil
}

// leave ends a follower, not its session; twice is allowed.
func (h *hub) leave(f *follower) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.remove(f)
	h.trim()
}

// remove is leave; h.mu is held.
func (h *hub) remove(f *follower) {
	if _, ok := h.followers[f]; !ok {
		return
	}
	delete(h.followers, f)
	if s := f.session; s != nil {
		s.stream = nil
		h.grace(s)
	}
	h.rouse()
}

// publish hands p to all followers, once none is too far behind. It copies p.
func (h *hub) publish(kind outputKind, p []byte) {
	h.turn.Lock()
	defer h.turn.Unlock()
	h.await()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.followers) == 0 && len(h.sessions) == 0 {
		h.out.skip(len(p)) // nobody listens, nobody could ask for it
		return
	}
	h.out.append(kind, p)
	for f := range h.followers {
		f.rouse()
	}
	h.trim()
}

// finish publishes the last event, without waiting.
func (h *hub) finish(ev *pb.ProcessEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.end = ev
	for f := range h.followers {
		f.rouse()
	}
}

// hurry makes publish return without waiting, from now on: followers that are
// too far behind are cut off, and sessions forgotten.
func (h *hub) hurry() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hasty = true
	for _, s := range h.sessions {
		h.release(s)
	}
	h.rouse()
}

// await returns when nobody is too far behind. Once a follower waits for such
// a one, that has patience left.
func (h *hub) await() {
	var expired <-chan time.Time
	for {
		waiting, behind, hasty := h.count()
		switch {
		case behind == 0:
			return
		case hasty:
			h.cutBehind(connect.NewError(connect.CodeUnavailable, errors.New("the agent is shutting down")))
			return
		case waiting == 0:
			expired = nil
		case expired == nil:
			expired = time.After(patience)
		}
		select {
		case <-h.wake:
		case <-expired:
			expired = nil
			h.cutBehind(connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("the output was not read for %v while others waited for it; connect again", patience)))
		}
	}
}

// count says how many have all that there is, and how many are too far behind.
func (h *hub) count() (waiting, behind int, hasty bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for f := range h.followers {
		if h.behind(f) {
			behind++
		} else if f.next == h.out.head && !f.busy {
			waiting++
		}
	}
	for _, s := range h.sessions {
		if s.stream == nil && h.lags(s) {
			behind++
		}
	}
	return waiting, behind, h.hasty
}

// behind says whether the program waits for f; h.mu is held.
func (h *hub) behind(f *follower) bool {
	if f.session != nil {
		return h.lags(f.session)
	}
	return h.out.head-f.next >= ahead
}

// cutBehind ends the streams that the program waits for.
func (h *hub) cutBehind(reason error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for f := range h.followers {
		if h.behind(f) {
			h.cutOff(f, reason)
		}
	}
	h.trim()
}

// cutOff ends a stream; h.mu is held.
func (h *hub) cutOff(f *follower, reason error) {
	f.reason = reason
	close(f.cut)
	if f.busy {
		h.out.pool = nil // it may go on to send what is dropped now
	}
	h.remove(f)
}

// trim forgets output that nobody can ask for; h.mu is held.
func (h *hub) trim() {
	needed := h.out.head
	if len(h.sessions) > 0 && !h.brief {
		needed -= min(needed, history)
	}
	for f := range h.followers {
		needed = min(needed, f.next)
	}
	for _, s := range h.sessions {
		if s.holds {
			needed = min(needed, s.acked)
		}
	}
	h.out.drop(needed)
}

// rouse wakes the publisher to count again; one pending call is enough.
func (h *hub) rouse() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (f *follower) rouse() {
	select {
	case f.more <- struct{}{}:
	default:
	}
}

// follow sends the events of f until the last one, an error of send, or the
// end of ctx, and a keepalive after each silence of the given length. It leaves the hub.
func (h *hub) follow(ctx context.Context, f *follower, keepalive time.Duration, send func(*pb.ProcessEvent) error) error {
	defer h.leave(f)
	silence := time.NewTimer(keepalive)
	defer silence.Stop()
	for {
		ev, size := h.next(f)
		if ev == nil {
			select {
			case <-f.more:
				continue
			case <-silence.C:
				ev = &pb.ProcessEvent{Event: &pb.ProcessEvent_Keepalive{Keepalive: &pb.ProcessEvent_KeepAlive{}}}
			case <-f.cut:
			case <-ctx.Done():
			}
		}
		if err := f.over(ctx); err != nil {
			return err
		}
		if err := send(ev); err != nil {
			return err
		}
		if ev.GetEnd() != nil {
			return nil
		}
		h.sent(f, size)
		silence.Reset(keepalive)
	}
}

// over is why f has to end, or nil.
func (f *follower) over(ctx context.Context) error {
	select {
	case <-f.cut:
		return f.reason
	default:
	}
	if ctx.Err() != nil {
		return endOf(ctx)
	}
	return nil
}

// next returns what f is to be sent, and how much output that is; nil when it has all.
func (h *hub) next(f *follower) (ev *pb.ProcessEvent, size int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f.next = max(f.next, h.out.tail) // nothing is dropped before it but for who was cut off
	kind, p := h.out.read(f.next, pipeChunk)
	if len(p) == 0 {
		return h.end, 0
	}
	f.busy = true
	data := kind.event(p)
	if f.exact {
		data.Offset = f.next
	}
	return &pb.ProcessEvent{Event: &pb.ProcessEvent_Data{Data: data}}, len(p)
}

// sent says that size bytes of output are on their way.
func (h *hub) sent(f *follower, size int) {
	if size == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	f.busy = false
	f.next += uint64(size)
	h.trim()
	h.rouse()
}

// endOf is the RPC error of a call whose context ended.
func endOf(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return connect.NewError(connect.CodeDeadlineExceeded, errors.New("the call's timeout elapsed"))
	}
	return connect.NewError(connect.CodeCanceled, errors.New("the client went away"))
}
