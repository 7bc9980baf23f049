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

// patience is how long a subscriber may keep another one waiting before it is
// cut off. A lone subscriber has all the time it wants: its program waits.
const patience = 10 * time.Second

// hub hands the events of one process to its subscribers, to all in one order.
// It buffers nothing: a publisher waits until each subscriber has sent the
// event on, so slow readers slow the program and memory stays flat.
//
// Lock order: turn, then mu.
type hub struct {
	turn sync.Mutex    // held while one event is on its way
	wake chan struct{} // size 1; a subscriber became idle, came or left

	mu    sync.Mutex // guards the following and the subscribers' fields
	subs  map[*subscriber]struct{}
	end   *pb.ProcessEvent // the last event, once it was published
	hasty bool             // nobody is waited for any more
}

// subscriber is one stream that follows a process.
type subscriber struct {
	events chan *pb.ProcessEvent // size 1; empty unless busy
	cut    chan struct{}         // closed when it kept others waiting for too long
	reason error                 // why it was cut; set before that
	busy   bool
}

func newHub() *hub {
	return &hub{wake: make(chan struct{}, 1), subs: make(map[*subscriber]struct{})}
}

// subscribe returns a subscriber that gets all events from now on, at least
// the last one. The caller must follow or leave.
func (h *hub) subscribe() *subscriber {
	s := &subscriber{events: make(chan *pb.ProcessEvent, 1), cut: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.end != nil {
		s.events <- h.end
		return s
	}
	h.subs[s] = struct{}{}
	h.rouse()
	return s
}

// leave ends a subscription; twice is allowed.
func (h *hub) leave(s *subscriber) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.subs, s)
	h.rouse()
}

// publish hands ev to all subscribers and returns when each has sent it on,
// has left or was cut off. It reports whether nobody can refer to ev any more,
// so that its memory may be used again.
func (h *hub) publish(ev *pb.ProcessEvent) (reusable bool) {
	h.turn.Lock()
	defer h.turn.Unlock()
	h.offer(ev)
	return h.await()
}

// hurry makes publish return without waiting, from now on: subscribers that
// are busy are cut off.
func (h *hub) hurry() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hasty = true
	h.rouse()
}

// finish publishes the last event, without waiting.
func (h *hub) finish(ev *pb.ProcessEvent) {
	h.turn.Lock()
	defer h.turn.Unlock()
	h.mu.Lock()
	h.end = ev
	h.mu.Unlock()
	h.offer(ev)
}

func (h *hub) offer(ev *pb.ProcessEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		s.busy = true
		s.events <- ev // never blocks: it took the last one, or publish would not have returned
	}
}

// await returns when no subscriber is busy. Once one of them waits for the
// others, these have patience left.
func (h *hub) await() (reusable bool) {
	var expired <-chan time.Time
	for {
		idle, busy, hasty := h.count()
		switch {
		case busy == 0:
			return true
		case hasty:
			h.cutBusy(connect.NewError(connect.CodeUnavailable, errors.New("the agent is shutting down")))
			return false
		case idle == 0:
			expired = nil
		case expired == nil:
			expired = time.After(patience)
		}
		select {
		case <-h.wake:
		case <-expired:
			h.cutBusy(connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("the output was not read for %v while others waited for it; connect again", patience)))
			return false
		}
	}
}

func (h *hub) count() (idle, busy int, hasty bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		if s.busy {
			busy++
		} else {
			idle++
		}
	}
	return idle, busy, h.hasty
}

func (h *hub) cutBusy(reason error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		if s.busy {
			delete(h.subs, s)
			s.reason = reason
			close(s.cut)
		}
	}
}

// sent says that s has no more use for the event it took.
func (h *hub) sent(s *subscriber) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.busy = false
	h.rouse()
}

// rouse wakes the publisher to count again; one pending call is enough.
func (h *hub) rouse() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// follow sends the events of s until the last one, an error of send, or the
// end of ctx, and a keepalive after each silence of the given length. It leaves the hub.
func (h *hub) follow(ctx context.Context, s *subscriber, keepalive time.Duration, send func(*pb.ProcessEvent) error) error {
	defer h.leave(s)
	silence := time.NewTimer(keepalive)
	defer silence.Stop()
	for {
		select {
		case ev := <-s.events:
			if err := send(ev); err != nil {
				return err
			}
			if ev.GetEnd() != nil {
				return nil
			}
			h.sent(s)
		case <-s.cut:
			return s.reason
		case <-silence.C:
			if err := send(&pb.ProcessEvent{Event: &pb.ProcessEvent_Keepalive{Keepalive: &pb.ProcessEvent_KeepAlive{}}}); err != nil {
				return err
			}
		case <-ctx.Done():
			return endOf(ctx)
		}
		silence.Reset(keepalive)
	}
}

// endOf is the RPC error of a call whose context ended.
func endOf(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return connect.NewError(connect.CodeDeadlineExceeded, errors.New("the call's timeout elapsed"))
	}
	return connect.NewError(connect.CodeCanceled, errors.New("the client went away"))
}
