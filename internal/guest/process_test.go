package guest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"wrenn.dev/internal/testkit"
	"wrenn.dev/proto/gen/envd/process"
)

func TestExit(t *testing.T) {
	e := startEnvd(t)
	failed := func(s string) *string { return &s }
	for _, tc := range []struct {
		name, script string
		want         *process.ProcessEvent_EndEvent
	}{
		{"zero", "exit 0", &process.ProcessEvent_EndEvent{Exited: true, Status: "exit status 0"}},
		{"code", "exit 42", &process.ProcessEvent_EndEvent{ExitCode: 42, Exited: true, Status: "exit status 42", Error: failed("exit status 42")}},
		{"killed", "kill -9 $$", &process.ProcessEvent_EndEvent{ExitCode: -1, Status: "signal: killed", Error: failed("signal: killed")}},
		{"terminated", "kill $$", &process.ProcessEvent_EndEvent{ExitCode: -1, Status: "signal: terminated", Error: failed("signal: terminated")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := e.run(t, sh("echo out; echo err >&2; "+tc.script))
			if diff := cmp.Diff(tc.want, r.end, protocmp.Transform()); diff != "" {
				t.Errorf("end mismatch (-want +got):\n%s", diff)
			}
			if r.stdout.String() != "out\n" || r.stderr.String() != "err\n" {
				t.Errorf("stdout %q, stderr %q", &r.stdout, &r.stderr)
			}
		})
	}
}

// The end comes however fast the process is, with all of the output before it.
func TestFastExit(t *testing.T) {
	e := startEnvd(t)
	for i := range 200 {
		req := &process.StartRequest{Process: &process.ProcessConfig{Cmd: "true"}}
		if i%2 == 1 {
			req.Process = &process.ProcessConfig{Cmd: "echo", Args: []string{strconv.Itoa(i)}}
		}
		r := e.run(t, req)
		want := ""
		if i%2 == 1 {
			want = fmt.Sprintf("%d\n", i)
		}
		if r.end.GetExitCode() != 0 || r.stdout.String() != want {
			t.Fatalf("run %d: %v, stdout %q, want %q", i, r.end, &r.stdout, want)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	e := startEnvd(t)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			s, err := e.Start(t.Context(), sh(fmt.Sprintf("echo %d; exit %d", i, i)))
			if err != nil {
				t.Error(err)
				return
			}
			r, err := readAll(s)
			if err != nil || r.end.GetExitCode() != int32(i) || r.stdout.String() != fmt.Sprintf("%d\n", i) {
				t.Errorf("run %d: %v, %+v", i, err, r)
			}
		})
	}
	wg.Wait()
}

// A process in the background holds the pipes, but the end comes; and what it
// writes later does not kill it.
func TestGrandchildHoldsPipes(t *testing.T) {
	e := startEnvd(t)
	marker := filepath.Join(t.TempDir(), "wrote")
	r := e.run(t, sh(`(sleep 2; echo late; echo late >&2; echo done > '`+marker+`'; exec sleep 1000) & echo $!`))
	pid, err := strconv.Atoi(strings.TrimSpace(r.stdout.String()))
	if err != nil {
		t.Fatal(err)
	}
	if !running(pid) {
		t.Fatal("the process in the background ended with its parent")
	}
	testkit.WaitUntil(t, "the process in the background could write after the end", func() bool {
		_, err := os.Stat(marker)
		return err == nil
	})
	if err := kill(pid); err != nil {
		t.Error(err)
	}
}

// Output that goes on after the exit belongs to the process while it is not silent.
func TestGrandchildGoesOnWriting(t *testing.T) {
	e := startEnvd(t)
	r := e.run(t, sh(`trap "exit 0" USR1; (echo 1; kill -USR1 $$; for i in 2 3 4 5; do echo $i; done) & wait; wait`))
	if got := r.stdout.String(); got != "1\n2\n3\n4\n5\n" {
		t.Errorf("stdout = %q", got)
	}
	// One that never stops does not hold up the end.
	r = e.run(t, sh(`yes & echo $! >&2`))
	killLine(t, r.stderr.String())
}

func TestBigOutput(t *testing.T) {
	e := startEnvd(t)
	const size = 64 << 20
	path := randomFile(t, size)
	s, err := e.Start(t.Context(), sh("cat '"+path+"' >&2 & cat '"+path+"'; wait"))
	if err != nil {
		t.Fatal(err)
	}
	out, errOut := sha256.New(), sha256.New()
	for ev := next(s); ev != nil; ev = next(s) {
		data := ev.GetData()
		if n := len(data.GetStdout()) + len(data.GetStderr()); n > 64<<10 {
			t.Fatalf("an event of %d bytes, want 64 KiB at most", n)
		}
		out.Write(data.GetStdout())
		errOut.Write(data.GetStderr())
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	want := fileSum(t, path)
	for name, got := range map[string][]byte{"stdout": out.Sum(nil), "stderr": errOut.Sum(nil)} {
		if hex.EncodeToString(got) != want {
			t.Errorf("%s is not what was written", name)
		}
	}
}

func TestBinaryBytes(t *testing.T) {
	e := startEnvd(t)
	var all []byte
	for i := range 256 {
		all = append(all, byte(i))
	}
	path := filepath.Join(t.TempDir(), "bytes")
	if err := os.WriteFile(path, all, 0o644); err != nil {
		t.Fatal(err)
	}
	if r := e.run(t, sh("cat '"+path+"'")); !bytes.Equal(r.stdout.Bytes(), all) {
		t.Errorf("stdout = %q", &r.stdout)
	}
}

// A reader that does not read stops the program, and costs no memory.
func TestSlowReader(t *testing.T) {
	e := startEnvd(t)
	const size = 256 << 20
	s, pid := e.begin(t, t.Context(), &process.StartRequest{
		Process: &process.ProcessConfig{Cmd: "head", Args: []string{"-c", strconv.Itoa(size), "/dev/zero"}},
	})
	written := func() int { return procNumber(t, int(pid), "io", "wchar") }
	last, same := -1, 0
	testkit.WaitUntil(t, "the program stops writing", func() bool {
		if now := written(); now == last {
			same++
		} else {
			last, same = now, 0
		}
		return same == 30
	})
	if last > size/4 {
		t.Errorf("the program wrote %d bytes to a reader that does not read", last)
	}
	if rss := procNumber(t, e.pid, "status", "VmRSS"); rss > 64<<10 {
		t.Errorf("the agent holds %d KiB", rss)
	}
	got := 0
	for ev := next(s); ev != nil; ev = next(s) {
		got += len(ev.GetData().GetStdout())
	}
	if err := s.Err(); err != nil || got != size {
		t.Errorf("read %d bytes (%v), want %d", got, err, size)
	}
	if rss := procNumber(t, e.pid, "status", "VmHWM"); rss > 64<<10 {
		t.Errorf("the agent held %d KiB at its peak", rss)
	}
}

// The process outlives its client, and does not wait for a reader.
func TestClientGoesAway(t *testing.T) {
	e := startEnvd(t)
	marker := filepath.Join(t.TempDir(), "done")
	ctx, cancel := context.WithCancel(t.Context())
	_, pid := e.begin(t, ctx, sh("head -c 16777216 /dev/zero; echo x > '"+marker+"'; sleep 1000"))
	cancel()
	testkit.WaitUntil(t, "the process writes on", func() bool {
		_, err := os.Stat(marker)
		return err == nil
	})
	s, err := e.Connect(t.Context(), &process.ConnectRequest{Process: byPID(pid)})
	if err != nil {
		t.Fatal(err)
	}
	if ev := next(s); ev.GetStart().GetPid() != pid {
		t.Fatalf("first event of Connect is %v, want start of %d", ev, pid)
	}
	e.signal(t, pid, process.Signal_SIGNAL_SIGKILL)
	for ev := next(s); ev != nil; ev = next(s) {
		if ev.GetEnd() != nil && ev.GetEnd().GetStatus() == "signal: killed" {
			return
		}
	}
	t.Errorf("Connect ended with %v, want the end event", s.Err())
}

// The end of a process can be asked for after it came.
func TestLateConnect(t *testing.T) {
	e := startEnvd(t)
	req := sh("exit 5")
	req.Tag = new("job")
	r := e.run(t, req)
	for name, sel := range map[string]*process.ProcessSelector{"pid": byPID(r.pid), "tag": byTag("job")} {
		s, err := e.Connect(t.Context(), &process.ConnectRequest{Process: sel})
		if err != nil {
			t.Fatal(err)
		}
		late := collect(t, s)
		if diff := cmp.Diff(r.end, late.end, protocmp.Transform()); diff != "" || late.pid != r.pid {
			t.Errorf("by %s: pid %d, want %d; end mismatch (-want +got):\n%s", name, late.pid, r.pid, diff)
		}
	}
	for name, call := range e.calls(t, byPID(r.pid)) {
		if err := call(); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("%s after the end: %v, want not_found", name, err)
		}
	}
}

// calls are the RPCs that need a running process.
func (e *envd) calls(t *testing.T, sel *process.ProcessSelector) map[string]func() error {
	t.Helper()
	ctx := t.Context()
	return map[string]func() error{
		"SendSignal": func() error {
			_, err := e.SendSignal(ctx, &process.SendSignalRequest{Process: sel, Signal: process.Signal_SIGNAL_SIGTERM})
			return err
		},
		"SendInput": func() error {
			_, err := e.SendInput(ctx, &process.SendInputRequest{Process: sel, Input: stdin("x")})
			return err
		},
		"CloseStdin": func() error {
			_, err := e.CloseStdin(ctx, &process.CloseStdinRequest{Process: sel})
			return err
		},
		"Update": func() error {
			_, err := e.Update(ctx, &process.UpdateRequest{Process: sel, Pty: &process.PTY{}})
			return err
		},
		"StreamInput": func() error {
			in, err := e.StreamInput(ctx)
			if err != nil {
				return err
			}
			_ = in.Send(startInput(sel)) // CloseAndReceive says why it failed
			_, err = in.CloseAndReceive()
			return err
		},
	}
}

func TestUnknownProcess(t *testing.T) {
	e := startEnvd(t)
	for _, sel := range []*process.ProcessSelector{byPID(1 << 30), byTag("none")} {
		for name, call := range e.calls(t, sel) {
			if err := call(); connect.CodeOf(err) != connect.CodeNotFound {
				t.Errorf("%s(%v) = %v, want not_found", name, sel, err)
			}
		}
		s, err := e.Connect(t.Context(), &process.ConnectRequest{Process: sel})
		if err != nil {
			t.Fatal(err)
		}
		if next(s) != nil || connect.CodeOf(s.Err()) != connect.CodeNotFound {
			t.Errorf("Connect(%v) = %v, want not_found", sel, s.Err())
		}
	}
	if err := e.calls(t, nil)["SendInput"](); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("SendInput to no process = %v, want invalid_argument", err)
	}
}

func TestList(t *testing.T) {
	e := startEnvd(t)
	req := sh("sleep 1000")
	req.Tag, req.Process.Envs, req.Process.Cwd = new("sleeper"), map[string]string{"A": "b"}, new("/")
	_, pid := e.begin(t, t.Context(), req)
	e.run(t, sh("exit 0"))
	got, err := e.List(t.Context(), &process.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := &process.ListResponse{Processes: []*process.ProcessInfo{{Config: req.GetProcess(), Pid: pid, Tag: req.Tag}}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("List() mismatch (-want +got):\n%s", diff)
	}
	if _, err := e.SendSignal(t.Context(), &process.SendSignalRequest{Process: byTag("sleeper"), Signal: process.Signal_SIGNAL_SIGTERM}); err != nil {
		t.Error(err)
	}
	testkit.WaitUntil(t, "the list is empty", func() bool {
		got, err := e.List(t.Context(), &process.ListRequest{})
		return err == nil && len(got.GetProcesses()) == 0
	})
}

// A signal reaches what the process has started.
func TestSignalReachesGroup(t *testing.T) {
	e := startEnvd(t)
	s, pid := e.begin(t, t.Context(), sh("sleep 1000 & echo $!; wait"))
	child, err := strconv.Atoi(strings.TrimSpace(string(next(s).GetData().GetStdout())))
	if err != nil {
		t.Fatal(err)
	}
	e.signal(t, pid, process.Signal_SIGNAL_SIGTERM)
	testkit.WaitUntil(t, "the child is gone", func() bool { return !running(child) })
	if ev := next(s); ev.GetEnd().GetStatus() != "signal: terminated" {
		t.Errorf("end = %v, want terminated", ev)
	}
	_, pid = e.begin(t, t.Context(), sh("exec sleep 1000"))
	_, err = e.SendSignal(t.Context(), &process.SendSignalRequest{Process: byPID(pid)})
	if connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("SendSignal without signal = %v, want invalid_argument", err)
	}
	e.signal(t, pid, process.Signal_SIGNAL_SIGKILL)
	_, err = e.SendSignal(t.Context(), &process.SendSignalRequest{Process: byPID(pid), Signal: process.Signal_SIGNAL_SIGKILL})
	if connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("the second SIGKILL = %v, want not_found", err)
	}
}

func (e *envd) signal(t *testing.T, pid uint32, sig process.Signal) {
	t.Helper()
	if _, err := e.SendSignal(t.Context(), &process.SendSignalRequest{Process: byPID(pid), Signal: sig}); err != nil {
		t.Fatal(err)
	}
}

// The deadline of Start kills the process and what it started.
func TestDeadline(t *testing.T) {
	e := startEnvd(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	s, pid := e.begin(t, ctx, sh("sleep 1000 & wait"))
	for ev := next(s); ev != nil; ev = next(s) {
		t.Errorf("event %v, want none", ev)
	}
	if connect.CodeOf(s.Err()) != connect.CodeDeadlineExceeded {
		t.Errorf("stream ended with %v, want deadline_exceeded", s.Err())
	}
	testkit.WaitUntil(t, "the process is dead", func() bool { return !running(int(pid)) })
	late, err := e.Connect(t.Context(), &process.ConnectRequest{Process: byPID(pid)})
	if err != nil {
		t.Fatal(err)
	}
	if r := collect(t, late); r.end.GetStatus() != "signal: killed" {
		t.Errorf("end = %v, want killed", r.end)
	}
}

// … also when the client left before it.
func TestDeadlineAfterClientLeft(t *testing.T) {
	e := startEnvd(t)
	timeout, cancelTimeout := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancelTimeout()
	ctx, cancel := context.WithCancel(timeout)
	_, pid := e.begin(t, ctx, sh("exec sleep 1000"))
	cancel()
	if !running(int(pid)) {
		t.Error("the process died with its client")
	}
	testkit.WaitUntil(t, "the process is dead", func() bool { return !running(int(pid)) })
}

func TestKeepalive(t *testing.T) {
	e := startEnvd(t)
	ctx, call := connect.NewClientContext(t.Context())
	call.RequestHeader().Set("Keepalive-Ping-Interval", "1")
	s, err := e.Start(ctx, sh("sleep 3"))
	if err != nil {
		t.Fatal(err)
	}
	if r := collect(t, s); r.keepalives == 0 {
		t.Error("no keepalive in 3 s of silence")
	}
}

func TestStartRefuses(t *testing.T) {
	e := startEnvd(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"script": "#!/no/such/interpreter\n", "text": "neither ELF nor script", "plain": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "plain"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := e.fds(t)
	for _, tc := range []struct {
		name, cmd, cwd, user string
		code                 connect.Code
		message              string
	}{
		{"not in PATH", "no-such-command", "", "", connect.CodeNotFound, "command 'no-such-command' not found"},
		{"not there", "/no/such", "", "", connect.CodeNotFound, "command '/no/such' not found"},
		{"in a file", dir + "/text/x", "", "", connect.CodeNotFound, "not found"},
		{"interpreter", dir + "/script", "", "", connect.CodeInvalidArgument, "interpreter"},
		{"no program", dir + "/text", "", "", connect.CodeInvalidArgument, "is not a program"},
		{"not executable", dir + "/plain", "", "", connect.CodePermissionDenied, "may not run"},
		{"no command", "", "", "", connect.CodeInvalidArgument, "no command"},
		{"cwd", "true", "/no/where", "", connect.CodeInvalidArgument, "cwd '/no/where' does not exist"},
		{"user", "true", "", "no-such-user", connect.CodeUnauthenticated, "invalid username: 'no-such-user'"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := t.Context()
			if tc.user != "" {
				ctx = as(ctx, tc.user)
			}
			s, err := e.Start(ctx, &process.StartRequest{Process: &process.ProcessConfig{Cmd: tc.cmd, Cwd: &tc.cwd}})
			if err != nil {
				t.Fatal(err)
			}
			_, err = readAll(s)
			if connect.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.message) {
				t.Errorf("Start() = %v, want %v with %q", err, tc.code, tc.message)
			}
		})
	}
	testkit.WaitUntil(t, "nothing is left of what was refused", func() bool { return e.fds(t) <= before+1 })
}

func TestEnvironmentAndDirectory(t *testing.T) {
	e := startEnvd(t)
	e.init(t, `{"envVars":{"GLOBAL":"g","BOTH":"global"},"defaultWorkdir":"/usr"}`)
	r := e.run(t, &process.StartRequest{Process: &process.ProcessConfig{
		Cmd: "sh", Args: []string{"-c", `echo "$GLOBAL $BOTH $HOME $USER $LOGNAME"; pwd`}, Envs: map[string]string{"BOTH": "request"},
	}})
	who := e.run(t, sh("id -un; echo ~"))
	name, home, _ := strings.Cut(strings.TrimSpace(who.stdout.String()), "\n")
	if got, want := r.stdout.String(), fmt.Sprintf("g request %s %s %s\n/usr\n", home, name, name); got != want {
		t.Errorf("stdout = %q, want %q", got, want)
	}
}

// Programs do not inherit what is the agent's: its files, its group, its OOM score.
func TestInherited(t *testing.T) {
	e := startEnvd(t)
	r := e.run(t, sh("cat /proc/self/oom_score_adj; ls /proc/self/fd | wc -l; ps -o pgid= -o sid= -p $$; echo $$"))
	lines := strings.Split(strings.TrimSpace(r.stdout.String()), "\n")
	pid := strconv.Itoa(int(r.pid))
	var flat []string
	for _, line := range lines {
		flat = append(flat, strings.Fields(line)...)
	}
	// 0, 1, 2 and the directory that ls reads.
	if want := []string{"100", "4", pid, pid, pid}; !slices.Equal(flat, want) {
		t.Errorf("score, files, group, session, pid = %q, want %q", flat, want)
	}
	if own, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", e.pid)); err != nil || string(own) == "100\n" {
		t.Errorf("the agent's own score is %q (%v)", own, err)
	}
}

// Nothing is left of a thousand programs.
func TestThousandStarts(t *testing.T) {
	e := startEnvd(t)
	warm := func(n int) {
		for range n {
			if r := e.run(t, &process.StartRequest{Process: &process.ProcessConfig{Cmd: "true"}}); r.end.GetExitCode() != 0 {
				t.Fatalf("end = %v", r.end)
			}
		}
	}
	warm(20)
	fds, threads := e.fds(t), procNumber(t, e.pid, "status", "Threads")
	warm(1000)
	testkit.WaitUntil(t, "no file is left", func() bool { return e.fds(t) <= fds })
	if now := procNumber(t, e.pid, "status", "Threads"); now > threads+8 {
		t.Errorf("%d threads, %d before", now, threads)
	}
	if n := e.children(t); n != 0 {
		t.Errorf("%d children are left", n)
	}
	if rss := procNumber(t, e.pid, "status", "VmHWM"); rss > 64<<10 {
		t.Errorf("the agent held %d KiB at its peak", rss)
	}
}

func randomFile(t *testing.T, size int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "random")
	data := make([]byte, size)
	rand.Read(data)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func fileSum(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func kill(pid int) error {
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return p.Kill()
}

// killLine kills the process whose pid is the line.
func killLine(t *testing.T, line string) {
	t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := kill(pid); err != nil {
		t.Error(err)
	}
}

// Without a cgroup the end of a command is the end of its session, with the
// process groups in it.
func TestEndOfCommandIsEndOfSession(t *testing.T) {
	e := startEnvd(t)
	for _, sig := range []process.Signal{process.Signal_SIGNAL_SIGKILL, process.Signal_SIGNAL_SIGTERM} {
		s, pid := e.begin(t, t.Context(), sh(`exec 2>/dev/null; set -m; (trap "" TERM HUP; echo $(exec sh -c 'echo $PPID'); sleep 1000; sleep 1000) & sleep 1000`))
		child, err := strconv.Atoi(strings.TrimSpace(string(next(s).GetData().GetStdout())))
		if err != nil {
			t.Fatal(err)
		}
		e.signal(t, pid, sig)
		testkit.WaitUntil(t, fmt.Sprintf("after %v the child is gone", sig), func() bool { return !running(child) })
	}
}
