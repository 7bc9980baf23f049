package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"

	"github.com/coder/websocket"
)

const (
	protocolText   = "wrenn.exec.v1"
	protocolBinary = "wrenn.exec.v1.binary"

	// The first byte of a binary message names its stream.
	tagStdin, tagStdout, tagStderr, tagPTY = 0, 1, 2, 3

	maxInput   = 256 << 10 // of one frame; the server takes 1 MiB, base64 and all
	maxMessage = 16 << 20  // of the server
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
}

// Exit is how a command ended.
type Exit struct {
	Code   int    // -1 when a signal ended it
	Status string // the same in words: "exit status 1", "signal: killed"
}

// Stream follows a command. Receive is for one goroutine, all else for any.
//
// The command outlives the stream: who closes or loses it finds the command
// again by Attach. Somebody must receive: a stream that nobody reads slows the
// command, and the server cuts it after some minutes.
type Stream struct {
	conn   *websocket.Conn
	pid    int
	binary bool // the server takes and sends bytes as they are
	exited bool
	broken func(error) error
	detach func() bool // the stream from the context that it was started with

	writing sync.Mutex // keeps the pieces of one Write together
}

// Start runs a command and returns when it runs: an error says that it does
// not. The end of ctx closes the stream, as Close does, which the caller does
// when it is done.
func (c *Client) Start(ctx context.Context, id string, cmd Command, opts StartOptions) (*Stream, error) {
	if len(cmd.Stdin) > 0 {
		return nil, &Error{Code: InvalidRequest, Message: "Command.Stdin is of Exec: set StartOptions.Stdin and write to the stream"}
	}
	return c.open(ctx, id, struct {
		Type string `json:"type"`
		commandBody

		Stdin bool  `json:"stdin,omitempty"`
		PTY   *Size `json:"pty,omitempty"`
	}{"start", cmd.body(), opts.Stdin, opts.PTY})
}

// Attach follows a command that runs: its output from now on. See Start.
func (c *Client) Attach(ctx context.Context, id string, pid int) (*Stream, error) {
	return c.open(ctx, id, struct {
		Type string `json:"type"`
		PID  int    `json:"pid"`
	}{"attach", pid})
}

func (c *Client) open(ctx context.Context, id string, first any) (*Stream, error) {
	header := map[string][]string{}
	c.sign(header)
	conn, resp, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(c.address(sandboxPath(id, "/exec/stream"), nil), "http"),
		&websocket.DialOptions{HTTPClient: c.http, HTTPHeader: header, Subprotocols: []string{protocolBinary, protocolText}})
	if err != nil {
		if resp != nil && ctx.Err() == nil {
			defer resp.Body.Close()
			return nil, problem(resp)
		}
		return nil, c.broken(ctx, err)
	}
	conn.SetReadLimit(maxMessage)
	s := &Stream{
		conn: conn, binary: conn.Subprotocol() == protocolBinary,
		broken: func(err error) error { return c.broken(ctx, err) },
		detach: context.AfterFunc(ctx, func() { _ = conn.CloseNow() }),
	}
	if err := s.begin(first); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// begin sends the first frame and waits for the pid, which is the server's first.
func (s *Stream) begin(first any) error {
	if err := s.send(first); err != nil {
		return err
	}
	for s.pid == 0 {
		if _, _, err := s.receive(); err != nil {
			return err
		}
	}
	return nil
}

// PID is the command's process in the sandbox, for Attach.
func (s *Stream) PID() int { return s.pid }

// Receive waits for the next event. After the exit it returns io.EOF. An
// *Error says that the stream broke; the command goes on.
func (s *Stream) Receive() (Event, error) {
	for {
		if s.exited {
			return Event{}, io.EOF
		}
		event, ok, err := s.receive()
		if err != nil || ok {
			return event, err
		}
	}
}

// Events is Receive as a loop, which ends after the exit or an error.
func (s *Stream) Events() iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			event, err := s.Receive()
			if errors.Is(err, io.EOF) && s.exited {
				return
			}
			if !yield(event, err) || err != nil {
				return
			}
		}
	}
}

// Copy writes what the command prints to stdout, or to stderr what comes from
// there, until the command ends. A terminal has only one output.
func (s *Stream) Copy(stdout, stderr io.Writer) (Exit, error) {
	for event, err := range s.Events() {
		if err != nil {
			return Exit{}, err
		}
		if event.Exit != nil {
			return *event.Exit, nil
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
	return Exit{}, s.broken(io.ErrUnexpectedEOF)
}

// receive reads a frame; ok says that it is an event.
func (s *Stream) receive() (event Event, ok bool, err error) {
	// Not the stream's context: one that ends in a read says less than the connection's end, see broken.
	kind, text, err := s.conn.Read(context.Background())
	if err != nil {
		return Event{}, false, s.broken(fmt.Errorf("the stream broke, the command goes on: %w", err))
	}
	if kind == websocket.MessageBinary {
		return binaryEvent(text)
	}
	var f struct {
		Type     string `json:"type"`
		PID      int    `json:"pid"`
		Data     string `json:"data"`
		Encoding string `json:"encoding"`
		ExitCode int    `json:"exit_code"`
		Status   string `json:"status"`
		Code     Code   `json:"code"`
	}
	if err := json.Unmarshal(text, &f); err != nil {
		return Event{}, false, &Error{Code: Internal, Message: "the server sent a frame that is no JSON", Err: err}
	}
	switch f.Type {
	case "start":
		s.pid = f.PID
		return Event{}, false, nil
	case "exit":
		s.exited = true
		return Event{Exit: &Exit{Code: f.ExitCode, Status: f.Status}}, true, nil
	case "error":
		return Event{}, false, &Error{Code: f.Code, Message: f.Data}
	}
	data, err := decode(f.Data, f.Encoding)
	switch f.Type {
	case "stdout":
		event.Stdout = data
	case "stderr":
		event.Stderr = data
	case "pty":
		event.PTY = data
	default:
		return Event{}, false, nil // keepalive, and what later servers may tell
	}
	return event, len(data) > 0, err
}

func binaryEvent(message []byte) (Event, bool, error) {
	if len(message) < 2 {
		return Event{}, false, nil
	}
	switch data := message[1:]; message[0] {
	case tagStdout:
		return Event{Stdout: data}, true, nil
	case tagStderr:
		return Event{Stderr: data}, true, nil
	case tagPTY:
		return Event{PTY: data}, true, nil
	}
	return Event{}, false, nil
}

// Write sends input. It waits when the command does not read.
func (s *Stream) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	sent := 0
	for sent < len(p) {
		piece := p[sent:min(len(p), sent+maxInput)]
		if err := s.sendInput(piece); err != nil {
			return sent, err
		}
		sent += len(piece)
	}
	return sent, nil
}

func (s *Stream) sendInput(p []byte) error {
	if !s.binary {
		return s.send(map[string]string{"type": "stdin", "data": base64.StdEncoding.EncodeToString(p), "encoding": encodingBase64})
	}
	message := append([]byte{tagStdin}, p...)
	return s.sent(s.conn.Write(context.Background(), websocket.MessageBinary, message))
}

// CloseStdin ends the input.
func (s *Stream) CloseStdin() error {
	s.writing.Lock() // after what is being written
	defer s.writing.Unlock()
	return s.send(map[string]string{"type": "stdin_close"})
}

// Resize tells the terminal its new size.
func (s *Stream) Resize(size Size) error {
	return s.send(struct {
		Type string `json:"type"`
		Size
	}{"resize", size})
}

// Signal sends a signal to the command and what it started.
func (s *Stream) Signal(sig Signal) error {
	return s.send(map[string]string{"type": "signal", "signal": string(sig)})
}

func (s *Stream) send(frame any) error {
	text, err := json.Marshal(frame)
	if err != nil {
		return &Error{Code: InvalidRequest, Message: "the frame cannot be written as JSON", Err: err}
	}
	return s.sent(s.conn.Write(context.Background(), websocket.MessageText, text))
}

func (s *Stream) sent(err error) error {
	if err == nil {
		return nil
	}
	return s.broken(fmt.Errorf("the stream broke: %w", err))
}

// Close ends the stream, not the command. Twice is allowed.
func (s *Stream) Close() error {
	s.detach()
	_ = s.conn.CloseNow() // fails when it is closed
	return nil
}
