package guest_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev/internal/testkit"
	"wrenn.dev/proto/gen/envd/process"
)

func stdin(text string) *process.ProcessInput {
	return &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: []byte(text)}}
}

func keys(text string) *process.ProcessInput {
	return &process.ProcessInput{Input: &process.ProcessInput_Pty{Pty: []byte(text)}}
}

func startInput(sel *process.ProcessSelector) *process.StreamInputRequest {
	return &process.StreamInputRequest{Event: &process.StreamInputRequest_Start{Start: &process.StreamInputRequest_StartEvent{Process: sel}}}
}

func dataInput(in *process.ProcessInput) *process.StreamInputRequest {
	return &process.StreamInputRequest{Event: &process.StreamInputRequest_Data{Data: &process.StreamInputRequest_DataEvent{Input: in}}}
}

// Without the stdin field there is an input: old clients rely on it.
func TestSendInput(t *testing.T) {
	e := startEnvd(t)
	s, pid := e.begin(t, t.Context(), &process.StartRequest{Process: &process.ProcessConfig{Cmd: "cat"}})
	for _, text := range []string{"one\n", "two\x00\xff\n"} {
		if _, err := e.SendInput(t.Context(), &process.SendInputRequest{Process: byPID(pid), Input: stdin(text)}); err != nil {
			t.Fatal(err)
		}
		if got := string(next(s).GetData().GetStdout()); got != text {
			t.Fatalf("cat answered %q, want %q", got, text)
		}
	}
	_, err := e.SendInput(t.Context(), &process.SendInputRequest{Process: byPID(pid), Input: keys("x")})
	if connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("pty input to pipes = %v, want failed_precondition", err)
	}
	_, err = e.SendInput(t.Context(), &process.SendInputRequest{Process: byPID(pid)})
	if connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("no input = %v, want invalid_argument", err)
	}
	if _, err := e.CloseStdin(t.Context(), &process.CloseStdinRequest{Process: byPID(pid)}); err != nil {
		t.Fatal(err)
	}
	if ev := next(s); ev.GetEnd() == nil || ev.GetEnd().GetExitCode() != 0 {
		t.Errorf("after the end of its input cat sent %v, want its end", ev)
	}
}

func TestStreamInput(t *testing.T) {
	e := startEnvd(t)
	s, pid := e.begin(t, t.Context(), &process.StartRequest{Process: &process.ProcessConfig{Cmd: "sha256sum"}})
	in, err := e.StreamInput(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	block := strings.Repeat("x", 1<<20)
	send := func(msg *process.StreamInputRequest) {
		t.Helper()
		if err := in.Send(msg); err != nil {
			t.Fatal(err)
		}
	}
	send(startInput(byPID(pid)))
	for range 32 { // more than one message may hold
		send(dataInput(stdin(block)))
		send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Keepalive{}})
	}
	if _, err := in.CloseAndReceive(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.CloseStdin(t.Context(), &process.CloseStdinRequest{Process: byPID(pid)}); err != nil {
		t.Fatal(err)
	}
	want := e.run(t, sh("head -c 33554432 /dev/zero | tr '\\0' x | sha256sum"))
	if got := string(next(s).GetData().GetStdout()); got != want.stdout.String() {
		t.Errorf("sha256sum saw %q, want %q", got, want.stdout.String())
	}
}

func TestStreamInputRefuses(t *testing.T) {
	e := startEnvd(t)
	_, pid := e.begin(t, t.Context(), &process.StartRequest{Process: &process.ProcessConfig{Cmd: "cat"}})
	for name, messages := range map[string][]*process.StreamInputRequest{
		"data first":  {dataInput(stdin("x"))},
		"start twice": {startInput(byPID(pid)), startInput(byPID(pid))},
	} {
		in, err := e.StreamInput(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, msg := range messages {
			_ = in.Send(msg) // CloseAndReceive says why it failed
		}
		if _, err := in.CloseAndReceive(); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%s: %v, want invalid_argument", name, err)
		}
	}
}

func TestNoStdin(t *testing.T) {
	e := startEnvd(t)
	if r := e.run(t, sh("cat; echo end of input")); r.stdout.String() != "end of input\n" {
		t.Errorf("stdout = %q", &r.stdout)
	}
	_, pid := e.begin(t, t.Context(), sh("sleep 1000"))
	_, err := e.SendInput(t.Context(), &process.SendInputRequest{Process: byPID(pid), Input: stdin("x")})
	if connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("SendInput() = %v, want failed_precondition", err)
	}
}

// Input that the process does not read waits no longer than its caller, and
// holds up neither other calls nor the end.
func TestInputNotRead(t *testing.T) {
	e := startEnvd(t)
	s, pid := e.begin(t, t.Context(), &process.StartRequest{Process: &process.ProcessConfig{Cmd: "sleep", Args: []string{"1000"}}})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	big := &process.SendInputRequest{Process: byPID(pid), Input: stdin(strings.Repeat("x", 1<<20))}
	if _, err := e.SendInput(ctx, big); connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Errorf("SendInput() = %v, want deadline_exceeded", err)
	}
	blocked := make(chan error, 1)
	go func() {
		_, err := e.SendInput(t.Context(), big)
		blocked <- err
	}()
	if _, err := e.List(t.Context(), &process.ListRequest{}); err != nil {
		t.Error(err)
	}
	e.signal(t, pid, process.Signal_SIGNAL_SIGKILL)
	if ev := next(s); ev.GetEnd().GetStatus() != "signal: killed" {
		t.Errorf("end = %v, want killed", ev)
	}
	err := <-blocked
	if code := connect.CodeOf(err); code != connect.CodeFailedPrecondition && code != connect.CodeNotFound {
		t.Errorf("the blocked SendInput() = %v, want failed_precondition or not_found", err)
	}
}

// ptyRequest runs a script in a terminal.
func ptyRequest(script string, cols, rows uint32) *process.StartRequest {
	req := sh(script)
	req.Pty = &process.PTY{Size: &process.PTY_Size{Cols: cols, Rows: rows}}
	return req
}

// expectPTY reads until the terminal showed want, and returns what it showed.
func expectPTY(t *testing.T, s stream, want string) string {
	t.Helper()
	var seen strings.Builder
	for !strings.Contains(seen.String(), want) {
		ev := next(s)
		if ev == nil || ev.GetEnd() != nil {
			t.Fatalf("the terminal showed %q, want %q (%v %v)", seen.String(), want, ev, s.Err())
		}
		if n := len(ev.GetData().GetPty()); n > 16<<10 {
			t.Fatalf("an event of %d bytes, want 16 KiB at most", n)
		}
		seen.Write(ev.GetData().GetPty())
	}
	return seen.String()
}

func TestPTY(t *testing.T) {
	e := startEnvd(t)
	s, pid := e.begin(t, t.Context(), ptyRequest(`stty size; while read line; do echo "got $line"; stty size; done; echo over`, 100, 40))
	expectPTY(t, s, "40 100\r\n")
	if _, err := e.SendInput(t.Context(), &process.SendInputRequest{Process: byPID(pid), Input: keys("hello\n")}); err != nil {
		t.Fatal(err)
	}
	expectPTY(t, s, "got hello\r\n")
	size := &process.PTY{Size: &process.PTY_Size{Cols: 132, Rows: 50}}
	if _, err := e.Update(t.Context(), &process.UpdateRequest{Process: byPID(pid), Pty: size}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.SendInput(t.Context(), &process.SendInputRequest{Process: byPID(pid), Input: keys("again\n")}); err != nil {
		t.Fatal(err)
	}
	expectPTY(t, s, "50 132\r\n")
	for name, call := range map[string]func() error{
		"stdin": func() error {
			_, err := e.SendInput(t.Context(), &process.SendInputRequest{Process: byPID(pid), Input: stdin("x")})
			return err
		},
		"CloseStdin": func() error {
			_, err := e.CloseStdin(t.Context(), &process.CloseStdinRequest{Process: byPID(pid)})
			return err
		},
	} {
		if err := call(); connect.CodeOf(err) != connect.CodeFailedPrecondition {
			t.Errorf("%s on a terminal = %v, want failed_precondition", name, err)
		}
	}
	if _, err := e.SendInput(t.Context(), &process.SendInputRequest{Process: byPID(pid), Input: keys("\x04")}); err != nil {
		t.Fatal(err)
	}
	r, err := readRest(s)
	if err != nil || !strings.HasSuffix(r.pty.String(), "over\r\n") || r.end.GetExitCode() != 0 {
		t.Errorf("rest %q, end %v, %v", &r.pty, r.end, err)
	}
}

// readRest is readAll after the start event.
func readRest(s stream) (*result, error) {
	r := &result{}
	for ev := next(s); ev != nil; ev = next(s) {
		r.add(ev)
	}
	return r, s.Err()
}

// The last bytes of a terminal are not lost when its leader ends.
func TestPTYLastBytes(t *testing.T) {
	e := startEnvd(t)
	for i := range 50 {
		r := e.run(t, ptyRequest("seq 1 3000", 80, 24))
		if !strings.HasSuffix(r.pty.String(), "2999\r\n3000\r\n") || strings.Count(r.pty.String(), "\n") != 3000 {
			t.Fatalf("run %d: %d lines, end %q", i, strings.Count(r.pty.String(), "\n"), tail(r.pty.String()))
		}
	}
}

func tail(s string) string { return s[max(0, len(s)-40):] }

// Other processes with a terminal whose leader has ended get SIGHUP; the end event comes.
func TestPTYGrandchild(t *testing.T) {
	e := startEnvd(t)
	r := e.run(t, ptyRequest(`sleep 1000 & echo "pid=$!."`, 80, 24))
	var pid int
	if _, err := fmt.Sscanf(r.pty.String(), "pid=%d.", &pid); err != nil {
		t.Fatalf("%q: %v", &r.pty, err)
	}
	testkit.WaitUntil(t, "the process in the background is hung up", func() bool { return !running(pid) })
}

func TestResizeRefuses(t *testing.T) {
	e := startEnvd(t)
	_, pid := e.begin(t, t.Context(), sh("sleep 1000"))
	_, err := e.Update(t.Context(), &process.UpdateRequest{Process: byPID(pid), Pty: &process.PTY{}})
	if connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("Update() without a terminal = %v, want failed_precondition", err)
	}
	s, err := e.Start(t.Context(), ptyRequest("true", 1<<20, 1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readAll(s); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("Start() with a huge terminal = %v, want invalid_argument", err)
	}
}
