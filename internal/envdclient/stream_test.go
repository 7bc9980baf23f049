package envdclient

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// newSession returns a new session.
func newSession() wrenn.ExecSession { return wrenn.ExecSession{ID: rand.Text()} }

// begin starts a shell's script.
func begin(t *testing.T, c *Client, script string, cmd wrenn.ExecStart) *Process {
	t.Helper()
	cmd.Cmd, cmd.Args = "/bin/sh", []string{"-c", script}
	p, err := c.Start(t.Context(), cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func attach(t *testing.T, c *Client, to wrenn.ExecAttach) *Process {
	t.Helper()
	p, err := c.Attach(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// readUntil reads output until it ends in want, or until the exit if that is "".
func readUntil(t *testing.T, p *Process, want string) string {
	t.Helper()
	var out strings.Builder
	for {
		ev, err := p.Next()
		if errors.Is(err, io.EOF) && want == "" {
			return out.String()
		}
		if err != nil {
			t.Fatalf("after %.200q: %v", out.String(), err)
		}
		for _, piece := range [][]byte{ev.Stdout, ev.Stderr, ev.PTY} {
			out.Write(piece)
		}
		if want != "" && strings.HasSuffix(out.String(), want) {
			return out.String()
		}
	}
}

func send(t *testing.T, p *Process, text string) {
	t.Helper()
	if err := p.Send(t.Context(), []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func TestStreamOfPipes(t *testing.T) {
	c, _ := newGuest(t)
	p := begin(t, c, "cat; echo error >&2; exit 3", wrenn.ExecStart{WantStdin: true})
	send(t, p, "one ")
	send(t, p, "two\n")
	readUntil(t, p, "one two\n")
	if err := p.CloseInput(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.CloseInput(t.Context()); err != nil && !InputClosed(err) { // it may have ended
		t.Error(err)
	}
	if got := readUntil(t, p, ""); got != "error\n" || p.Exit() != (wrenn.ExecExit{Code: 3, Status: "exit status 3", Reason: wrenn.EndExited}) {
		t.Errorf("%q, %v", got, p.Exit())
	}
	if err := p.Send(t.Context(), []byte("x")); !InputClosed(err) {
		t.Errorf("Send() to a command that ended = %v", err)
	}
	if p.Resumable() || p.Offset() != 0 || p.Leave(t.Context()) != nil {
		t.Error("a stream without a session has one")
	}
}

func TestStreamOfTerminal(t *testing.T) {
	c, _ := newGuest(t)
	p := begin(t, c, "stty -echo; while read x; do stty size; done", wrenn.ExecStart{PTY: &wrenn.PTYSize{Cols: 80, Rows: 24}})
	send(t, p, "\n")
	readUntil(t, p, "24 80\r\n")
	if err := p.Resize(t.Context(), wrenn.PTYSize{Cols: 132, Rows: 50}); err != nil {
		t.Fatal(err)
	}
	other := attach(t, c, wrenn.ExecAttach{PID: p.PID()}) // a client that does not know that it is a terminal
	send(t, other, "\n")
	readUntil(t, p, "50 132\r\n")
	if err := p.CloseInput(t.Context()); wrenn.CodeOf(err) != wrenn.GuestFailed {
		t.Errorf("CloseInput() of a terminal = %v", err)
	}
	if err := p.Signal(t.Context(), wrenn.SIGKILL); err != nil {
		t.Fatal(err)
	}
	readUntil(t, p, "")
	if p.Exit() != (wrenn.ExecExit{Code: -1, Status: "signal: killed", Reason: wrenn.EndSignaled}) {
		t.Errorf("Exit() = %v", p.Exit())
	}
}

func TestStreamResumes(t *testing.T) {
	c, _ := newGuest(t)
	session := newSession()
	p := begin(t, c, "echo one; read x; echo $x; exit 4", wrenn.ExecStart{WantStdin: true, Session: session})
	readUntil(t, p, "one\n")
	p.Close()
	p = attach(t, c, wrenn.ExecAttach{Session: session, Offset: new(uint64(2))})
	if p.Offset() != 2 || p.Lost() != 0 {
		t.Errorf("resumed at %d, lost %d", p.Offset(), p.Lost())
	}
	readUntil(t, p, "e\n")
	p.Close()
	// The command ends while no client is connected.
	other := attach(t, c, wrenn.ExecAttach{PID: p.PID()})
	send(t, other, "two\n")
	readUntil(t, other, "")
	for range 2 { // and again when the exit was lost
		p = attach(t, c, wrenn.ExecAttach{Session: session, Offset: new(uint64(4))})
		if got := readUntil(t, p, ""); got != "two\n" || p.Exit().Code != 4 {
			t.Errorf("%q, %v", got, p.Exit())
		}
		p.Close()
	}
	if err := p.Leave(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestStreamStartsOnce(t *testing.T) {
	c, _ := newGuest(t)
	session := newSession()
	const script = "echo $$; read x"
	first := begin(t, c, script, wrenn.ExecStart{WantStdin: true, Session: session})
	again := begin(t, c, script, wrenn.ExecStart{WantStdin: true, Session: session})
	if first.PID() != again.PID() {
		t.Errorf("started twice: %d and %d", first.PID(), again.PID())
	}
	readUntil(t, again, fmt.Sprintf("%d\n", first.PID()))
	var err error
	for err == nil {
		_, err = first.Next()
	}
	if wrenn.CodeOf(err) != wrenn.GuestFailed {
		t.Errorf("the first stream got %v", err)
	}
	_, err = c.Start(t.Context(), wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "true"}, Session: session})
	if wrenn.CodeOf(err) != wrenn.GuestFailed {
		t.Errorf("Start() of another command = %v", err)
	}
	other := begin(t, c, script, wrenn.ExecStart{WantStdin: true})
	if _, err := c.Attach(t.Context(), wrenn.ExecAttach{PID: other.PID(), Session: session}); wrenn.CodeOf(err) != wrenn.GuestFailed {
		t.Errorf("Attach() of the session to another process = %v", err)
	}
}

// A canceled Start ends its command, unless it has a session.
func TestStreamStartIsAbandoned(t *testing.T) {
	c, _ := newGuest(t)
	session := newSession()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Start(ctx, wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "sleep", Args: []string{"1000"}}, Session: session}); !errors.Is(err, context.Canceled) {
		t.Fatalf("Start() = %v", err)
	}
	p := attach(t, c, wrenn.ExecAttach{Session: session})
	if err := p.Signal(t.Context(), wrenn.SIGTERM); err != nil {
		t.Errorf("it does not run on: %v", err)
	}
	readUntil(t, p, "")
}

func TestStreamRefusals(t *testing.T) {
	c, _ := newGuest(t)
	p := begin(t, c, "read x", wrenn.ExecStart{WantStdin: true, Session: newSession()})
	for name, tc := range map[string]struct {
		to   wrenn.ExecAttach
		want wrenn.Code
	}{
		"nothing":          {wrenn.ExecAttach{}, wrenn.Invalid},
		"no such process":  {wrenn.ExecAttach{PID: 1 << 30}, wrenn.NotFound},
		"no such session":  {wrenn.ExecAttach{Session: newSession()}, wrenn.NotFound},
		"beyond the end":   {wrenn.ExecAttach{PID: p.PID(), Offset: new(uint64(1))}, wrenn.Invalid},
		"no session's id":  {wrenn.ExecAttach{PID: p.PID(), Session: wrenn.ExecSession{ID: "x"}}, wrenn.Invalid},
		"holds for a year": {wrenn.ExecAttach{PID: p.PID(), Session: wrenn.ExecSession{ID: "0123456789abcdef", Hold: 8766 * time.Hour}}, wrenn.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := c.Attach(t.Context(), tc.to); wrenn.CodeOf(err) != tc.want {
				t.Errorf("Attach() = %v, want %s", err, tc.want)
			}
		})
	}
}

// Two streams of a session send the same input, as a client does that does not
// know how much of it arrived.
func TestStreamInputIsTakenOnce(t *testing.T) {
	c, _ := newGuest(t)
	session := newSession()
	p := begin(t, c, "cat", wrenn.ExecStart{WantStdin: true, Session: session})
	send(t, p, "abc")
	stale := attach(t, c, wrenn.ExecAttach{Session: session, Offset: new(uint64)})
	if stale.Taken() != 3 {
		t.Errorf("Taken() = %d, want 3", stale.Taken())
	}
	send(t, p, "def")
	send(t, stale, "defghi\n")
	if got := readUntil(t, stale, "\n"); got != "abcdefghi\n" {
		t.Errorf("the command read %q", got)
	}
	stale.session.taken.Store(100)
	if err := stale.Send(t.Context(), []byte("x")); wrenn.CodeOf(err) != wrenn.Invalid {
		t.Errorf("Send() after a gap = %v", err)
	}
}

// TestSendFrom: small reads of a large input reach the command in order, and errors of
// the reader and of a command that has ended are told.
func TestSendFrom(t *testing.T) {
	c, _ := newGuest(t)
	text := strings.Repeat("0123456789", 30<<10)
	p := begin(t, c, "sha256sum", wrenn.ExecStart{WantStdin: true})
	testkit.Must(t, p.SendFrom(t.Context(), iotest.OneByteReader(strings.NewReader(text))))
	testkit.Must(t, p.CloseInput(t.Context()))
	if got, want := readUntil(t, p, "\n"), fmt.Sprintf("%x  -\n", sha256.Sum256([]byte(text))); got != want {
		t.Errorf("the command printed %q, want %q", got, want)
	}

	failing := begin(t, c, "cat", wrenn.ExecStart{WantStdin: true})
	broken := errors.New("broken")
	if err := failing.SendFrom(t.Context(), iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("SendFrom() of a reader that fails = %v", err)
	}
	testkit.Must(t, failing.CloseInput(t.Context()))

	ended := begin(t, c, "exit 0", wrenn.ExecStart{WantStdin: true})
	for err := error(nil); !errors.Is(err, io.EOF); {
		_, err = ended.Next()
	}
	if err := ended.SendFrom(t.Context(), strings.NewReader("x")); !InputClosed(err) {
		t.Errorf("SendFrom() to a command that has ended = %v", err)
	}
}

// TestStreamSlowReader: a reader that acknowledges late slows the command down,
// and no output is buffered without bound.
func TestStreamSlowReader(t *testing.T) {
	const (
		total  = 256 << 20
		window = 1 << 20 // see docs/envd.md
		most   = 48 << 20
	)
	c, _ := newGuest(t)
	p := begin(t, c, fmt.Sprintf("head -c %d /dev/zero", total), wrenn.ExecStart{Session: newSession()})
	var acked, got uint64
	for steps := 0; ; {
		ev, err := p.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if ev.Stdout == nil {
			continue
		}
		if ev.Offset != got {
			t.Fatalf("offset %d, want %d", ev.Offset, got)
		}
		got += uint64(len(ev.Stdout))
		if got > acked+window+64<<10 {
			t.Fatalf("%d bytes came when %d were acknowledged", got, acked)
		}
		if got < acked+window { // as late as possible
			continue
		}
		acked = got
		p.Ack(acked)
		if steps++; steps%64 == 0 {
			var mem runtime.MemStats
			runtime.GC()
			if runtime.ReadMemStats(&mem); mem.HeapAlloc > most {
				t.Fatalf("%d bytes of memory are taken after %d of output", mem.HeapAlloc, got)
			}
		}
	}
	if got != total {
		t.Errorf("%d bytes came of %d", got, total)
	}
}
