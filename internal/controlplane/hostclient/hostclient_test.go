package hostclient_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/testkit"
)

func serve(t *testing.T, agent *hosttest.Agent, d hostclient.Deadlines) (*hostclient.Client, *hosttest.Server) {
	t.Helper()
	server, err := hosttest.Serve(t.Context(), agent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	c, err := hostclient.New(hostclient.Config{ID: "h1", URL: server.URL(), Deadlines: d})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, server
}

// box makes a sandbox.
func box(t *testing.T, c *hostclient.Client) wrenn.SandboxID {
	t.Helper()
	id := wrenn.NewSandboxID()
	spec := wrenn.SandboxSpec{Template: "base", Size: wrenn.Size{VCPUs: 2, MemoryMiB: 512}, EndOfLife: wrenn.EndOfLife{Timeout: 1500 * time.Millisecond}, Env: map[string]string{"WHO": "me"}}
	if err := c.Create(t.Context(), id, spec, func(string) {}); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestLife(t *testing.T) {
	agent := &hosttest.Agent{}
	c, _ := serve(t, agent, hostclient.Deadlines{})
	info, err := c.Ping(t.Context(), 0)
	if err != nil || info.Instance != "instance-0" || info.Capacity.MemoryMiB != 1<<20 {
		t.Errorf("Ping: %+v, %v", info, err)
	}
	id := box(t, c)
	if got := agent.Timeout(id); got != 2*time.Second {
		t.Errorf("1.5 s came to be %v, want to be rounded up", got)
	}
	for _, step := range []func() error{
		func() error { return c.Pause(t.Context(), id, wrenn.PauseOptions{}) },
		func() error { return c.Resume(t.Context(), id, "") },
		func() error { return c.Extend(t.Context(), id, time.Hour) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	agent.Put("../../etc/passwd", wrenn.ObservedQuarantined)
	inv, err := c.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[wrenn.SandboxID]wrenn.ObservedState{}
	for _, sb := range inv.Sandboxes {
		got[sb.ID] = sb.State
	}
	if diff := cmp.Diff(map[wrenn.SandboxID]wrenn.ObservedState{id: wrenn.ObservedRunning, `"../../etc/passwd"`: wrenn.ObservedQuarantined}, got); diff != "" {
		t.Errorf("inventory (-want +got):\n%s", diff)
	}
	for range 2 {
		if err := c.Destroy(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	testkit.WantCode(t, c.Pause(t.Context(), id, wrenn.PauseOptions{}), wrenn.NotFound)
}

func TestDeadlinesAreOfOperations(t *testing.T) {
	agent := &hosttest.Agent{Before: func(ctx context.Context, method, _ string) error {
		if method == "Ping" || method == "ExecStream" || method == "ReadFileStream" {
			<-ctx.Done()
		}
		return ctx.Err()
	}}
	c, _ := serve(t, agent, hostclient.Deadlines{Ping: time.Millisecond, Start: time.Millisecond, Stall: time.Millisecond})
	_, err := c.Ping(t.Context(), 0)
	testkit.WantCode(t, err, wrenn.DeadlineExceeded)
	if !strings.Contains(err.Error(), "host h1") {
		t.Errorf("%v does not say which host", err)
	}
	id := box(t, c)
	_, err = c.StartExec(t.Context(), id, wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "echo"}})
	testkit.WantCode(t, err, wrenn.DeadlineExceeded)
	_, err = c.Read(t.Context(), id, "", "/dev/zero")
	testkit.WantCode(t, err, wrenn.DeadlineExceeded)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	testkit.WantCode(t, c.Pause(ctx, id, wrenn.PauseOptions{}), wrenn.Canceled)
}

func TestHostThatComesAndGoes(t *testing.T) {
	agent := &hosttest.Agent{}
	c, server := serve(t, agent, hostclient.Deadlines{})
	id := box(t, c)
	stream, err := c.StartExec(t.Context(), id, wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "sleep"}})
	if err != nil {
		t.Fatal(err)
	}
	pid := started(t, stream)
	server.Stop()
	_, err = stream.Receive()
	testkit.WantCode(t, err, wrenn.Unavailable)
	_, err = c.Ping(t.Context(), 0)
	testkit.WantCode(t, err, wrenn.Unavailable)
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	again, err := c.AttachExec(t.Context(), id, wrenn.ExecAttach{PID: pid})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := started(t, again); got != pid {
		t.Errorf("attached to %d, want %d", got, pid)
	}
}

func started(t *testing.T, s *hostclient.ExecStream) int {
	t.Helper()
	out, err := s.Receive()
	if err != nil || out.Started == nil {
		t.Fatalf("first is %+v, %v", out, err)
	}
	return out.Started.PID
}

func TestExec(t *testing.T) {
	c, _ := serve(t, &hosttest.Agent{}, hostclient.Deadlines{})
	id := box(t, c)
	res, err := c.Exec(t.Context(), id, "team", wrenn.ExecCommand{Cmd: "cat", Stdin: []byte("\x00\xff")})
	if err != nil || string(res.Stdout) != "\x00\xff" || res.ExitCode != 0 {
		t.Errorf("got %+v, %v", res, err)
	}
	res, err = c.Exec(t.Context(), id, "team", wrenn.ExecCommand{Cmd: "exit", Args: []string{"3"}})
	if err != nil || res.ExitCode != 3 || res.Status != "exit status 3" {
		t.Errorf("got %+v, %v", res, err)
	}
	_, err = c.Exec(t.Context(), id, "team", wrenn.ExecCommand{Cmd: "nonsense"})
	testkit.WantCode(t, err, wrenn.NotFound)
}

func TestExecStream(t *testing.T) {
	c, _ := serve(t, &hosttest.Agent{}, hostclient.Deadlines{})
	id := box(t, c)
	s, err := c.StartExec(t.Context(), id, wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "cat"}, WantStdin: true})
	if err != nil {
		t.Fatal(err)
	}
	started(t, s)
	sent := make([]byte, 300<<10)
	rand.Read(sent)
	done := make(chan error, 1)
	go func() { done <- errors.Join(s.SendStdin(sent), s.CloseStdin()) }()
	var got bytes.Buffer
	var exit *wrenn.ExecExit
	for {
		out, err := s.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got.Write(out.Stdout)
		exit = out.Exit
	}
	if err := <-done; err != nil || !bytes.Equal(got.Bytes(), sent) || exit == nil || exit.Code != 0 {
		t.Errorf("%d of %d bytes came back, exit %+v, %v", got.Len(), len(sent), exit, err)
	}
	if _, err := s.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	testkit.WantCode(t, s.Signal("SIGSEGV"), wrenn.Invalid)
}

func TestExecStreamSignalsAndCloses(t *testing.T) {
	c, _ := serve(t, &hosttest.Agent{}, hostclient.Deadlines{})
	id := box(t, c)
	s, err := c.StartExec(t.Context(), id, wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "sleep"}})
	if err != nil {
		t.Fatal(err)
	}
	pid := started(t, s)
	_ = s.Close()
	_ = s.Close() // twice is allowed
	if _, err := s.Receive(); err == nil {
		t.Error("a closed stream goes on")
	}
	again, err := c.AttachExec(t.Context(), id, wrenn.ExecAttach{PID: pid})
	if err != nil {
		t.Fatalf("the command did not outlive its stream: %v", err)
	}
	started(t, again)
	if err := again.Signal("SIGKILL"); err != nil {
		t.Fatal(err)
	}
	out, err := again.Receive()
	if err != nil || out.Exit == nil || out.Exit.Status != "signal: killed" {
		t.Errorf("got %+v, %v", out, err)
	}
	_, err = c.AttachExec(t.Context(), id, wrenn.ExecAttach{PID: 7})
	testkit.WantCode(t, err, wrenn.NotFound)
	_, err = c.AttachExec(t.Context(), id, wrenn.ExecAttach{PID: -1})
	testkit.WantCode(t, err, wrenn.Invalid)
}

// TestReceiveEndsWithItsStream: who waits for a silent command is woken.
func TestReceiveEndsWithItsStream(t *testing.T) {
	c, _ := serve(t, &hosttest.Agent{}, hostclient.Deadlines{})
	id := box(t, c)
	for name, end := range map[string]func(*hostclient.ExecStream, context.CancelFunc){
		"closed":            func(s *hostclient.ExecStream, _ context.CancelFunc) { _ = s.Close() },
		"end of its opener": func(_ *hostclient.ExecStream, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s, err := c.StartExec(ctx, id, wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "cat"}, WantStdin: true})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			started(t, s)
			said, received := make(chan struct{}, 1), make(chan error, 1)
			go func() {
				for {
					_, err := s.Receive()
					if err != nil {
						received <- err
						return
					}
					said <- struct{}{} // and waits again
				}
			}()
			if err := s.SendStdin([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			<-said
			end(s, cancel)
			select {
			case err := <-received:
				if err == nil || errors.Is(err, io.EOF) {
					t.Errorf("got %v", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("Receive goes on")
			}
		})
	}
}

func TestSlowReaderHoldsUpTheCommand(t *testing.T) {
	sent := make(chan int, 1<<20)
	agent := &hosttest.Agent{Sent: func(n int) { sent <- n }}
	c, _ := serve(t, agent, hostclient.Deadlines{})
	s, err := c.StartExec(t.Context(), box(t, c), wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "yes"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	started(t, s)
	// The command has no end: that it falls silent is what is wanted.
	total, quiet := 0, time.NewTimer(time.Second)
	for silent := false; !silent; {
		select {
		case n := <-sent:
			total += n
			quiet.Reset(time.Second)
		case <-quiet.C:
			silent = true
		}
		if total > 64<<20 {
			t.Fatal("64 MB went to a reader that does not read")
		}
	}
	for read := 0; read < 4*total; { // and it goes on when read
		out, err := s.Receive()
		if err != nil {
			t.Fatal(err)
		}
		read += len(out.Stdout)
	}
}

// TestStalledReadersHoldUpNoOtherStream is about the window of a connection,
// which all its streams share.
func TestStalledReadersHoldUpNoOtherStream(t *testing.T) {
	const readers = 40
	sent := make(chan int, 1<<20)
	agent := &hosttest.Agent{Sent: func(n int) { sent <- n }}
	c, _ := serve(t, agent, hostclient.Deadlines{})
	id := box(t, c)
	for range readers {
		s, err := c.StartExec(t.Context(), id, wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "yes"}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		r, err := c.Read(t.Context(), id, "", "/dev/zero")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
	}
	for quiet := time.NewTimer(time.Second); ; quiet.Reset(time.Second) {
		select {
		case <-sent:
			continue
		case <-quiet.C:
		}
		break
	}
	if _, err := c.Ping(t.Context(), 0); err != nil {
		t.Errorf("with %d readers that stall: %v", 2*readers, err)
	}
	if res, err := c.Exec(t.Context(), id, "team", wrenn.ExecCommand{Cmd: "echo", Args: []string{"hello"}}); err != nil || string(res.Stdout) != "hello\n" {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestFiles(t *testing.T) {
	c, _ := serve(t, &hosttest.Agent{}, hostclient.Deadlines{})
	id := box(t, c)
	for _, size := range []int{0, 1, 64 << 10, 1<<20 + 1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			want := make([]byte, size)
			rand.Read(want)
			if err := c.Write(t.Context(), id, "", "/f", bytes.NewReader(want)); err != nil {
				t.Fatal(err)
			}
			r, err := c.Read(t.Context(), id, "", "/f")
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if err := iotest.TestReader(r, want); size < 1<<16 && err != nil {
				t.Error(err)
			} else if size >= 1<<16 {
				again, _ := c.Read(t.Context(), id, "", "/f")
				defer again.Close()
				var got bytes.Buffer
				if n, err := io.Copy(&got, again); err != nil || int(n) != size || !bytes.Equal(got.Bytes(), want) {
					t.Errorf("%d bytes, %v", n, err)
				}
			}
		})
	}
	_, err := c.Read(t.Context(), id, "", "/missing")
	testkit.WantCode(t, err, wrenn.NotFound)
	testkit.WantCode(t, c.Write(t.Context(), wrenn.NewSandboxID(), "", "/f", strings.NewReader("x")), wrenn.NotFound)
}

func TestBrokenTransfers(t *testing.T) {
	c, _ := serve(t, &hosttest.Agent{}, hostclient.Deadlines{})
	id := box(t, c)
	t.Run("a read that is cut is no whole file", func(t *testing.T) {
		r, err := c.Read(t.Context(), id, "", "/dev/broken")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got, err := io.ReadAll(r)
		if string(got) != "half of it" || wrenn.CodeOf(err) != wrenn.Unavailable {
			t.Errorf("got %q, %v", got, err)
		}
	})
	t.Run("a source that breaks changes nothing", func(t *testing.T) {
		if err := c.Write(t.Context(), id, "", "/f", strings.NewReader("before")); err != nil {
			t.Fatal(err)
		}
		gone := errors.New("the client hung up")
		err := c.Write(t.Context(), id, "", "/f", io.MultiReader(strings.NewReader("half"), iotest.ErrReader(gone)))
		if !errors.Is(err, gone) {
			t.Errorf("got %v", err)
		}
		r, err := c.Read(t.Context(), id, "", "/f")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got, err := io.ReadAll(r); string(got) != "before" || err != nil {
			t.Errorf("the file is %q, %v", got, err)
		}
	})
	t.Run("a reader that closes early", func(t *testing.T) {
		r, err := c.Read(t.Context(), id, "", "/dev/zero")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, r, 1<<20); err != nil {
			t.Fatal(err)
		}
		r.Close()
		if _, err := io.Copy(io.Discard, r); err == nil {
			t.Error("the end of a closed read looks like the end of the file")
		}
	})
}

func TestAddresses(t *testing.T) {
	for url, ok := range map[string]bool{
		"http://127.0.0.1:50051": true, "https://h1.example:50051/": true, "unix:///run/wrenn/agent.sock": true,
		"": false, "127.0.0.1:50051": false, "ftp://x": false, "unix://relative": false, "http://": false,
	} {
		_, err := hostclient.New(hostclient.Config{ID: "h", URL: url})
		if (err == nil) != ok {
			t.Errorf("%q: %v", url, err)
		}
	}
}
