package process

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	pb "wrenn.dev/proto/gen/envd/process"
)

const (
	defaultHold = time.Minute
	maxHold     = 10 * time.Minute
	// maxSessions bounds the sessions of one process.
	maxSessions = 16
)

var errSessionForgotten = connect.NewError(connect.CodeNotFound, errors.New("no such session: it never existed, or its process ended a while ago"))

// sessionID matches the id of a session.
var sessionID = regexp.MustCompile(`^[A-Za-z0-9_-]{16,64}$`)

// session is a stream that can be resumed. It exists as long as its process is
// remembered, and holds output for a shorter time. The hub's mu guards its fields.
type session struct {
	id     string
	hold   time.Duration // how long it holds output without a stream
	acked  uint64        // the client has all output before this position
	holds  bool          // output after that is kept
	stream *subscriber   // nil while it has none
	timer  *time.Timer   // ends holds; nil while it has a stream
	seen   time.Time     // when it last had a stream

	input atomic.Uint64 // how much of its input was taken; written by the holder of the input's lock
}

// sessionOf returns the session that a request asks for, nil for none.
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

// open adds a session that begins at a position and returns its subscriber. A
// session that already exists is resumed.
func (h *hub) open(s *session, at *uint64) (f *subscriber, lost uint64, err error) {
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

// resume returns a new subscriber of an existing session.
func (h *hub) resume(id string, at *uint64) (f *subscriber, lost uint64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[id]
	if s == nil {
		return nil, 0, errSessionForgotten
	}
	return h.takeOver(s, at)
}

// takeOver replaces the stream of a session by one that begins at a position, or
// at what the session acknowledged when at is nil. The caller must hold mu.
func (h *hub) takeOver(s *session, at *uint64) (*subscriber, uint64, error) {
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
	s.acked, s.holds = start, true // the client has the output before it
	return h.connect(s, start), lost, nil
}

// connect gives a session a stream. The caller must hold mu.
func (h *hub) connect(s *session, at uint64) *subscriber {
	f := h.join(&subscriber{next: at, session: s, exact: true})
	s.stream = f
	return f
}

// makeRoom removes the session that had no stream for longest when there are
// maxSessions of them. The caller must hold mu.
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

// acknowledge lets output before a position be dropped, and with leave all that
// is kept for the session. A position that was acknowledged before is no error.
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
	h.notify()
	return nil
}

// release stops keeping output for a session. Its stream continues, and is
// waited for like one without a session. The caller must hold mu.
func (h *hub) release(s *session) {
	s.holds = false
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

// grace starts the time for which a session without a stream holds output. The
// caller must hold mu.
func (h *hub) grace(s *session) {
	s.seen = time.Now()
	if !s.holds || h.closing {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(s.hold, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if s.timer != timer {
			return // it was resumed at the last moment
		}
		h.release(s)
		h.trim()
		h.notify()
	})
	s.timer = timer
}

// find returns the session with an id, or nil.
func (h *hub) find(id string) *session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[id]
}

// need returns how long an ended process must be remembered for its sessions.
// While one has a stream, which may break, there is no limit: streams is true.
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

// discard drops output that no stream is about to send, though a session may ask
// for it, and keeps no more. It returns how many bytes of memory that freed.
func (h *hub) discard() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.out.held()
	h.noReplay = true
	for _, s := range h.sessions {
		if s.stream == nil {
			h.release(s)
		}
	}
	h.trim()
	return before - h.out.held()
}

// held returns about how many bytes of memory the output takes.
func (h *hub) held() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.out.held()
}

// lags reports whether the program waits for a session. The caller must hold mu.
func (h *hub) lags(s *session) bool {
	if s.holds {
		return h.out.head-s.acked >= window
	}
	return s.stream != nil && h.out.head-s.stream.next >= maxUnsent
}
