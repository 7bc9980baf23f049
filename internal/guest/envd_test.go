package guest_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev/proto/gen/envd/process"
	"wrenn.dev/proto/gen/envd/process/processconnect"
)

// patience bounds how long these tests wait. It does not say how fast
// things are: the machine may be slow and busy.
const patience = 60 * time.Second

// envdPath is the real envd, built by TestMain.
var envdPath string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "envd-test-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	envdPath = filepath.Join(dir, "envd")
	build := exec.Command("go", "build", "-o", envdPath, "wrenn.dev/cmd/envd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("build envd: %v\n%s", err, out))
	}
	m.Run()
}

// envd is a running one.
type envd struct {
	base string
	pid  int
	http *http.Client
	processconnect.ProcessClient
}

// startEnvd runs the binary on a free port until the test ends, and checks
// that it then ends by itself.
func startEnvd(t *testing.T) *envd {
	t.Helper()
	return startEnvdWith(t, "-outside-guest")
}

func startEnvdWith(t *testing.T, flags ...string) *envd {
	t.Helper()
	cmd := exec.Command(envdPath, append([]string{"-listen", "127.0.0.1:0"}, flags...)...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address, logged := readAddress(t, stderr)
	transport := &http.Transport{}
	client := &http.Client{Transport: transport}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		killer := time.AfterFunc(patience, func() {
			t.Error("envd does not end on SIGTERM")
			cmd.Process.Kill()
		})
		defer killer.Stop()
		<-logged
		if err := cmd.Wait(); err != nil {
			t.Errorf("envd: %v", err)
		}
	})
	base := "http://" + address
	return &envd{base: base, pid: cmd.Process.Pid, http: client, ProcessClient: processconnect.NewProcessClient(client, base)}
}

// readAddress returns the address that envd logs, and a channel that is
// closed at the end of its log.
func readAddress(t *testing.T, stderr io.Reader) (string, <-chan struct{}) {
	t.Helper()
	lines := bufio.NewScanner(stderr)
	ready := regexp.MustCompile(`msg="envd is ready".* address=(\S+)`)
	for lines.Scan() {
		if m := ready.FindStringSubmatch(lines.Text()); m != nil {
			logged := make(chan struct{})
			go func() {
				defer close(logged)
				for lines.Scan() {
				}
			}()
			return m[1], logged
		}
		t.Log(lines.Text())
	}
	t.Fatal("envd did not become ready")
	return "", nil
}

// result is all that a stream said.
type result struct {
	pid                 uint32
	stdout, stderr, pty bytes.Buffer
	keepalives          int
	end                 *process.ProcessEvent_EndEvent
}

// stream is what Start and Connect return.
type stream interface {
	Receive() bool
	Err() error
	Close() error
}

// next returns the next event, nil at the end of the stream.
func next(s stream) *process.ProcessEvent {
	if !s.Receive() {
		return nil
	}
	switch s := s.(type) {
	case *connect.ServerStreamForClient[process.StartResponse]:
		return s.Msg().GetEvent()
	case *connect.ServerStreamForClient[process.ConnectResponse]:
		return s.Msg().GetEvent()
	}
	return nil
}

// collect reads a stream to its end. The end event must come, and be the last.
func collect(t *testing.T, s stream) *result {
	t.Helper()
	r, err := readAll(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func readAll(s stream) (*result, error) {
	defer s.Close()
	r := &result{}
	for ev := next(s); ev != nil; ev = next(s) {
		if r.end != nil {
			return nil, fmt.Errorf("%v after the end", ev)
		}
		if (r.pid == 0) != (ev.GetStart() != nil) {
			return nil, fmt.Errorf("the first event, and only it, must be start: got %v", ev)
		}
		r.add(ev)
	}
	if err := s.Err(); err != nil {
		return r, err
	}
	if r.end == nil {
		return r, errors.New("the stream ended without an end event")
	}
	return r, nil
}

func (r *result) add(ev *process.ProcessEvent) {
	switch {
	case ev.GetStart() != nil:
		r.pid = ev.GetStart().GetPid()
	case ev.GetEnd() != nil:
		r.end = ev.GetEnd()
	case ev.GetKeepalive() != nil:
		r.keepalives++
	}
	r.stdout.Write(ev.GetData().GetStdout())
	r.stderr.Write(ev.GetData().GetStderr())
	r.pty.Write(ev.GetData().GetPty())
}

// sh is a request to run a script, without input.
func sh(script string) *process.StartRequest {
	return &process.StartRequest{
		Process: &process.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", script}},
		Stdin:   new(false),
	}
}

// begin starts req and returns its stream after the start event.
func (e *envd) begin(t *testing.T, ctx context.Context, req *process.StartRequest) (stream, uint32) {
	t.Helper()
	s, err := e.Start(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	ev := next(s)
	if ev.GetStart() == nil {
		t.Fatalf("first event is %v (%v), want start", ev, s.Err())
	}
	return s, ev.GetStart().GetPid()
}

// run runs req to its end.
func (e *envd) run(t *testing.T, req *process.StartRequest) *result {
	t.Helper()
	s, err := e.Start(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return collect(t, s)
}

// as returns a context whose calls name a user.
func as(ctx context.Context, user string) context.Context {
	ctx, call := connect.NewClientContext(ctx)
	call.RequestHeader().Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":")))
	return ctx
}

func byPID(pid uint32) *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: pid}}
}

func byTag(tag string) *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Tag{Tag: tag}}
}

// running reports whether pid is a process that is no zombie.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// procNumber reads "name: number" of /proc/<pid>/file.
func procNumber(t *testing.T, pid int, file, name string) int {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(raw), "\n") {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s in /proc/%d/%s", name, pid, file)
	return 0
}

func (e *envd) fds(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", e.pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// children counts the agent's children, zombies included.
func (e *envd) children(t *testing.T) int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, path := range stats {
		stat, _ := os.ReadFile(path) // it may have ended
		_, rest, _ := strings.Cut(string(stat), ") ")
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == strconv.Itoa(e.pid) { // state, parent
			n++
		}
	}
	return n
}
