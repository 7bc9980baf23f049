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
	// ackEvery is how many bytes of output are acknowledged at once.
	ackEvery = 128 << 10
	// inputWindow is how much unconfirmed input there may be, in bytes. The server's limit is higher.
	inputWindow = 256 << 10

	defaultHold = time.Minute
)

// Size is the size of a terminal, in characters.
type Size struct {
	Cols int `json:"cols"`
	Rows int `json:"rows"`
}

// StartOptions are how a command is connected.
type StartOptions struct {
	Stdin bool  // the command gets the input of Write; without it its input is empty
	PTY   *Size // a terminal of this size instead of pipes; it always has input
	// Hold is how long the stream outlives a lost connection, in whole seconds
	// and at most 10 minutes. During that time the server keeps the output and
	// the client tries to connect again. 0 means one minute.
	Hold time.Duration
}

// Signal is a signal that can be sent to a command.
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
	// Lost is how many bytes of output are missing here: the connection was lost
	// for longer than StartOptions.Hold, after which the command no longer waits.
	Lost uint64
}

// size returns the number of bytes of output.
func (e Event) size() int { return len(e.Stdout) + len(e.Stderr) + len(e.PTY) }

// Exit is how a command ended.
type Exit struct {
	Code   int    // -1 when a signal ended the command
	Status string // Code in words: "exit status 1", "signal: killed"
	Reason EndReason
}

// EndReason is why a command ended; "" when the server does not tell.
type EndReason string

// The reasons.
const (
	EndExited      EndReason = "exited"        // by itself
	EndSignaled    EndReason = "signaled"      // by a signal of a client's
	EndTimeout     EndReason = "timeout"       // its Timeout passed, and it was killed
	EndOutOfMemory EndReason = "out_of_memory" // the kernel killed it, or what it started
)

// Stream is a connection to a command. One goroutine at a time may receive
// (Receive, Events, Copy); the other methods are safe for concurrent use.
//
// A stream that loses its connection, because the server or the sandbox's host
// restarts or the network fails, connects again and continues where it was: no
// byte of output or input is lost or doubled. Only a signal that was just sent
// may be lost, or arrive twice.
//
// The command outlives the stream: use Attach to follow it again. The caller must
// keep receiving: unread output eventually blocks the command.
type Stream struct {
	c       *Client
	path    string
	session string
	hold    time.Duration

	detach func() bool        // detaches the stream from the context that it was started with
	stop   context.CancelFunc // stops connecting again
	ended  chan struct{}      // closed when the stream's goroutines have ended

	writing sync.Mutex // keeps the pieces of one Write together

	mu      sync.Mutex // guards the fields below
	changed *sync.Cond // signaled when any of them changes
	link    *link      // nil while there is no connection
	pid     int
	err     error // why the stream is over; nil while it is open, and after the command ended
	over    bool  // the stream was ended by the caller: pending events are dropped
	exited  bool  // the command's exit was received
	sending bool  // a message is being written and is not yet recorded as sent

	events   []Event // not yet returned by Receive
	waiting  int     // bytes of output in events
	received uint64  // position after all output received
	acked    uint64

	input     []byte    // not yet confirmed by the server
	confirmed uint64    // position where input begins
	closed    bool      // no input follows
	size      *Size     // the terminal's desired size
	sent      sentState // what was sent by any connection
	signals   []*signalFrame
}

// sentState is what was sent. A new connection sends some of it again.
type sentState struct {
	input  uint64 // position after the input
	closed bool   // the end of the input
	size   *Size
}

type signalFrame struct {
	signal Signal
	sent   bool
}

// Start starts a command and returns when it runs; it fails when the command
// cannot be started. The caller closes the stream. Canceling ctx also closes it.
func (c *Client) Start(ctx context.Context, id string, cmd Command, opts StartOptions) (*Stream, error) {
	if len(cmd.Stdin) > 0 {
		return nil, &Error{Code: InvalidRequest, Message: "Command.Stdin is only for Exec: set StartOptions.Stdin and write to the stream"}
	}
	command, err := cmd.body()
	if err != nil {
		return nil, err
	}
	s := newStream(c, id, opts.Hold)
	return s.open(ctx, struct {
		Type string `json:"type"`
		commandBody
		sessionBody

		Stdin bool  `json:"stdin,omitempty"`
		PTY   *Size `json:"pty,omitempty"`
	}{"start", command, s.body(), opts.Stdin, opts.PTY})
}

// Attach follows a running command: its output from now on. See Start.
func (c *Client) Attach(ctx context.Context, id string, pid int) (*Stream, error) {
	s := newStream(c, id, 0)
	return s.open(ctx, attachBody{Type: "attach", PID: pid, sessionBody: s.body()})
}

// AttachAt follows a running command: its output from a position on, where 0 is
// the start. When the server no longer has all of it, the first event's Lost is
// the number of missing bytes. See Start.
func (c *Client) AttachAt(ctx context.Context, id string, pid int, offset uint64) (*Stream, error) {
	s := newStream(c, id, 0)
	return s.open(ctx, attachBody{Type: "attach", PID: pid, sessionBody: s.body(), Offset: &offset})
}

// sessionBody is what makes a stream resumable.
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

func newStream(c *Client, id string, hold time.Duration) *Stream {
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

// open connects for the first time and starts the stream's goroutines.
func (s *Stream) open(ctx context.Context, first any) (*Stream, error) {
	l, begin, err := s.begin(ctx, first)
	if err != nil {
		return nil, err
	}
	s.pid, s.received, s.acked = begin.PID, begin.position(), begin.position()
	s.confirmed, s.sent.input = begin.Input, begin.Input
	if begin.Lost > 0 {
		s.events = append(s.events, Event{Lost: begin.Lost})
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.detach = context.AfterFunc(ctx, func() { s.end(context.Cause(ctx)) })
	go s.run(life, l)
	return s, nil
}

// PID returns the command's process ID in the sandbox, for Attach.
func (s *Stream) PID() int { return s.pid }

// Receive waits for the next event. After the exit it returns io.EOF. An *Error
// means that the stream cannot be resumed; the command keeps running.
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

// Events calls Receive in a loop, which ends after the exit or an error.
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

// Copy writes the command's output to stdout and stderr until the command ends.
// A terminal's output goes to stdout. Lost output is an error.
func (s *Stream) Copy(stdout, stderr io.Writer) (Exit, error) {
	for event, err := range s.Events() {
		switch {
		case err != nil:
			return Exit{}, err
		case event.Exit != nil:
			return *event.Exit, nil
		case event.Lost > 0:
			return Exit{}, &Error{Code: Unavailable, Message: fmt.Sprintf(
				"%d bytes of the output are lost: the connection was lost for longer than the server keeps output; the command keeps running", event.Lost)}
		}
		for _, piece := range []struct {
			to    io.Writer
			bytes []byte
		}{{stdout, event.Stdout}, {stdout, event.PTY}, {stderr, event.Stderr}} {
			if len(piece.bytes) == 0 {
				continue
			}
			if _, err := piece.to.Write(piece.bytes); err != nil {
				return Exit{}, fmt.Errorf("write the command's output: %w", err)
			}
		}
	}
	return Exit{}, io.ErrUnexpectedEOF // Copy was called again
}

// Write sends input and returns when it was sent. It blocks while the command
// does not read, and while there is no connection.
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
	return n, s.until(func() bool { return s.sent.input >= end })
}

// CloseStdin ends the input.
func (s *Stream) CloseStdin() error {
	s.writing.Lock() // after a Write in progress
	defer s.writing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.changed.Broadcast()
	return s.until(func() bool { return s.sent.closed })
}

// Resize sets the terminal's size.
func (s *Stream) Resize(size Size) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size = &size
	s.changed.Broadcast()
	return s.until(func() bool { return s.sent.size == s.size || s.size != &size })
}

// Signal sends a signal to the command and the processes that it started.
func (s *Stream) Signal(sig Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	frame := &signalFrame{signal: sig}
	s.signals = append(s.signals, frame)
	s.changed.Broadcast()
	return s.until(func() bool { return frame.sent })
}

// until waits until done returns true. It calls done with s.mu held. It fails
// when done can no longer become true.
func (s *Stream) until(done func() bool) error {
	for !done() {
		switch {
		case s.sending: // perhaps the message that the caller waits for
		case s.err != nil:
			return s.err
		case s.exited:
			return &Error{Code: InvalidState, Message: "the command has ended"}
		}
		s.changed.Wait()
	}
	return nil
}

// Close ends the stream. The command keeps running and no longer waits for a
// reader. Twice is allowed.
func (s *Stream) Close() error {
	s.detach()
	s.end(&Error{Code: Unavailable, Message: "the stream was closed; the command keeps running"})
	<-s.ended
	return nil
}
