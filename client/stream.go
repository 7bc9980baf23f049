package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"time"
)

const (
	// outputWindow is how much output may wait for Receive, in bytes. The server
	// sends no more than a megabyte that is not acknowledged.
	outputWindow = 2 << 20
	// ackEvery is how much output is acknowledged at once.
	ackEvery = 128 << 10
	// inputWindow is how much input may be on its way, in bytes. The server promises to take more.
	inputWindow = 256 << 10

	defaultHold = time.Minute
)

// Size is that of a terminal, in characters.
type Size struct {
	Cols int `json:"cols"`
	Rows int `json:"rows"`
}

// StartOptions say how a command is connected.
type StartOptions struct {
	Stdin bool  // input will come, by Write; without it the input is empty
	PTY   *Size // a terminal of this size instead of pipes; it has input
	// Hold is for how long the stream outlives its connection, in whole seconds
	// and at most 10 minutes: so long the output is kept, and connecting again is tried. 0 is a minute.
	Hold time.Duration
}

// Signal is one that a command can be sent.
type Signal string

// The signals.
const (
	SIGTERM Signal = "SIGTERM"
	SIGKILL Signal = "SIGKILL"
)

// Event is something that a command did: exactly one of the fields is set.
type Event struct {
	Stdout, Stderr, PTY []byte
	Exit                *Exit
	// Lost is how many bytes of output are missing here: the connection was
	// away for longer than StartOptions.Hold, and the command did not wait any more.
	Lost uint64
}

// size is the number of bytes of output.
func (e Event) size() int { return len(e.Stdout) + len(e.Stderr) + len(e.PTY) }

// Exit is how a command ended.
type Exit struct {
	Code   int    // -1 when a signal ended it
	Status string // the same in words: "exit status 1", "signal: killed"
}

// Stream follows a command. Receive is for one goroutine, all else for any.
//
// A stream that loses its connection, because the server or the sandbox's host
// restarts or the network is away, connects again and goes on where it was: no byte of output or
// input is lost or doubled. Only a signal that was just sent may be lost, or arrive twice.
//
// The command outlives the stream: who closes or loses it finds the command
// again by Attach. Somebody must receive: a stream that nobody reads slows the command.
type Stream struct {
	c       *Client
	path    string
	session string
	hold    time.Duration

	detach func() bool        // the stream from the context that it was started with
	stop   context.CancelFunc // of connecting again
	ended  chan struct{}      // closed when nothing of it goes on

	writing sync.Mutex // keeps the pieces of one Write together

	mu      sync.Mutex // guards what follows
	changed *sync.Cond // any of it
	link    *link      // nil while there is no connection
	pid     int
	err     error // why the stream is over; nil: it is not, or the command ended
	over    bool  // it is because this side wants it: what has come until then is dropped
	exited  bool  // the exit has come
	sending bool  // something is on its way, of which it is not noted that it was sent

	events   []Event // that Receive has not returned
	waiting  int     // bytes of output in them
	received uint64  // the position after all output that has come
	acked    uint64

	input     []byte // that the server did not confirm
	confirmed uint64 // the position where that begins
	closed    bool   // it ends there
	size      *Size  // what the terminal is to be told
	told      told   // what was sent by any connection
	signals   []*signalFrame
}

// told is what was sent. By a new connection some of it is sent again.
type told struct {
	input  uint64 // the position after the input
	closed bool   // and its end
	size   *Size
}

type signalFrame struct {
	signal Signal
	sent   bool
}

// Start runs a command and returns when it runs: an error says that it does
// not. The end of ctx closes the stream, as Close does, which the caller does
// when it is done.
func (c *Client) Start(ctx context.Context, id string, cmd Command, opts StartOptions) (*Stream, error) {
	if len(cmd.Stdin) > 0 {
		return nil, &Error{Code: InvalidRequest, Message: "Command.Stdin is of Exec: set StartOptions.Stdin and write to the stream"}
	}
	command, err := cmd.body()
	if err != nil {
		return nil, err
	}
	s := c.newStream(id, opts.Hold)
	return s.open(ctx, struct {
		Type string `json:"type"`
		commandBody
		sessionBody

		Stdin bool  `json:"stdin,omitempty"`
		PTY   *Size `json:"pty,omitempty"`
	}{"start", command, s.body(), opts.Stdin, opts.PTY})
}

// Attach follows a command that runs: its output from now on. See Start.
func (c *Client) Attach(ctx context.Context, id string, pid int) (*Stream, error) {
	s := c.newStream(id, 0)
	return s.open(ctx, attachBody{Type: "attach", PID: pid, sessionBody: s.body()})
}

// AttachAt follows a command that runs: its output from a position on, 0 being
// its start. What is not kept any more is the first event, as Lost. See Start.
func (c *Client) AttachAt(ctx context.Context, id string, pid int, offset uint64) (*Stream, error) {
	s := c.newStream(id, 0)
	return s.open(ctx, attachBody{Type: "attach", PID: pid, sessionBody: s.body(), Offset: &offset})
}

// sessionBody makes a stream one that can be resumed.
type sessionBody struct {
	Session string `json:"session"`
	HoldSec int64  `json:"hold_sec"`
}

type attachBody struct {
	Type string `json:"type"`
	PID  int    `json:"pid,omitempty"`
	sessionBody

	Offset *uint64 `json:"offset,omitempty"`
}

func (c *Client) newStream(id string, hold time.Duration) *Stream {
	if hold <= 0 {
		hold = defaultHold
	}
	s := &Stream{c: c, path: sandboxPath(id, "/exec/stream"), session: rand.Text(), hold: hold, ended: make(chan struct{})}
	s.changed = sync.NewCond(&s.mu)
	return s
}

func (s *Stream) body() sessionBody {
	return sessionBody{Session: s.session, HoldSec: seconds(s.hold)}
}

// open connects for the first time and begins to run.
func (s *Stream) open(ctx context.Context, first any) (*Stream, error) {
	l, begin, err := s.begin(ctx, first)
	if err != nil {
		return nil, err
	}
	s.pid, s.received, s.acked = begin.PID, begin.position(), begin.position()
	s.confirmed, s.told.input = begin.Input, begin.Input
	if begin.Lost > 0 {
		s.events = append(s.events, Event{Lost: begin.Lost})
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.detach = context.AfterFunc(ctx, func() { s.end(context.Cause(ctx)) })
	go s.run(life, l)
	return s, nil
}

// PID is the command's process in the sandbox, for Attach.
func (s *Stream) PID() int { return s.pid }

// Receive waits for the next event. After the exit it returns io.EOF. An
// *Error says that the stream broke for good; the command goes on.
func (s *Stream) Receive() (Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.err == nil && len(s.events) == 0 && !s.exited {
		s.changed.Wait()
	}
	switch {
	case len(s.events) > 0 && !s.over:
		event := s.events[0]
		s.events[0] = Event{}
		s.events = s.events[1:]
		s.waiting -= event.size()
		s.changed.Broadcast()
		return event, nil
	case s.err != nil:
		return Event{}, s.err
	}
	return Event{}, io.EOF
}

// Events is Receive as a loop, which ends after the exit or an error.
func (s *Stream) Events() iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			event, err := s.Receive()
			if errors.Is(err, io.EOF) {
				return
			}
			if !yield(event, err) || err != nil {
				return
			}
		}
	}
}

// Copy writes what the command prints to stdout, or to stderr what comes from
// there, until the command ends. A terminal has only one output. Output that is lost is an error.
func (s *Stream) Copy(stdout, stderr io.Writer) (Exit, error) {
	for event, err := range s.Events() {
		switch {
		case err != nil:
			return Exit{}, err
		case event.Exit != nil:
			return *event.Exit, nil
		case event.Lost > 0:
			return Exit{}, &Error{Code: Unavailable, Message: fmt.Sprintf(
				"%d bytes of the output are lost: the connection was away for longer than they were kept; the command goes on", event.Lost)}
		}
		for _, piece := range []struct {
			to    io.Writer
			bytes []byte
		}{{stdout, event.Stdout}, {stdout, event.PTY}, {stderr, event.Stderr}} {
			if len(piece.bytes) == 0 {
				continue
			}
			if _, err := piece.to.Write(piece.bytes); err != nil {
				return Exit{}, fmt.Errorf("pass on the output: %w", err)
			}
		}
	}
	return Exit{}, io.ErrUnexpectedEOF // Copy was called again
}

// Write sends input and returns when it is on its way. It waits when the
// command does not read, and while there is no connection.
func (s *Stream) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for n < len(p) {
		if err := s.until(func() bool { return len(s.input) < inputWindow }); err != nil {
			return n, err
		}
		piece := p[n:min(len(p), n+inputWindow-len(s.input))]
		s.input = append(s.input, piece...)
		n += len(piece)
		s.changed.Broadcast()
	}
	end := s.confirmed + uint64(len(s.input))
	return n, s.until(func() bool { return s.told.input >= end })
}

// CloseStdin ends the input.
func (s *Stream) CloseStdin() error {
	s.writing.Lock() // after what is being written
	defer s.writing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.changed.Broadcast()
	return s.until(func() bool { return s.told.closed })
}

// Resize tells the terminal its new size.
func (s *Stream) Resize(size Size) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size = &size
	s.changed.Broadcast()
	return s.until(func() bool { return s.told.size == s.size || s.size != &size })
}

// Signal sends a signal to the command and what it started.
func (s *Stream) Signal(sig Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	frame := &signalFrame{signal: sig}
	s.signals = append(s.signals, frame)
	s.changed.Broadcast()
	return s.until(func() bool { return frame.sent })
}

// until waits until done, which is asked with s.mu held. An error says that
// it never will be.
func (s *Stream) until(done func() bool) error {
	for !done() {
		switch {
		case s.sending: // perhaps this
		case s.err != nil:
			return s.err
		case s.exited:
			return &Error{Code: InvalidState, Message: "the command has ended"}
		}
		s.changed.Wait()
	}
	return nil
}

// Close ends the stream, not the command, which is not slowed any more. Twice is allowed.
func (s *Stream) Close() error {
	s.detach()
	s.end(&Error{Code: Unavailable, Message: "the stream was closed; the command goes on"})
	<-s.ended
	return nil
}
