package envdclient

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/guest"
	"wrenn.dev/internal/guest/guesttest"
	"wrenn.dev/internal/testkit"
)

// deadline is far longer than any test here takes.
const deadline = 30 * time.Second

// machine stands for the guest's kernel, whose clock tests must not set.
type machine struct {
	guesttest.Inert

	mu      sync.Mutex // guards the fields below
	set     time.Time
	entropy []byte
	name    string
}

func (m *machine) SetHostname(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.name = name
	return nil
}

func (m *machine) Now() time.Time { return time.Unix(1, 0) }

func (m *machine) SetTime(t time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.set = t
	return nil
}

func (m *machine) AddEntropy(seed []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entropy = bytes.Clone(seed)
	return nil
}

// newGuest runs the real agent and returns a client of it.
func newGuest(t *testing.T) (*Client, *machine) {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{}
	agent := guest.New(guest.Config{Machine: m, Log: slog.New(slog.DiscardHandler), DefaultUser: me.Username})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- agent.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return newClient(t, listener.Addr().String(), ""), m
}

func newClient(t *testing.T, address, token string) *Client {
	t.Helper()
	c := New(Config{Dial: new(net.Dialer).DialContext, Address: address, Token: token})
	t.Cleanup(c.Close)
	return c
}

// lives is the Wait of a machine that runs until ctx ends.
func lives(ctx context.Context) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

func TestWaitReady(t *testing.T) {
	c, _ := newGuest(t)
	if err := c.WaitReady(t.Context(), lives); err != nil {
		t.Fatal(err)
	}
}

func TestWaitReadyEndsEarly(t *testing.T) {
	closed := newClient(t, "127.0.0.1:1", "") // tcpmux: no program listens there
	dead := errors.New("the VMM is dead")
	enough := errors.New("enough")
	ended, end := context.WithCancelCause(t.Context())
	end(enough)
	for _, tc := range []struct {
		name string
		ctx  context.Context
		gone func(context.Context) error
		want func(error) bool
	}{
		{"the machine died", t.Context(), func(context.Context) error { return dead }, func(err error) bool { return errors.Is(err, dead) }},
		{"the guest powered off", t.Context(), func(context.Context) error { return nil }, func(err error) bool { return strings.Contains(err.Error(), "powered off") }},
		{"the caller had enough", ended, lives, func(err error) bool { return errors.Is(err, enough) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := closed.WaitReady(tc.ctx, tc.gone); err == nil || !tc.want(err) {
				t.Errorf("WaitReady() = %v", err)
			}
		})
	}
}

func TestInitSetsTimeEntropyAndSettings(t *testing.T) {
	c, m := newGuest(t)
	began := time.Now()
	if err := c.Init(t.Context(), Init{Env: map[string]string{"COLOR": "green"}, Workdir: "/tmp", Token: "secret"}); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	set, entropy := m.set, m.entropy
	m.mu.Unlock()
	if set.Before(began.Add(-time.Second)) || set.After(time.Now().Add(time.Second)) {
		t.Errorf("the guest's clock was set to %s at %s", set, began)
	}
	if len(entropy) != entropyBytes || bytes.Count(entropy, []byte{0}) == entropyBytes {
		t.Errorf("the guest got %d bytes of entropy: %x", len(entropy), entropy)
	}
	if _, err := c.Exec(t.Context(), wrenn.ExecCommand{Cmd: "true"}); wrenn.CodeOf(err) != wrenn.GuestFailed || !strings.Contains(err.Error(), "401") {
		t.Errorf("Exec without the token = %v, want that the guest refuses it by 401", err)
	}
	with := newClient(t, strings.TrimPrefix(c.base, "http://"), "secret")
	res, err := with.Exec(t.Context(), wrenn.ExecCommand{Cmd: "sh", Args: []string{"-c", "echo $COLOR; pwd"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(res.Stdout); got != "green\n/tmp\n" {
		t.Errorf("the command printed %q", got)
	}
}

func TestInitSetsTheIdentity(t *testing.T) {
	c, m := newGuest(t)
	for _, tc := range []struct {
		identity *Identity
		want     string
	}{
		{nil, ""},
		{&Identity{ID: "ia", StartCounter: 1}, "ia"},
		{&Identity{ID: "ia", StartCounter: 2, Hostname: "box"}, "box"},
	} {
		if err := c.Init(t.Context(), Init{Identity: tc.identity}); err != nil {
			t.Fatal(err)
		}
		m.mu.Lock()
		name := m.name
		m.mu.Unlock()
		if name != tc.want {
			t.Errorf("Init(%+v): host name %q, want %q", tc.identity, name, tc.want)
		}
	}
	if code := wrenn.CodeOf(c.Init(t.Context(), Init{Identity: &Identity{ID: "not a label"}})); code != wrenn.Invalid {
		t.Errorf("Init() with a bad id: %s, want invalid", code)
	}
}

// Init is repeated when its way was slow, not when the guest was.
func TestInitRepeatsASlowCall(t *testing.T) {
	for _, tc := range []struct {
		name, timing string
		want         int32
	}{
		{"an agent that does not say how long it took", "", 2},
		{"one that took all of the time", "init;dur=60000", 1},
		{"one that says what cannot be read", "init;dur=-1", 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var calls atomic.Int32
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if calls.Add(1) == 1 {
					time.Sleep(goodRoundTrip) // a slow guest is what is tested
				}
				w.Header().Set("Server-Timing", tc.timing)
				w.WriteHeader(http.StatusNoContent)
			}))
			defer s.Close()
			testkit.Must(t, newClient(t, s.Listener.Addr().String(), "").Init(t.Context(), Init{}))
			if got := calls.Load(); min(got, 2) != tc.want {
				t.Errorf("%d calls of /init, want %d", got, tc.want)
			}
		})
	}
}

// Init of a copy ends the original's streams, but not its own request.
func TestInitOfACopyEndsOldStreams(t *testing.T) {
	c, _ := newGuest(t)
	old, err := c.Start(t.Context(), wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "sleep", Args: []string{"1000"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	host := newClient(t, strings.TrimPrefix(c.base, "http://"), "")
	for range 2 {
		if err := host.Init(t.Context(), Init{Identity: &Identity{ID: "ia", StartCounter: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	for {
		if _, err := old.Next(); err != nil {
			break // else the events that came before
		}
	}
	if _, err := host.Exec(t.Context(), wrenn.ExecCommand{Cmd: "true"}); err != nil {
		t.Error(err)
	}
}

// The test's agent has no cgroup2, like an image with an old kernel. The handler
// stands for an agent that is older than the calls.
func TestCallsThatAnAgentDoesNotKnow(t *testing.T) {
	c, _ := newGuest(t)
	old := httptest.NewServer(http.NotFoundHandler())
	defer old.Close()
	older := newClient(t, old.Listener.Addr().String(), "")
	for name, err := range map[string]error{
		"no cgroup2":            c.Freeze(t.Context()),
		"an older agent":        older.Freeze(t.Context()),
		"an older agent, thaws": older.Thaw(t.Context()),
		"no agent of ours":      older.Init(t.Context(), Init{}),
	} {
		if code := wrenn.CodeOf(err); code != wrenn.FailedPrecondition {
			t.Errorf("%s: %v, code %s; want failed_precondition", name, err, code)
		}
	}
	if err := c.Thaw(t.Context()); err != nil {
		t.Errorf("Thaw() of what is not frozen = %v", err)
	}
}

func TestExec(t *testing.T) {
	c, _ := newGuest(t)
	res, err := c.Exec(t.Context(), wrenn.ExecCommand{Cmd: "/bin/sh", Args: []string{"-c", `printf 'out\000\377'; echo $A >&2; pwd >&2; exit 3`}, Env: map[string]string{"A": "b"}, Cwd: "/"})
	if err != nil {
		t.Fatal(err)
	}
	if string(res.Stdout) != "out\x00\xff" || string(res.Stderr) != "b\n/\n" || res.ExitCode != 3 || res.Status != "exit status 3" || res.Truncated {
		t.Errorf("Exec() = %+v", res)
	}
}

func TestExecKeepsTheBeginningOfTooMuchOutput(t *testing.T) {
	c, _ := newGuest(t)
	res, err := c.ExecUpTo(t.Context(), wrenn.ExecCommand{Cmd: "sh", Args: []string{"-c", "head -c 1000000 /dev/zero; echo e >&2"}}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Stdout) != 1000 || string(res.Stderr) != "e\n" || !res.Truncated || res.ExitCode != 0 {
		t.Errorf("Exec() kept %d and %d bytes, truncated %t, code %d", len(res.Stdout), len(res.Stderr), res.Truncated, res.ExitCode)
	}
}

// TestExecWithoutMemory: a command whose output cannot be kept is killed.
func TestExecWithoutMemory(t *testing.T) {
	c, _ := newGuest(t)
	full := wrenn.Errorf(wrenn.Exhausted, "no memory")
	asked := 0
	_, err := c.ExecKeeping(t.Context(), wrenn.ExecCommand{Cmd: "sh", Args: []string{"-c", "yes; echo unreached"}}, Outputs{
		Most: 1 << 20, Reserve: func(_ context.Context, n int) error {
			if asked += n; asked > 200<<10 {
				return full
			}
			return nil
		},
	})
	if !errors.Is(err, full) {
		t.Errorf("Exec() = %v", err)
	}
	res, err := c.ExecKeeping(t.Context(), wrenn.ExecCommand{Cmd: "sh", Args: []string{"-c", "head -c 65536 /dev/zero"}}, Outputs{
		Most: 1 << 20, Reserve: func(context.Context, int) error { return full },
	})
	if err != nil || len(res.Stdout) != 65536 {
		t.Errorf("a small output: %v", err)
	}
}

func TestStartErrors(t *testing.T) {
	c, _ := newGuest(t)
	for _, tc := range []struct {
		name string
		cmd  wrenn.ExecCommand
		code wrenn.Code
		want string
	}{
		{"no such program", wrenn.ExecCommand{Cmd: "no-such-program"}, wrenn.NotFound, "no-such-program"},
		{"no such directory", wrenn.ExecCommand{Cmd: "true", Cwd: "/no/such"}, wrenn.Invalid, "/no/such"},
		{"no such user", wrenn.ExecCommand{Cmd: "true", User: "nobody-like-this"}, wrenn.Invalid, "nobody-like-this"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := c.Start(t.Context(), wrenn.ExecStart{ExecCommand: tc.cmd})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("Start() = %v, want an error that names %s", err, tc.want)
			}
			if code := wrenn.CodeOf(err); code != tc.code {
				t.Errorf("code %s, want %s (%v)", code, tc.code, err)
			}
		})
	}
}

// TestExecAfterItsDeadline returns what the command printed until then.
func TestExecAfterItsDeadline(t *testing.T) {
	c, _ := newGuest(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	res, err := c.Exec(ctx, wrenn.ExecCommand{Cmd: "sh", Args: []string{"-c", "echo begun; exec sleep 600"}})
	testkit.WantCode(t, err, wrenn.DeadlineExceeded)
	if res == nil || string(res.Stdout) != "begun\n" || res.ExitCode != -1 || res.Status != "signal: killed" || res.Reason != wrenn.EndTimeout {
		t.Errorf("Exec() = %+v", res)
	}
}

// TestAbandonedExecIsKilled waits for the end of the command's process: the
// write end of a FIFO that it held.
func TestAbandonedExecIsKilled(t *testing.T) {
	c, _ := newGuest(t)
	for _, tc := range []struct {
		name string
		ctx  func() (context.Context, context.CancelFunc)
		want wrenn.Code
	}{
		{"canceled", func() (context.Context, context.CancelFunc) { return context.WithCancel(t.Context()) }, wrenn.Canceled},
		{"past its deadline", func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 300*time.Millisecond)
		}, wrenn.DeadlineExceeded},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fifo := filepath.Join(t.TempDir(), "fifo")
			if res, err := c.Exec(t.Context(), wrenn.ExecCommand{Cmd: "mkfifo", Args: []string{fifo}}); err != nil || res.ExitCode != 0 {
				t.Fatal(res, err)
			}
			ctx, cancel := tc.ctx()
			defer cancel()
			done := make(chan error, 1)
			go func() {
				_, err := c.Exec(ctx, wrenn.ExecCommand{Cmd: "sh", Args: []string{"-c", "exec 3>" + fifo + "; echo begun >&3; sleep 600"}})
				done <- err
			}()
			reader, err := os.Open(fifo) // returns when the command has opened it
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			if _, err := reader.Read(make([]byte, 6)); err != nil {
				t.Fatal(err)
			}
			if tc.want == wrenn.Canceled {
				cancel()
			}
			if err := <-done; wrenn.CodeOf(err) != tc.want {
				t.Errorf("Exec() = %v, want %s", err, tc.want)
			}
			if err := reader.SetReadDeadline(time.Now().Add(deadline)); err != nil {
				t.Fatal(err)
			}
			if _, err := reader.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("the command still runs (%v)", err)
			}
		})
	}
}

// TestCanceledStartIsKilled cancels when the command has begun and its caller may
// not have its pid yet.
func TestCanceledStartIsKilled(t *testing.T) {
	c, _ := newGuest(t)
	for range 20 {
		fifo := filepath.Join(t.TempDir(), "fifo")
		if res, err := c.Exec(t.Context(), wrenn.ExecCommand{Cmd: "mkfifo", Args: []string{fifo}}); err != nil || res.ExitCode != 0 {
			t.Fatal(res, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := c.Exec(ctx, wrenn.ExecCommand{Cmd: "sh", Args: []string{"-c", "exec sleep 600 >" + fifo}})
			done <- err
		}()
		reader, err := os.Open(fifo) // returns when the command has opened it
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-done; wrenn.CodeOf(err) != wrenn.Canceled {
			t.Errorf("Exec() = %v, want canceled", err)
		}
		if err := reader.SetReadDeadline(time.Now().Add(deadline)); err != nil {
			t.Fatal(err)
		}
		if _, err := reader.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("the command still runs (%v)", err)
		}
		reader.Close()
	}
}

func TestProcessStreams(t *testing.T) {
	c, _ := newGuest(t)
	p, err := c.Start(t.Context(), wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "sh", Args: []string{"-c", "echo a; echo b >&2; kill -9 $$"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var stdout, stderr bytes.Buffer
	for {
		ev, err := p.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		stdout.Write(ev.Stdout)
		stderr.Write(ev.Stderr)
	}
	if stdout.String() != "a\n" || stderr.String() != "b\n" {
		t.Errorf("got %q and %q", &stdout, &stderr)
	}
	if want := (wrenn.ExecExit{Code: -1, Status: "signal: killed", Reason: wrenn.EndExited}); p.Exit() != want {
		t.Errorf("Exit() = %+v, want %+v", p.Exit(), want)
	}
	if _, err := p.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("Next after the end = %v, want EOF", err)
	}
	if err := c.Kill(t.Context(), p.PID()); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("Kill after the end = %v, want not found", err)
	}
}

func TestFiles(t *testing.T) {
	c, _ := newGuest(t)
	path := filepath.Join(t.TempDir(), "new", "file")
	content := bytes.Repeat([]byte("\x00\xffabc"), 1<<18)
	if err := c.WriteFile(t.Context(), "", path, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	body, err := c.ReadFile(t.Context(), "", path)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}

	broken := errors.New("the source broke")
	if err := c.WriteFile(t.Context(), "", path, io.MultiReader(strings.NewReader("half"), failing{broken})); err == nil {
		t.Error("a write from a broken source succeeded")
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("a cut write changed the file: %d bytes, %v", len(got), err)
	}
	if _, err := c.ReadFile(t.Context(), "", path+"-not"); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("ReadFile of nothing = %v, want not found", err)
	}
	if _, err := c.ReadFile(t.Context(), "", filepath.Dir(path)); wrenn.CodeOf(err) != wrenn.Invalid {
		t.Errorf("ReadFile of a directory = %v, want invalid", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestCutDownloadIsAnError uses a fake agent: envd would have to be killed.
func TestCutDownloadIsAnError(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("half"))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})}
	go server.Serve(listener)
	defer server.Close()
	body, err := newClient(t, listener.Addr().String(), "").ReadFile(t.Context(), "", "/x")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err == nil {
		t.Errorf("a cut download ended cleanly after %q", got)
	}
}

// TestCloseEndsOpenCalls: a guest that has ended closes no connection.
func TestCloseEndsOpenCalls(t *testing.T) {
	c, _ := newGuest(t)
	proc, err := c.Start(t.Context(), wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "cat"}, WantStdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	if err := proc.Send(t.Context(), []byte("x")); err != nil {
		t.Fatal(err)
	}
	said, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		for {
			ev, err := proc.Next()
			if err != nil {
				ended <- err
				return
			}
			if ev.Stdout != nil {
				said <- struct{}{} // and waits again
			}
		}
	}()
	<-said
	c.Close()
	c.Close() // twice is allowed
	select {
	case err := <-ended:
		if wrenn.CodeOf(err) != wrenn.FailedPrecondition {
			t.Errorf("the stream ended with %v", err)
		}
	case <-time.After(deadline):
		t.Fatal("the stream goes on")
	}
	if _, err := c.Exec(t.Context(), wrenn.ExecCommand{Cmd: "true"}); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("afterwards: %v", err)
	}
}

// What is not text is refused, not changed.
func TestCommandThatIsNotText(t *testing.T) {
	c, _ := newGuest(t)
	for name, cmd := range map[string]wrenn.ExecCommand{
		"argument":    {Cmd: "echo", Args: []string{"fine", "\xff"}},
		"path":        {Cmd: "/bin/\xff"},
		"directory":   {Cmd: "true", Cwd: "/tmp/\xff"},
		"environment": {Cmd: "true", Env: map[string]string{"A": "\xff"}},
	} {
		if _, err := c.Exec(t.Context(), cmd); wrenn.CodeOf(err) != wrenn.Invalid || !strings.Contains(err.Error(), "UTF-8") {
			t.Errorf("%s: Exec() = %v", name, err)
		}
	}
}
