package process

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"

	pb "wrenn.dev/proto/gen/envd/process"
)

const (
	// slowReaderLimit is how long a slow reader may keep another subscriber waiting before
	// it is cut off. A lone subscriber has no limit: its program waits.
	slowReaderLimit = 10 * time.Second

	// maxUnsent is how much output may wait for one subscriber before the program waits.
	maxUnsent = 64 << 10
	// window is how much output a session may leave unacknowledged before the
	// program waits. It covers what all hops between here and there hold.
	window = 1 << 20
	// replaySize is how much output of a process with sessions is kept for late
	// subscribers, acknowledged or not.
	replaySize = 256 << 10
)

// hub sends the output of one process to its subscribers, to all in one order.
//
// A publisher waits while a subscriber is too far behind, so a slow reader slows
// the program and memory is bounded. A subscriber without a session is behind by the
// output that it was not sent, and is not waited for when it has left. One with a session is
// behind by the output that it did not acknowledge, and the session stays for a while
// when it has left.
//
// Lock order: publishing, then mu.
type hub struct {
	publishing sync.Mutex    // held while a publisher waits
	wake       chan struct{} // size 1; a subscriber caught up, joined or left

	mu          sync.Mutex // guards the following, and the fields of subscribers and sessions
	out         output
	subscribers map[*subscriber]struct{}
	sessions    map[string]*session
	end         *pb.ProcessEvent // the last event, once it was published
	closing     bool             // publishers do not wait any more
	noReplay    bool             // nothing is kept for late subscribers
}

// subscriber is one stream that follows a process.
type subscriber struct {
	more    chan struct{} // size 1; more output, or the end
	cut     chan struct{} // closed when it has to end
	reason  error         // why it was cut; set before that
	next    uint64        // all before this position was sent
	busy    bool          // something is being sent
	session *session      // nil: it cannot be resumed
	exact   bool          // its events have positions
}

// newHub returns a hub without output, whose memory comes from a pool of newBlocks.
func newHub(blocks *sync.Pool) *hub {
	return &hub{
		wake: make(chan struct{}, 1), out: output{pool: blocks},
		subscribers: make(map[*subscriber]struct{}), sessions: make(map[string]*session),
	}
}

// subscribe returns a subscriber to all output from now on, at least to the last
// event. The caller must call follow or leave.
func (h *hub) subscribe() *subscriber {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.join(&subscriber{next: h.out.head})
}

// subscribeAt returns a subscriber from a position on, and how many bytes right
// before its first one were already dropped.
func (h *hub) subscribeAt(at uint64) (f *subscriber, lost uint64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at, lost, err = h.reach(at)
	if err != nil {
		return nil, 0, err
	}
	return h.join(&subscriber{next: at, exact: true}), lost, nil
}

// join adds f. The caller must hold mu.
func (h *hub) join(f *subscriber) *subscriber {
	f.more, f.cut = make(chan struct{}, 1), make(chan struct{})
	h.subscribers[f] = struct{}{}
	h.notify()
	return f
}

// reach returns the position nearest to at that is kept, and how many bytes before
// it were dropped. The caller must hold mu.
func (h *hub) reach(at uint64) (position, lost uint64, err error) {
	if at > h.out.head {
		return 0, 0, connect.NewError(connect.CodeOutOfRange, fmt.Errorf("offset %d: the process has put out %d bytes", at, h.out.head))
	}
	if at < h.out.tail {
		return h.out.tail, h.out.tail - at, nil
	}
	return at, 0, nil
}

// leave removes a subscriber, not its session. Twice is allowed.
func (h *hub) leave(f *subscriber) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.remove(f)
	h.trim()
}

// remove is leave for callers that hold mu.
func (h *hub) remove(f *subscriber) {
	if _, ok := h.subscribers[f]; !ok {
		return
	}
	delete(h.subscribers, f)
	if s := f.session; s != nil {
		s.stream = nil
		h.grace(s)
	}
	h.notify()
}

// publish sends p to all subscribers when none is too far behind. It copies p.
func (h *hub) publish(kind outputKind, p []byte) {
	h.publishing.Lock()
	defer h.publishing.Unlock()
	h.await()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.subscribers) == 0 && len(h.sessions) == 0 {
		h.out.skip(len(p)) // no subscriber gets it, and none can ask for it later
		return
	}
	h.out.append(kind, p)
	for f := range h.subscribers {
		f.notify()
	}
	h.trim()
}

// finish publishes the last event, without waiting.
func (h *hub) finish(ev *pb.ProcessEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.end = ev
	for f := range h.subscribers {
		f.notify()
	}
}

// hurry makes publish return without waiting from now on: subscribers that are
// too far behind are cut off, and sessions are dropped.
func (h *hub) hurry() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closing = true
	for _, s := range h.sessions {
		h.release(s)
	}
	h.notify()
}

// await returns when no subscriber is too far behind. From when another subscriber
// waits for a slow one, the slow one has slowReaderLimit left.
func (h *hub) await() {
	var expired <-chan time.Time
	for {
		waiting, behind, closing := h.count()
		switch {
		case behind == 0:
			return
		case closing:
			h.cutBehind(connect.NewError(connect.CodeUnavailable, errors.New("the agent is shutting down")))
			return
		case waiting == 0:
			expired = nil
		case expired == nil:
			expired = time.After(slowReaderLimit)
		}
		select {
		case <-h.wake:
		case <-expired:
			expired = nil
			h.cutBehind(connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("the output was not read for %v while others waited for it; connect again", slowReaderLimit)))
		}
	}
}

// count returns how many subscribers have all output, and how many are too far behind.
func (h *hub) count() (waiting, behind int, closing bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for f := range h.subscribers {
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
	return waiting, behind, h.closing
}

// behind reports whether the program waits for f. The caller must hold mu.
func (h *hub) behind(f *subscriber) bool {
	if f.session != nil {
		return h.lags(f.session)
	}
	return h.out.head-f.next >= maxUnsent
}

// cutBehind cuts off the subscribers that the program waits for.
func (h *hub) cutBehind(reason error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for f := range h.subscribers {
		if h.behind(f) {
			h.cutOff(f, reason)
		}
	}
	h.trim()
}

// cutOff removes a subscriber whose stream then ends with reason. The caller must hold mu.
func (h *hub) cutOff(f *subscriber, reason error) {
	f.reason = reason
	close(f.cut)
	if f.busy {
		h.out.pool = nil // its stream may still read what is dropped now
	}
	h.remove(f)
}

// trim drops output that is not needed any more. The caller must hold mu.
func (h *hub) trim() {
	needed := h.out.head
	if len(h.sessions) > 0 && !h.noReplay {
		needed -= min(needed, replaySize)
	}
	for f := range h.subscribers {
		needed = min(needed, f.next)
	}
	for _, s := range h.sessions {
		if s.holds {
			needed = min(needed, s.acked)
		}
	}
	h.out.drop(needed)
}

// notify makes a waiting publisher count again. One pending call is enough.
func (h *hub) notify() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (f *subscriber) notify() {
	select {
	case f.more <- struct{}{}:
	default:
	}
}

// follow sends the events of f until the last one, an error of send, or the
// end of ctx, and a keepalive after each silence of the given length. It leaves the hub.
func (h *hub) follow(ctx context.Context, f *subscriber, keepalive time.Duration, send func(*pb.ProcessEvent) error) error {
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

// over returns why the stream of f has to end, or nil.
func (f *subscriber) over(ctx context.Context) error {
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

// next returns the next event for f and how many bytes of output that is, nil
// when f has all.
func (h *hub) next(f *subscriber) (ev *pb.ProcessEvent, size int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f.next = max(f.next, h.out.tail) // output that f has not got is dropped only when f was cut off
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

// sent records that size bytes of output were sent to f.
func (h *hub) sent(f *subscriber, size int) {
	if size == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	f.busy = false
	f.next += uint64(size)
	h.trim()
	h.notify()
}

// endOf returns the RPC error of a call whose context ended.
func endOf(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return connect.NewError(connect.CodeDeadlineExceeded, errors.New("the call's timeout elapsed"))
	}
	return connect.NewError(connect.CodeCanceled, errors.New("the client went away"))
}
