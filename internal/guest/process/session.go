package process

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	pb "wrenn/proto/gen/envd/process"
)

const (
	defaultHold = time.Minute
	maxHold     = 10 * time.Minute
	// maxSessions bounds those of one process.
	maxSessions = 16
)

var errSessionForgotten = connect.NewError(connect.CodeNotFound, errors.New("there is no such session: it was never there, or its process ended a while ago"))

// sessionID is what a session may be named.
var sessionID = regexp.MustCompile(`^[A-Za-z0-9_-]{16,64}$`)

// session is a stream that can be resumed: what stays while its follower is
// gone. It lives as long as its process is remembered; that it holds output ends
// sooner. The hub's mu guards its fields.
type session struct {
	id     string
	hold   time.Duration // how long it holds output without a stream
	acked  uint64        // the other end has all before this position
	holds  bool          // what comes after that is kept
	stream *follower     // nil: nobody follows
	timer  *time.Timer   // ends holds; nil while there is a stream
	seen   time.Time     // when it last had a stream

	input atomic.Uint64 // how much of its input was taken; written by who has the input's turn
}

// sessionOf checks what a request says. It returns nil for a request without session.
func sessionOf(msg *pb.Session) (*session, error) {
	if msg == nil {
		return nil, nil
	}
	if !sessionID.MatchString(msg.GetId()) {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("a session's id has 16 to 64 of A-Z a-z 0-9 _ and -"))
	}
	hold := cmp.Or(time.Duration(msg.GetHoldSec())*time.Second, defaultHold)
	if hold > maxHold {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("hold_sec: at most %d", maxHold/time.Second))
	}
	return &session{id: msg.GetId(), hold: hold}, nil
}

// open adds a session that begins at a position, and returns its follower. One
// that is there is resumed.
func (h *hub) open(s *session, at *uint64) (f *follower, lost uint64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if known := h.sessions[s.id]; known != nil {
		known.hold = s.hold
		return h.takeOver(known, at)
	}
	start := h.out.head
	if at != nil {
		if start, lost, err = h.reach(*at); err != nil {
			return nil, 0, err
		}
	}
	if err := h.makeRoom(); err != nil {
		return nil, 0, err
	}
	s.acked, s.holds = start, true
	h.sessions[s.id] = s
	return h.connect(s, start), lost, nil
}

// resume returns a new follower of a session that is there.
func (h *hub) resume(id string, at *uint64) (f *follower, lost uint64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[id]
	if s == nil {
		return nil, 0, errSessionForgotten
	}
	return h.takeOver(s, at)
}

// takeOver ends the stream that a session may have, for one that begins at a
// position, or else where the session acknowledged; h.mu is held.
func (h *hub) takeOver(s *session, at *uint64) (*follower, uint64, error) {
	want := s.acked
	if at != nil {
		want = *at
	}
	start, lost, err := h.reach(want)
	if err != nil {
		return nil, 0, err
	}
	if s.stream != nil {
		h.cutOff(s.stream, connect.NewError(connect.CodeAborted, errors.New("the session was resumed by another stream")))
	}
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	s.acked, s.holds = start, true // who asks for this has what comes before
	return h.connect(s, start), lost, nil
}

// connect gives a session a stream; h.mu is held.
func (h *hub) connect(s *session, at uint64) *follower {
	f := h.join(&follower{next: at, session: s, exact: true})
	s.stream = f
	return f
}

// makeRoom forgets the session that was gone for longest when there are as
// many as there may be; h.mu is held.
func (h *hub) makeRoom() error {
	if len(h.sessions) < maxSessions {
		return nil
	}
	var oldest *session
	for _, s := range h.sessions {
		if s.stream == nil && !s.holds && (oldest == nil || s.seen.Before(oldest.seen)) {
			oldest = s
		}
	}
	if oldest == nil {
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("the process has %d sessions, which is the most", maxSessions))
	}
	delete(h.sessions, oldest.id)
	return nil
}

// acknowledge lets output before a position be forgotten, and with leave all
// that is kept for the session. What is said twice, or late, is no error.
func (h *hub) acknowledge(id string, at uint64, leave bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[id]
	if s == nil {
		return errSessionForgotten
	}
	if at > h.out.head {
		return connect.NewError(connect.CodeOutOfRange, fmt.Errorf("offset %d: the process has put out %d bytes", at, h.out.head))
	}
	s.acked = max(s.acked, at)
	if leave {
		h.release(s)
	}
	h.trim()
	h.rouse()
	return nil
}

// release keeps nothing for a session any more; h.mu is held. A stream that it
// has goes on, and is waited for as one without session.
func (h *hub) release(s *session) {
	s.holds = false
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

// grace begins the time that a session without stream has; h.mu is held.
func (h *hub) grace(s *session) {
	s.seen = time.Now()
	if !s.holds || h.hasty {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(s.hold, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if s.timer != timer {
			return // it came back at the last moment
		}
		h.release(s)
		h.trim()
		h.rouse()
	})
	s.timer = timer
}

// find returns the session of that name, or nil.
func (h *hub) find(id string) *session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[id]
}

// need is how long an ended process must be remembered for its sessions:
// without limit while one has a stream, which may break.
func (h *hub) need() (least time.Duration, streams bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		if s.holds {
			least, streams = max(least, s.hold), streams || s.stream != nil
		}
	}
	return least, streams
}

// discard forgets output that no stream is about to send, though a session may
// ask for it, and keeps no more. It returns how much memory that gave.
func (h *hub) discard() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.out.held()
	h.brief = true
	for _, s := range h.sessions {
		if s.stream == nil {
			h.release(s)
		}
	}
	h.trim()
	return before - h.out.held()
}

// held is the memory that the output takes, about.
func (h *hub) held() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.out.held()
}

// lags says whether the program waits for a session; h.mu is held.
func (h *hub) lags(s *session) bool {
	if s.holds {
		return h.out.head-s.acked >= window
	}
	return s.stream != nil && h.out.head-s.stream.next >= ahead
}
