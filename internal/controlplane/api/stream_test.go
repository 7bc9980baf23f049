package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/service"
)

// program is a command whose output the test sends and whose input it sees.
type program struct {
	out    chan wrenn.ExecOutput
	fail   chan error
	did    chan string // what the client did to it
	closed chan struct{}
	once   sync.Once
	cut    atomic.Bool  // nothing can be sent
	taken  atomic.Int64 // outputs that Receive returned
	stuck  bool         // it reads no input, and blocks the sender
}

func newProgram() *program {
	return &program{out: make(chan wrenn.ExecOutput), fail: make(chan error, 1), did: make(chan string, 100), closed: make(chan struct{})}
}

func (p *program) Receive() (wrenn.ExecOutput, error) {
	select {
	case out := <-p.out:
		p.taken.Add(1)
		return out, nil
	case err := <-p.fail:
		return wrenn.ExecOutput{}, err
	case <-p.closed:
		return wrenn.ExecOutput{}, errors.New("the stream was closed")
	}
}

func (p *program) SendStdin(in []byte) error {
	if p.stuck {
		<-p.closed
		return errors.New("the stream was closed")
	}
	if p.cut.Load() {
		return errors.New("the stream broke")
	}
	p.did <- fmt.Sprintf("stdin %q", in)
	return nil
}
func (p *program) CloseStdin() error { p.did <- "close"; return nil }
func (p *program) Resize(s wrenn.PTYSize) error {
	p.did <- fmt.Sprintf("resize %dx%d", s.Cols, s.Rows)
	return nil
}
func (p *program) Signal(name string) error { p.did <- name; return nil }
func (p *program) Ack(offset uint64) error {
	p.did <- fmt.Sprintf("ack %d", offset)
	return nil
}
func (p *program) Leave() error { p.did <- "leave"; return nil }
func (p *program) Close() error { p.once.Do(func() { close(p.closed) }); return nil }

// streaming is a server with one program, and a client of it.
type streaming struct {
	*program
	stub   *stub
	server *running
	conn   *websocket.Conn
	said   chan string // what receive returned, of tests that do not wait for it
}

func dial(t *testing.T, server *running, options *websocket.DialOptions) *websocket.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, resp, err := websocket.Dial(ctx, "ws://"+server.address+at+"/exec/stream", options) //nolint:bodyclose // Dial says it need not be
	if err != nil {
		t.Fatalf("dial: %v, %v", err, resp)
	}
	conn.SetReadLimit(4 << 20)
	t.Cleanup(func() { _ = conn.CloseNow() })
	return conn
}

func stream1(t *testing.T, tune func(*Server), protocols ...string) *streaming {
	t.Helper()
	s := &streaming{program: newProgram()}
	s.stub = &stub{stream: func() service.ExecStream { return s.program }}
	s.server = serve(t, s.stub, tune)
	s.conn = dial(t, s.server, &websocket.DialOptions{
		HTTPHeader: http.Header{"X-Api-Key": {testKey}, "Origin": {"https://elsewhere.example"}}, Subprotocols: protocols,
	})
	return s
}

func (s *streaming) send(t *testing.T, frame string) {
	t.Helper()
	if err := s.conn.Write(t.Context(), websocket.MessageText, []byte(frame)); err != nil {
		t.Fatal(err)
	}
}

// receive returns the next message as text, with a mark when it is binary.
func (s *streaming) receive(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	kind, text, err := s.conn.Read(ctx)
	if err != nil {
		return fmt.Sprintf("closed %d", websocket.CloseStatus(err))
	}
	if kind == websocket.MessageBinary {
		return fmt.Sprintf("binary %q", text)
	}
	return string(text)
}

func (s *streaming) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		if got := s.receive(t); got != w {
			t.Fatalf("received %s, want %s", got, w)
		}
	}
}

// expectError receives an error with the code, then the end with the close code.
func (s *streaming) expectError(t *testing.T, code string, closed websocket.StatusCode) {
	t.Helper()
	var frame struct{ Type, Code, Data string }
	text := s.receive(t)
	if err := json.Unmarshal([]byte(text), &frame); err != nil || frame.Type != "error" || frame.Code != code || frame.Data == "" {
		t.Fatalf("received %s, want an error %s", text, code)
	}
	s.expect(t, fmt.Sprintf("closed %d", closed))
}

func wait[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(30 * time.Second):
		t.Fatalf("%s did not happen", what)
		panic("not reached")
	}
}

func dataOf(t *testing.T, m outMessage, frame string) []byte {
	t.Helper()
	var f struct{ Type, Data, Encoding string }
	if err := json.Unmarshal(m.bytes, &f); err != nil || f.Type != frame {
		t.Fatalf("message %s: %v, want %s", m.bytes, err, frame)
	}
	if f.Encoding == "" {
		return []byte(f.Data)
	}
	p, err := base64.StdEncoding.DecodeString(f.Data)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestStreamFromStartToExit(t *testing.T) {
	s := stream1(t, nil)
	s.send(t, `{"type":"start","cmd":"sh","args":["-c","x"],"env":{"A":"b"},"cwd":"/tmp","user":"bob","timeout_sec":7,"stdin":true}`)
	s.out <- wrenn.ExecOutput{Started: &wrenn.ExecStarted{PID: 42}}
	s.expect(t, `{"type":"start","pid":42}`)
	want := wrenn.ExecStart{WantStdin: true, ExecCommand: wrenn.ExecCommand{
		Cmd: "sh", Args: []string{"-c", "x"}, Env: map[string]string{"A": "b"}, Cwd: "/tmp", User: "bob", Timeout: 7 * time.Second,
	}}
	if diff := cmp.Diff(want, s.stub.started); diff != "" {
		t.Errorf("started (-want +got):\n%s", diff)
	}
	s.send(t, `{"type":"stdin","data":"héllo"}`)
	s.send(t, `{"type":"stdin","data":"/wA=","encoding":"base64"}`)
	s.send(t, `{"type":"stdin_close"}`)
	s.send(t, `{"type":"signal","signal":"SIGKILL"}`)
	s.send(t, `{"type":"stop"}`)
	for _, want := range []string{`stdin "héllo"`, `stdin "\xff\x00"`, "close", "SIGKILL", "SIGTERM"} {
		if got := wait(t, s.did, want); got != want {
			t.Errorf("the program saw %s, want %s", got, want)
		}
	}
	s.out <- wrenn.ExecOutput{Stdout: []byte("a<\xe2\x82")}
	s.out <- wrenn.ExecOutput{Stdout: []byte("\xac")}
	s.out <- wrenn.ExecOutput{Stderr: []byte("\xff\n")}
	s.out <- wrenn.ExecOutput{Keepalive: true}
	s.out <- wrenn.ExecOutput{Stdout: []byte("\xe2\x82")}
	s.out <- wrenn.ExecOutput{Exit: &wrenn.ExecExit{Code: -1, Status: "signal: killed"}}
	s.expect(t, `{"type":"stdout","data":"a<"}`, `{"type":"stdout","data":"€"}`, `{"type":"stderr","data":"/wo=","encoding":"base64"}`,
		`{"type":"keepalive"}`, `{"type":"stdout","data":"4oI=","encoding":"base64"}`,
		`{"type":"exit","exit_code":-1,"status":"signal: killed"}`, "closed 1000")
	wait(t, s.closed, "the end of the stream")
}

func TestStreamOfATerminal(t *testing.T) {
	s := stream1(t, nil, "wrenn.exec.v1")
	s.send(t, `{"type":"start","cmd":"sh","pty":{"cols":80,"rows":24}}`)
	s.out <- wrenn.ExecOutput{Started: &wrenn.ExecStarted{PID: 1}}
	s.send(t, `{"type":"resize","cols":120,"rows":40}`)
	if got := wait(t, s.did, "the resize"); got != "resize 120x40" {
		t.Errorf("the program saw %s", got)
	}
	s.out <- wrenn.ExecOutput{PTY: []byte("$ ")}
	s.out <- wrenn.ExecOutput{Exit: &wrenn.ExecExit{Status: "exit status 0"}}
	s.expect(t, `{"type":"start","pid":1}`, `{"type":"pty","data":"$ "}`, `{"type":"exit","exit_code":0,"status":"exit status 0"}`, "closed 1000")
	if diff := cmp.Diff(&wrenn.PTYSize{Cols: 80, Rows: 24}, s.stub.started.PTY); diff != "" || !s.stub.started.WantStdin {
		t.Errorf("started with %+v", s.stub.started)
	}
}

func TestStreamOfBytes(t *testing.T) {
	s := stream1(t, nil, protocolText, protocolBinary)
	if got := s.conn.Subprotocol(); got != protocolBinary {
		t.Fatalf("the server speaks %q", got)
	}
	s.send(t, `{"type":"start","cmd":"x","stdin":true}`)
	s.out <- wrenn.ExecOutput{Started: &wrenn.ExecStarted{PID: 1}}
	if err := s.conn.Write(t.Context(), websocket.MessageBinary, []byte("\x00\xff\x00")); err != nil {
		t.Fatal(err)
	}
	if got := wait(t, s.did, "the input"); got != `stdin "\xff\x00"` {
		t.Errorf("the program saw %s", got)
	}
	s.out <- wrenn.ExecOutput{Stdout: []byte("\xe2\x82")}
	s.out <- wrenn.ExecOutput{Stderr: []byte("e")}
	s.out <- wrenn.ExecOutput{PTY: []byte("p")}
	s.out <- wrenn.ExecOutput{Exit: &wrenn.ExecExit{Code: 3}}
	s.expect(t, `{"type":"start","pid":1}`, `binary "\x01\xe2\x82"`, `binary "\x02e"`, `binary "\x03p"`, `{"type":"exit","exit_code":3}`, "closed 1000")
}

func TestKeyOfABrowser(t *testing.T) {
	p := newProgram()
	server := serve(t, &stub{stream: func() service.ExecStream { return p }}, nil)
	conn := dial(t, server, &websocket.DialOptions{Subprotocols: []string{protocolText, keyProtocol + testKey}})
	if got := conn.Subprotocol(); got != protocolText {
		t.Errorf("the server answers with the protocol %q", got)
	}
}

func TestAttach(t *testing.T) {
	s := stream1(t, nil)
	s.send(t, `{"type":"attach","pid":42}`)
	s.out <- wrenn.ExecOutput{Started: &wrenn.ExecStarted{PID: 42}}
	s.send(t, `{"type":"stop"}`)
	if got := wait(t, s.did, "the stop"); got != "SIGTERM" {
		t.Errorf("the program saw %s", got)
	}
	s.out <- wrenn.ExecOutput{Exit: &wrenn.ExecExit{}}
	s.expect(t, `{"type":"start","pid":42}`, `{"type":"exit","exit_code":0}`, "closed 1000")
}

// TestStreamIsRefused: an error of CheckExec is an ordinary answer, with its message, and not an upgrade.
func TestStreamIsRefused(t *testing.T) {
	server := serve(t, &stub{checkErr: wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is paused: resume it first", testID)}, nil)
	_, resp, err := websocket.Dial(t.Context(), "ws://"+server.address+at+"/exec/stream", &websocket.DialOptions{HTTPHeader: http.Header{"X-Api-Key": {testKey}}})
	if err == nil || resp == nil {
		t.Fatalf("dial: %v, %v", err, resp)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusConflict || !strings.Contains(string(answer), "invalid_state") || !strings.Contains(string(answer), "resume it first") {
		t.Errorf("%d %s, %v", resp.StatusCode, answer, err)
	}
}

const testSession = "0123456789abcdef-_"

func TestStreamWithASession(t *testing.T) {
	s := stream1(t, nil)
	s.send(t, `{"type":"start","cmd":"x","stdin":true,"session":"`+testSession+`","hold_sec":7}`)
	s.out <- wrenn.ExecOutput{Started: &wrenn.ExecStarted{PID: 42}}
	s.expect(t, `{"type":"start","pid":42,"offset":0,"input":0}`)
	if diff := cmp.Diff(wrenn.ExecSession{ID: testSession, Hold: 7 * time.Second}, s.stub.started.Session); diff != "" {
		t.Errorf("session (-want +got):\n%s", diff)
	}
	s.out <- wrenn.ExecOutput{Stdout: []byte("a\xe2\x82"), Offset: 0}
	s.out <- wrenn.ExecOutput{Stdout: []byte("\xacb"), Offset: 3}
	s.out <- wrenn.ExecOutput{Taken: new(uint64(9))}
	// A client that counts bytes gets them as they come: none is held back.
	s.expect(t, `{"type":"stdout","offset":0,"data":"YeKC","encoding":"base64"}`, `{"type":"stdout","offset":3,"data":"rGI=","encoding":"base64"}`,
		`{"type":"input","offset":9}`)
	s.send(t, `{"type":"ack","offset":5}`)
	s.send(t, `{"type":"leave"}`)
	for _, want := range []string{"ack 5", "leave"} {
		if got := wait(t, s.did, want); got != want {
			t.Errorf("the program saw %s, want %s", got, want)
		}
	}
	s.fail <- wrenn.Errorf(wrenn.Unavailable, "the stream broke") // as the host ends the stream
	s.expect(t, "closed 1000")
}

func TestStreamIsResumed(t *testing.T) {
	s := stream1(t, nil)
	s.send(t, `{"type":"attach","session":"`+testSession+`","offset":100}`)
	s.out <- wrenn.ExecOutput{Started: &wrenn.ExecStarted{PID: 42, Offset: 130, Lost: 30, Taken: 5}}
	s.expect(t, `{"type":"start","pid":42,"offset":130,"lost":30,"input":5}`)
	want := wrenn.ExecAttach{Session: wrenn.ExecSession{ID: testSession}, Offset: new(uint64(100))}
	if diff := cmp.Diff(want, s.stub.attached); diff != "" {
		t.Errorf("attached (-want +got):\n%s", diff)
	}
}

// TestStreamOfASandboxThatIsPaused tells the client that the sandbox was paused, or waits
// until it runs again if its use resumes it; then the client attaches at its positions.
func TestStreamOfASandboxThatIsPaused(t *testing.T) {
	const text = "the sandbox was paused: resume it"
	begin := func(t *testing.T, session string, auto bool) *streaming {
		t.Helper()
		s := stream1(t, nil)
		s.stub.runs = make(chan struct{})
		s.send(t, `{"type":"start","cmd":"x","stdin":true`+session+`}`)
		s.out <- wrenn.ExecOutput{Started: &wrenn.ExecStarted{PID: 42}}
		s.receive(t)
		s.stub.mu.Lock()
		s.stub.box = box(testID, wrenn.Paused)
		s.stub.box.AutoResume = auto
		s.stub.mu.Unlock()
		s.cut.Store(true)
		s.fail <- wrenn.Errorf(wrenn.CutByPause, text)
		return s
	}
	const session = `,"session":"` + testSession + `"`
	paused := `{"type":"error","data":"` + text + `","code":"paused"}`
	again := `{"type":"error","data":"` + errResumed.Message + `","code":"unavailable"}`
	t.Run("without auto_resume", func(t *testing.T) { begin(t, session, false).expect(t, paused) })
	t.Run("without a session", func(t *testing.T) { begin(t, "", true).expect(t, paused) })
	t.Run("it runs again", func(t *testing.T) {
		s := begin(t, session, true)
		s.stub.runs <- struct{}{}
		s.expect(t, again)
	})
	t.Run("the client has input", func(t *testing.T) {
		s := begin(t, session, true)
		s.send(t, `{"type":"stdin","data":"x"}`)
		s.expect(t, again)
	})
}

func TestStreamRefusesFrames(t *testing.T) {
	for name, c := range map[string]struct {
		frames []string
		code   string
		closed websocket.StatusCode
	}{
		"no JSON":               {[]string{`{`}, "invalid_request", 1008},
		"unknown type":          {[]string{`{"type":"begin"}`}, "invalid_request", 1008},
		"stdin first":           {[]string{`{"type":"stdin","data":"x"}`}, "invalid_request", 1008},
		"unknown field":         {[]string{`{"type":"start","cmd":"x","tty":true}`}, "invalid_request", 1008},
		"no such program":       {[]string{`{"type":"start","cmd":"missing"}`}, "not_found", 1011},
		"start twice":           {[]string{`{"type":"start","cmd":"x"}`, `{"type":"start","cmd":"x"}`}, "invalid_request", 1008},
		"input without stdin":   {[]string{`{"type":"start","cmd":"x"}`, `{"type":"stdin","data":"x"}`}, "invalid_request", 1008},
		"resize of no terminal": {[]string{`{"type":"start","cmd":"x"}`, `{"type":"resize","cols":1,"rows":1}`}, "invalid_request", 1008},
		"other signal":          {[]string{`{"type":"start","cmd":"x"}`, `{"type":"signal","signal":"SIGSEGV"}`}, "invalid_request", 1008},
		"attach to nothing":     {[]string{`{"type":"attach"}`}, "invalid_request", 1008},
		"short session":         {[]string{`{"type":"start","cmd":"x","session":"x"}`}, "invalid_request", 1008},
		"held for too long":     {[]string{`{"type":"start","cmd":"x","session":"` + testSession + `","hold_sec":601}`}, "invalid_request", 1008},
		"ack of no session":     {[]string{`{"type":"start","cmd":"x"}`, `{"type":"ack","offset":1}`}, "invalid_request", 1008},
		"leave of no session":   {[]string{`{"type":"start","cmd":"x"}`, `{"type":"leave"}`}, "invalid_request", 1008},
		"ack of nothing":        {[]string{`{"type":"start","cmd":"x","session":"` + testSession + `"}`, `{"type":"ack"}`}, "invalid_request", 1008},
		"broken base64":         {[]string{`{"type":"start","cmd":"x","stdin":true}`, `{"type":"stdin","data":"!","encoding":"base64"}`}, "invalid_request", 1008},
	} {
		t.Run(name, func(t *testing.T) {
			s := stream1(t, nil)
			for _, frame := range c.frames {
				s.send(t, frame)
			}
			s.expectError(t, c.code, c.closed)
		})
	}
}

func TestFrameTooLarge(t *testing.T) {
	s := stream1(t, nil)
	s.send(t, `{"type":"start","cmd":"`+strings.Repeat("x", maxFrame)+`"}`)
	s.expect(t, "closed 1009")
}

func TestNoFirstFrame(t *testing.T) {
	s := stream1(t, func(s *Server) { s.times.firstFrame = 20 * time.Millisecond })
	s.expectError(t, "invalid_request", 1008)
}

func TestStreamThatBreaks(t *testing.T) {
	s := stream1(t, nil)
	s.send(t, `{"type":"start","cmd":"x"}`)
	s.out <- wrenn.ExecOutput{Started: &wrenn.ExecStarted{PID: 1}}
	s.fail <- wrenn.Errorf(wrenn.Unavailable, "the host is away")
	s.expect(t, `{"type":"start","pid":1}`)
	s.expectError(t, "unavailable", 1011)
}

// TestClientLeaves: that ends the stream, and the command does not notice.
func TestClientLeaves(t *testing.T) {
	for name, leave := range map[string]func(*websocket.Conn) error{
		"closes":     func(c *websocket.Conn) error { return c.Close(websocket.StatusNormalClosure, "") },
		"disappears": func(c *websocket.Conn) error { return c.CloseNow() },
	} {
		t.Run(name, func(t *testing.T) {
			s := stream1(t, nil)
			s.send(t, `{"type":"start","cmd":"x"}`)
			s.out <- wrenn.ExecOutput{Started: &wrenn.ExecStarted{PID: 1}}
			s.expect(t, `{"type":"start","pid":1}`)
			if err := leave(s.conn); err != nil {
				t.Fatal(err)
			}
			wait(t, s.closed, "the end of the stream")
			if len(s.did) != 0 {
				t.Errorf("the program saw %s", <-s.did)
			}
		})
	}
}

// waking is a stream whose sandbox is being resumed, after a first ping.
// The test sends to stub.waking when the sandbox runs.
// Pings continue after an early frame of its client.
func waking(t *testing.T) *streaming {
	t.Helper()
	s := &streaming{program: newProgram(), said: make(chan string, 1)}
	s.stub = &stub{box: box(testID, wrenn.Paused), waking: make(chan struct{}), stream: func() service.ExecStream { return s.program }}
	s.server = serve(t, s.stub, func(s *Server) { s.times.ping = 5 * time.Millisecond })
	pinged := make(chan struct{}, 1)
	s.conn = dial(t, s.server, &websocket.DialOptions{
		HTTPHeader: http.Header{"X-Api-Key": {testKey}},
		OnPingReceived: func(context.Context, []byte) bool {
			select {
			case pinged <- struct{}{}:
			default:
			}
			return true
		},
	})
	s.send(t, `{"type":"start","cmd":"x","stdin":true}`)
	wait(t, s.stub.waking, "the start")
	s.send(t, `{"type":"stdin","data":"early"}`)
	go func() { s.said <- s.receive(t) }()
	for range 3 {
		wait(t, pinged, "a ping")
	}
	return s
}

// TestWhileTheSandboxWakes: during a resume the connection is kept alive, and neither
// the end of the client nor that of the server waits for it.
func TestWhileTheSandboxWakes(t *testing.T) {
	t.Run("it runs", func(t *testing.T) {
		s := waking(t)
		s.stub.waking <- struct{}{}
		if got := wait(t, s.did, "the input"); got != `stdin "early"` {
			t.Errorf("the program saw %s", got)
		}
		s.out <- wrenn.ExecOutput{Started: &wrenn.ExecStarted{PID: 1}}
		if got := wait(t, s.said, "the start"); got != `{"type":"start","pid":1}` {
			t.Errorf("received %s", got)
		}
	})
	t.Run("the client leaves", func(t *testing.T) {
		s := waking(t)
		_ = s.conn.CloseNow()
		ended := make(chan struct{})
		go func() { s.server.streams.Wait(); close(ended) }()
		wait(t, ended, "the end of the stream")
		s.stub.waking <- struct{}{}
		wait(t, s.closed, "the end of what came too late")
	})
	t.Run("the server stops", func(t *testing.T) {
		s := waking(t)
		stopped := make(chan error, 1)
		go func() { stopped <- s.server.stop() }()
		if got := wait(t, s.said, "the error"); !strings.Contains(got, "the server is stopping") {
			t.Errorf("received %s", got)
		}
		s.expect(t, "closed 1001")
		if err := wait(t, stopped, "the end of Run"); err != nil {
			t.Errorf("Run() = %v", err)
		}
		s.stub.waking <- struct{}{}
		wait(t, s.closed, "the end of what came too late")
	})
}

func TestServerStops(t *testing.T) {
	s := stream1(t, nil)
	s.send(t, `{"type":"start","cmd":"x"}`)
	s.out <- wrenn.ExecOutput{Started: &wrenn.ExecStarted{PID: 1}}
	s.expect(t, `{"type":"start","pid":1}`)
	stopped := make(chan error, 1)
	go func() { stopped <- s.server.stop() }()
	s.expectError(t, "unavailable", 1001)
	if err := wait(t, stopped, "the end of Run"); err != nil {
		t.Errorf("Run() = %v", err)
	}
	wait(t, s.closed, "the end of the stream")
}

// TestServerStopsBesideADeafClient: a client that does not read delays the stop by times.closing at most.
func TestServerStopsBesideADeafClient(t *testing.T) {
	s := stream1(t, func(s *Server) { s.times.closing = 50 * time.Millisecond })
	s.send(t, `{"type":"start","cmd":"x"}`)
	s.fill(t)
	stopped := make(chan error, 1)
	go func() { stopped <- s.server.stop() }()
	if err := wait(t, stopped, "the end of Run"); err != nil {
		t.Errorf("Run() = %v", err)
	}
}

// fill writes output until the client reads no more of it, and returns the number of bytes.
func (s *streaming) fill(t *testing.T) (sent int) {
	t.Helper()
	piece := bytes.Repeat([]byte("x"), 64<<10)
	for sent < 1<<30 {
		select {
		case s.out <- wrenn.ExecOutput{Stdout: piece}:
			sent += len(piece)
		case <-time.After(500 * time.Millisecond):
			return sent
		}
	}
	t.Fatal("a client that reads nothing was sent a gigabyte")
	return 0
}

// TestSlowReaderSlowsTheProgram: output that is not read stays with the program, and no byte is lost.
func TestSlowReaderSlowsTheProgram(t *testing.T) {
	s := stream1(t, nil)
	s.send(t, `{"type":"start","cmd":"x"}`)
	sent := s.fill(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.out <- wrenn.ExecOutput{Exit: &wrenn.ExecExit{}}
	}()
	received := 0
	for {
		text := s.receive(t)
		if text == `{"type":"exit","exit_code":0}` {
			break
		}
		received += len(dataOf(t, outMessage{bytes: []byte(text)}, frameStdout))
	}
	if <-done; received != sent {
		t.Errorf("received %d bytes of %d", received, sent)
	}
}

// TestDeafClientIsCut: the client neither reads nor answers pings.
func TestDeafClientIsCut(t *testing.T) {
	quick := func(s *Server) { s.times.ping, s.times.slowClient = 20*time.Millisecond, 100*time.Millisecond }
	t.Run("idle", func(t *testing.T) {
		s := stream1(t, quick)
		s.send(t, `{"type":"start","cmd":"x"}`) // and it never reads
		wait(t, s.closed, "the end of the stream")
	})
	t.Run("with output in the way", func(t *testing.T) {
		s := stream1(t, quick)
		s.send(t, `{"type":"start","cmd":"x"}`)
		go func() {
			for piece := bytes.Repeat([]byte("x"), 64<<10); ; {
				select {
				case s.out <- wrenn.ExecOutput{Stdout: piece}:
				case <-s.closed:
					return
				}
			}
		}()
		wait(t, s.closed, "the end of the stream")
	})
}

// TestPingsKeepAQuietStream: a client that reads is kept, however quiet the program.
func TestPingsKeepAQuietStream(t *testing.T) {
	s := stream1(t, func(s *Server) { s.times.ping, s.times.slowClient = 5*time.Millisecond, 5*time.Second })
	s.send(t, `{"type":"start","cmd":"x"}`)
	s.out <- wrenn.ExecOutput{Started: &wrenn.ExecStarted{PID: 1}}
	s.expect(t, `{"type":"start","pid":1}`)
	got := make(chan string, 1)
	go func() { got <- s.receive(t) }()
	select {
	case text := <-got:
		t.Fatalf("received %s", text)
	case <-time.After(200 * time.Millisecond): // tens of pings
	}
	s.out <- wrenn.ExecOutput{Exit: &wrenn.ExecExit{}}
	if text := wait(t, got, "the exit"); text != `{"type":"exit","exit_code":0}` {
		t.Errorf("received %s", text)
	}
}

// TestProgramThatTakesNoInput: the client's frames wait; the stream continues and ends with the program.
func TestProgramThatTakesNoInput(t *testing.T) {
	s := stream1(t, func(s *Server) { s.times.ping, s.times.slowClient = 5*time.Millisecond, 20*time.Millisecond })
	s.stuck = true
	s.send(t, `{"type":"start","cmd":"x","stdin":true}`)
	s.send(t, `{"type":"stdin","data":"x"}`)
	s.out <- wrenn.ExecOutput{Started: &wrenn.ExecStarted{PID: 1}}
	s.expect(t, `{"type":"start","pid":1}`)
	got := make(chan string, 1)
	go func() { got <- s.receive(t) }()
	select {
	case text := <-got:
		t.Fatalf("received %s", text)
	case <-time.After(200 * time.Millisecond): // many times slowClient
	}
	s.out <- wrenn.ExecOutput{Exit: &wrenn.ExecExit{}}
	if text := wait(t, got, "the exit"); text != `{"type":"exit","exit_code":0}` {
		t.Errorf("received %s", text)
	}
}

// TestBytesByHand reads the frames without the library that wrote them: the
// lengths and the payloads of RFC 6455 are right, at every form of a length.
func TestBytesByHand(t *testing.T) {
	p := newProgram()
	server := serve(t, &stub{stream: func() service.ExecStream { return p }}, nil)
	conn, err := net.Dial("tcp", server.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(conn, "GET %s/exec/stream HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: wrenn.exec.v1.binary\r\n"+
		"Authorization: Bearer %s\r\n\r\n", at, testKey)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	// The value is the example of RFC 6455, 1.3.
	if resp.StatusCode != 101 || resp.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("handshake: %s %v", resp.Status, resp.Header)
	}
	handWrite(t, conn, 1, []byte(`{"type":"start","cmd":"x","stdin":true}`))
	var want [][]byte
	go func() {
		p.out <- wrenn.ExecOutput{Started: &wrenn.ExecStarted{PID: 7}}
	}()
	if op, text := handRead(t, r); op != 1 || string(text) != `{"type":"start","pid":7}` {
		t.Fatalf("frame %d %s", op, text)
	}
	for _, n := range []int{1, 124, 125, 126, 65534, 65535, 65536, 300000} {
		data := make([]byte, n)
		rand.Read(data)
		want = append(want, data)
	}
	go func() {
		for _, data := range want {
			p.out <- wrenn.ExecOutput{Stdout: data}
		}
	}()
	for _, data := range want {
		op, got := handRead(t, r)
		if op != 2 || got[0] != tagStdout || !bytes.Equal(got[1:], data) {
			t.Fatalf("frame %d of %d bytes, want %d", op, len(got)-1, len(data))
		}
		handWrite(t, conn, 2, append([]byte{tagStdin}, data...))
		if got := wait(t, p.did, "the input"); got != fmt.Sprintf("stdin %q", data) {
			t.Fatalf("%d bytes of input did not survive", len(data))
		}
	}
}

// handRead reads one unmasked frame, see RFC 6455, 5.2.
func handRead(t *testing.T, r io.Reader) (opcode byte, payload []byte) {
	t.Helper()
	head := make([]byte, 2)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	if head[0]&0xf0 != 0x80 || head[1]&0x80 != 0 {
		t.Fatalf("frame with the head %x: not final, reserved bits, or masked", head)
	}
	length := uint64(head[1])
	if length >= 126 {
		long := make([]byte, 8)
		size := 2
		if length == 127 {
			size = 8
		}
		if _, err := io.ReadFull(r, long[8-size:]); err != nil {
			t.Fatal(err)
		}
		length = binary.BigEndian.Uint64(long)
	}
	payload = make([]byte, length)
	if _, err := io.ReadFull(r, payload); err != nil {
		t.Fatal(err)
	}
	return head[0] & 0x0f, payload
}

// handWrite writes one masked frame.
func handWrite(t *testing.T, w io.Writer, opcode byte, payload []byte) {
	t.Helper()
	frame := []byte{0x80 | opcode}
	switch n := len(payload); {
	case n < 126:
		frame = append(frame, 0x80|byte(n))
	case n < 1<<16:
		frame = binary.BigEndian.AppendUint16(append(frame, 0x80|126), uint16(n))
	default:
		frame = binary.BigEndian.AppendUint64(append(frame, 0x80|127), uint64(n))
	}
	mask := []byte{1, 2, 3, 4}
	frame = append(frame, mask...)
	for i, b := range payload {
		frame = append(frame, b^mask[i%4])
	}
	if _, err := w.Write(frame); err != nil {
		t.Fatal(err)
	}
}
