package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

const (
	protocolText   = "wrenn.exec.v1"
	protocolBinary = "wrenn.exec.v1.binary"

	// The first byte of a binary message names its stream.
	tagStdin, tagStdout, tagStderr, tagPTY = 0, 1, 2, 3

	maxInput   = 64 << 10 // bytes in one frame; the server takes frames of 1 MiB, base64 included
	maxMessage = 16 << 20 // bytes of a message from the server

	// silence is how long a connection may be without any message, even a ping,
	// of which the server sends one every 30 seconds.
	silence = 2 * time.Minute
	// startFor is how long a start is retried when its response was lost. attempt
	// bounds one try to connect again; retryFirst and retryMost are the shortest
	// and the longest pause between tries. farewell bounds sending the final
	// "leave" message.
	startFor   = 15 * time.Second
	attempt    = 30 * time.Second
	retryFirst = 50 * time.Millisecond
	retryMost  = 3 * time.Second
	farewell   = time.Second
)

// link is one connection of a stream. The stream's mu guards all but the first three fields.
type link struct {
	conn   *websocket.Conn
	binary bool        // input and output are binary messages
	heard  *time.Timer // cuts a connection that is silent for too long

	sentState // by this connection

	dead    bool
	leaving bool // the "leave" message was sent
}

// frame is any text frame of the server.
type frame struct {
	Type     string  `json:"type"`
	PID      int     `json:"pid"`
	Offset   *uint64 `json:"offset"`
	Lost     uint64  `json:"lost"`
	Input    uint64  `json:"input"`
	Data     string  `json:"data"`
	Encoding string  `json:"encoding"`
	ExitCode int     `json:"exit_code"`
	Reason   string  `json:"reason"`
	Status   string  `json:"status"`
	Code     Code    `json:"code"`
}

func (f *frame) position() uint64 {
	if f.Offset == nil {
		return 0
	}
	return *f.Offset
}

// begin connects, sends the first frame and waits for the response. When the
// connection breaks after the frame was sent, begin sends it again: the server
// knows the session and does not start the command twice.
func (s *Stream) begin(ctx context.Context, first any) (*link, *frame, error) {
	l, err := s.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	for tries := newRetry(startFor); ; {
		var begin *frame
		if err == nil {
			if begin, err = s.introduce(ctx, l, first); err == nil {
				return l, begin, nil
			}
		}
		if !passing(err) || !tries.wait(ctx, err) {
			return nil, nil, err
		}
		l, err = s.dial(ctx)
	}
}

func (s *Stream) dial(ctx context.Context) (*link, error) {
	header := map[string][]string{}
	s.c.sign(header)
	l := &link{}
	conn, resp, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(s.c.address(s.path, nil), "http"), &websocket.DialOptions{
		HTTPClient: s.c.http, HTTPHeader: header, Subprotocols: []string{protocolBinary, protocolText},
		OnPingReceived: func(context.Context, []byte) bool { l.heard.Reset(silence); return true },
	})
	if err != nil {
		if resp != nil && ctx.Err() == nil {
			defer resp.Body.Close()
			return nil, problem(resp)
		}
		return nil, s.c.broken(ctx, err)
	}
	conn.SetReadLimit(maxMessage)
	l.conn, l.binary = conn, conn.Subprotocol() == protocolBinary
	l.heard = time.AfterFunc(silence, func() { _ = conn.CloseNow() })
	return l, nil
}

// introduce sends the first frame and waits for the response, which has the
// process ID. When it fails, it closes the connection.
func (s *Stream) introduce(ctx context.Context, l *link, first any) (_ *frame, err error) {
	stop := context.AfterFunc(ctx, func() { _ = l.conn.CloseNow() }) // broken then returns the cause of ctx's end
	defer func() {
		stop()
		if err != nil {
			l.close()
		}
	}()
	text, err := json.Marshal(first)
	if err != nil {
		return nil, &Error{Code: InvalidRequest, Message: "the frame cannot be written as JSON", Err: err}
	}
	if err := l.conn.Write(context.Background(), websocket.MessageText, text); err != nil {
		return nil, s.c.broken(ctx, err)
	}
	for {
		f, _, err := l.read()
		switch {
		case err != nil:
			return nil, s.c.broken(ctx, err)
		case f == nil: // output before the start, which the server does not send
		case f.Type == "error":
			return nil, &Error{Code: f.Code, Message: f.Data}
		case f.Type == "start":
			l.input = f.Input
			return f, nil
		}
	}
}

// close closes the connection; twice is allowed.
func (l *link) close() {
	l.heard.Stop()
	_ = l.conn.CloseNow() // it may be closed
}

// read returns the next message: a text frame, or the output in a binary message.
func (l *link) read() (*frame, Event, error) {
	kind, text, err := l.conn.Read(context.Background())
	if err != nil {
		return nil, Event{}, err
	}
	l.heard.Reset(silence)
	if kind == websocket.MessageBinary {
		return nil, binaryEvent(text), nil
	}
	f := &frame{}
	if err := json.Unmarshal(text, f); err != nil {
		return nil, Event{}, &Error{Code: Internal, Message: "the server sent a frame that is not JSON", Err: err}
	}
	return f, Event{}, nil
}

func binaryEvent(message []byte) Event {
	if len(message) < 2 {
		return Event{}
	}
	switch data := message[1:]; message[0] {
	case tagStdout:
		return Event{Stdout: data}
	case tagStderr:
		return Event{Stderr: data}
	case tagPTY:
		return Event{PTY: data}
	}
	return Event{}
}

// textEvent returns the output in a text frame; the event is empty when the frame has none.
func textEvent(f *frame) (Event, error) {
	data, err := decode(f.Data, f.Encoding)
	switch f.Type {
	case "stdout":
		return Event{Stdout: data}, err
	case "stderr":
		return Event{Stderr: data}, err
	case "pty":
		return Event{PTY: data}, err
	}
	return Event{}, nil
}

// run serves the stream, one connection after the other, until its end.
func (s *Stream) run(ctx context.Context, l *link) {
	defer close(s.ended)
	defer s.stop()
	tries := newRetry(s.hold)
	for {
		began, before := time.Now(), s.progress()
		err := s.serve(l)
		if s.done(err) {
			return
		}
		if s.progress() > before || time.Since(began) > retryMost {
			tries = newRetry(s.hold)
		} else if !tries.wait(ctx, err) { // a server that accepts connections and drops them at once counts as unreachable
			s.fail(err)
			return
		}
		next, err := s.reconnect(ctx, tries)
		if err != nil {
			s.fail(err)
			return
		}
		l = next
	}
}

// progress grows with every byte of output received and of input confirmed.
func (s *Stream) progress() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received + s.confirmed
}

// done reports whether the stream is over. An err that is not passing ends it.
func (s *Stream) done(err error) bool {
	if err != nil && !passing(err) {
		s.fail(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exited || s.err != nil
}

// passing reports whether a retry may help.
func passing(err error) bool {
	code := CodeOf(err)
	return code == Unavailable || code == RateLimited
}

// fail ends the stream. The output that was received can still be read.
func (s *Stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && !s.exited {
		s.err = err
	}
	s.changed.Broadcast()
}

// end ends the stream at the caller's request.
func (s *Stream) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	if s.err == nil && !s.exited {
		s.err = err
	}
	s.stop()
	s.limitFarewell()
	s.changed.Broadcast()
}

// limitFarewell gives a stream that is over a short time to send its "leave"
// message, then closes the connection. The caller must hold s.mu.
func (s *Stream) limitFarewell() {
	if l := s.link; l != nil && s.over {
		time.AfterFunc(farewell, func() { _ = l.conn.CloseNow() })
	}
}

// serve uses a connection until it breaks, the command ends or the stream is over.
func (s *Stream) serve(l *link) error {
	s.mu.Lock()
	s.link = l
	s.limitFarewell()
	s.changed.Broadcast()
	s.mu.Unlock()
	var sender sync.WaitGroup
	sender.Go(func() { s.send(l) })
	err := s.receive(l)
	s.mu.Lock()
	l.dead, s.link = true, nil
	s.changed.Broadcast()
	s.mu.Unlock()
	l.close()
	sender.Wait()
	return err
}

// receive handles the server's messages until the command's exit, for which it returns nil.
func (s *Stream) receive(l *link) error {
	for {
		f, event, err := l.read()
		if err == nil && f != nil {
			event, err = textEvent(f)
		}
		if e, ok := errors.AsType[*Error](err); ok {
			return e
		}
		if err != nil {
			return s.c.broken(context.Background(), fmt.Errorf("the stream broke, the command keeps running: %w", err))
		}
		switch {
		case event.size() > 0:
			l.heard.Stop() // push may wait for a slow reader, which is not the server's silence
			err = s.push(f, event)
			l.heard.Reset(silence)
		case f == nil:
		case f.Type == "input":
			err = s.confirm(f.position())
		case f.Type == "exit":
			s.exit(&Exit{Code: f.ExitCode, Status: f.Status, Reason: EndReason(f.Reason)})
			return nil
		case f.Type == "error":
			err = &Error{Code: f.Code, Message: f.Data}
		}
		if err != nil {
			return err
		}
	}
}

// push adds output for Receive, and waits while outputWindow is full.
func (s *Stream) push(f *frame, event Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f != nil && f.Offset != nil && *f.Offset != s.received {
		return &Error{Code: Internal, Message: fmt.Sprintf("the server sent output at position %d, not %d", *f.Offset, s.received)}
	}
	for s.waiting >= outputWindow && !s.over {
		s.changed.Wait()
	}
	s.events = append(s.events, event)
	s.waiting += event.size()
	s.received += uint64(event.size())
	s.changed.Broadcast()
	return nil
}

func (s *Stream) exit(exit *Exit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exited = true
	s.events = append(s.events, Event{Exit: exit})
	s.changed.Broadcast()
}

// confirm drops input that the server has confirmed.
func (s *Stream) confirm(offset uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if offset <= s.confirmed {
		return nil
	}
	n := offset - s.confirmed
	if n > uint64(len(s.input)) {
		return &Error{Code: Internal, Message: "the server confirmed more input than was sent"}
	}
	s.input, s.confirmed = s.input[n:], offset
	s.changed.Broadcast()
	return nil
}

// send sends messages until the connection is dead or the stream is over.
func (s *Stream) send(l *link) {
	for {
		m := s.wait(l)
		if m == nil {
			return
		}
		kind := websocket.MessageText
		if m.binary {
			kind = websocket.MessageBinary
		}
		err := l.conn.Write(context.Background(), kind, m.bytes)
		s.mu.Lock()
		s.sending = false
		if err == nil {
			m.sent()
		}
		s.changed.Broadcast()
		s.mu.Unlock()
		if err != nil {
			_ = l.conn.CloseNow() // ends receive
			return
		}
	}
}

// message is a message to send. sent records that it was sent; its caller must hold s.mu.
type message struct {
	binary bool
	bytes  []byte
	sent   func()
}

// wait returns the next message, or nil when no more will follow.
func (s *Stream) wait(l *link) *message {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if l.dead || l.leaving || s.exited {
			return nil
		}
		if m := s.next(l); m != nil {
			s.sending = true
			return m
		}
		s.changed.Wait()
	}
}

// next returns the message to send now, or nil. The caller must hold s.mu.
func (s *Stream) next(l *link) *message {
	switch {
	case s.err != nil:
		return text(map[string]string{"type": "leave"}, func() { l.leaving = true })
	case len(s.signals) > 0:
		f := s.signals[0]
		return text(map[string]string{"type": "signal", "signal": string(f.signal)}, func() {
			f.sent = true
			s.signals = s.signals[1:]
		})
	case s.size != nil && l.size != s.size:
		size := s.size
		return text(struct {
			Type string `json:"type"`
			Size
		}{"resize", *size}, func() { l.size, s.sent.size = size, size })
	}
	if used := s.received - uint64(s.waiting); used >= s.acked+ackEvery {
		return text(map[string]any{"type": "ack", "offset": used}, func() { s.acked = max(s.acked, used) })
	}
	l.input = max(l.input, s.confirmed)
	begin := l.input - s.confirmed
	switch {
	case begin < uint64(len(s.input)):
		return s.inputMessage(l, s.input[begin:min(uint64(len(s.input)), begin+maxInput)])
	case s.closed && !l.closed:
		return text(map[string]string{"type": "stdin_close"}, func() { l.closed, s.sent.closed = true, true })
	}
	return nil
}

func text(frame any, sent func()) *message {
	bytes, _ := json.Marshal(frame) // cannot fail: strings and numbers
	return &message{bytes: bytes, sent: sent}
}

func (s *Stream) inputMessage(l *link, p []byte) *message {
	after := l.input + uint64(len(p))
	sent := func() { l.input, s.sent.input = after, max(s.sent.input, after) }
	if !l.binary {
		return text(map[string]string{"type": "stdin", "data": base64.StdEncoding.EncodeToString(p), "encoding": encodingBase64}, sent)
	}
	return &message{binary: true, bytes: append([]byte{tagStdin}, p...), sent: sent}
}

// reconnect resumes the stream on a new connection.
func (s *Stream) reconnect(ctx context.Context, tries *retry) (*link, error) {
	for {
		l, err := s.resume(ctx)
		if err == nil {
			return l, nil
		}
		if !passing(err) || !tries.wait(ctx, err) {
			return nil, err
		}
	}
}

func (s *Stream) resume(ctx context.Context) (*link, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, attempt, &Error{Code: Unavailable, Message: "the server does not answer"})
	defer cancel()
	s.mu.Lock()
	received := s.received
	s.mu.Unlock()
	l, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	begin, err := s.introduce(ctx, l, attachBody{Type: "attach", sessionBody: s.body(), Offset: &received})
	if err == nil {
		err = s.confirm(begin.Input)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if begin.Lost > 0 {
		s.events = append(s.events, Event{Lost: begin.Lost})
	}
	s.received, s.acked = begin.position(), begin.position()
	s.changed.Broadcast()
	return l, nil
}

// retry is a series of tries with growing pauses and an end.
type retry struct {
	until time.Time
	pause time.Duration
}

func newRetry(limit time.Duration) *retry {
	return &retry{until: time.Now().Add(limit), pause: retryFirst}
}

// wait pauses and returns true when the caller shall try again. It returns false
// at once when the time is up, and when ctx ends. The pauses grow.
func (r *retry) wait(ctx context.Context, err error) bool {
	pause := r.pause/2 + rand.N(r.pause) // not all clients of a server at once
	if e, ok := errors.AsType[*Error](err); ok && e.Code == RateLimited {
		pause = max(pause, e.RetryAfter)
	}
	r.pause = min(2*r.pause, retryMost)
	if time.Now().Add(pause).After(r.until) {
		return false
	}
	select {
	case <-time.After(pause):
		return true
	case <-ctx.Done():
		return false
	}
}
