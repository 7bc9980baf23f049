//go:build root && vm

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/hostagent/v1"
	"wrenn.dev/proto/gen/hostagent/v1/hostagentv1connect"
)

// agent is a host agent that serves in the test's own state directory.
type agent struct {
	*child // nil until the agent is started

	dir    string
	prefix string
	rpc    hostagentv1connect.HostAgentServiceClient
	config string
}

func newAgent(t *testing.T) *agent {
	t.Helper()
	return newAgentOn(t, "wagent", "10.219.0.0/16")
}

// newAgentOn prepares an agent with the caller's names and addresses for slots:
// two agents at the same time need different ones.
func newAgentOn(t *testing.T, prefix, addresses string) *agent {
	t.Helper()
	images := needed(t, "WRENN_TEST_IMAGES") // first, because nothing must be cleaned up yet when it skips the test
	dir, err := os.MkdirTemp("", "wa")       //nolint:usetesting // t.TempDir's names are too long for a machine
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{dir: dir, prefix: prefix, config: filepath.Join(dir, "agent.toml")}
	t.Cleanup(func() { a.remove(t) })
	vmm := driver()
	text := fmt.Sprintf(`
state = %q
run = %q
images = %q
metrics = "off"
[driver]
name = %q
qemu = %q
firecracker = %q
jailer = %q
[log]
level = "DEBUG"
[network]
range = %q
prefix = %q
ready = 1
[warm]
memory_mb = 128
[ready]
machines = 0
[templates]
registries = ["127.0.0.1"]
`, filepath.Join(dir, "state"), filepath.Join(dir, "run"), images, vmm.Name, vmm.QEMU, vmm.Firecracker, vmm.Jailer, addresses, prefix)
	if err := os.WriteFile(a.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "run", "agent.sock")
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	a.rpc = hostagentv1connect.NewHostAgentServiceClient(&http.Client{Transport: &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}, "http://agent")
	return a
}

// start starts the agent and returns when it answers.
func (a *agent) start(t *testing.T, env ...string) {
	t.Helper()
	cmd := exec.Command(hostAgent(t), "serve", "--config", a.config)
	cmd.Env = append(os.Environ(), env...)
	a.child = startChild(t, cmd)
	deadline := time.Now().Add(patience)
	for {
		_, err := a.rpc.Ping(t.Context(), &pb.PingRequest{})
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the agent does not answer (%v); it printed:\n%s", err, a.out)
		}
		select {
		case <-a.ended:
			t.Fatalf("the agent ended; it printed:\n%s", a.out)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// remove stops the agent and runs another one with --drain, which must succeed and leave nothing.
func (a *agent) remove(t *testing.T) {
	t.Helper()
	if a.child != nil {
		if t.Failed() {
			t.Logf("the agent printed:\n%s", a.out)
		}
		_ = a.cmd.Process.Kill() // it may have ended
		<-a.ended
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	drain := exec.CommandContext(ctx, hostAgent(t), "serve", "--config", a.config, "--drain")
	out := newWatched()
	drain.Stdout, drain.Stderr = out, out
	if err := drain.Start(); err != nil {
		t.Error(err)
		return
	}
	ended := make(chan error, 1)
	go func() { ended <- drain.Wait() }()
	for len(ended) == 0 {
		if _, err := a.rpc.Ping(ctx, &pb.PingRequest{}); err == nil || ctx.Err() != nil {
			break
		}
		time.Sleep(50 * time.Millisecond) // polling with a deadline
	}
	_ = drain.Process.Signal(syscall.SIGTERM)
	if err := <-ended; err != nil {
		t.Errorf("drain: %v\n%s", err, out)
	}
	if left, _ := filepath.Glob("/run/netns/" + a.prefix + "-*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := os.RemoveAll(a.dir); err != nil {
		t.Error(err)
	}
}

func (a *agent) create(t *testing.T, timeout uint32) string {
	t.Helper()
	resp, err := a.rpc.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{
		SandboxId: string(wrenn.NewSandboxID()), MemoryMb: 128, TimeoutSec: timeout, Env: map[string]string{"COLOR": "blue"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetSandboxId()
}

func (a *agent) sh(t *testing.T, id, script string) *pb.ExecResponse {
	t.Helper()
	resp, err := a.rpc.Exec(t.Context(), &pb.ExecRequest{SandboxId: id, Cmd: "/bin/sh", Args: []string{"-c", script}, TimeoutSec: 60})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func (a *agent) info(t *testing.T, id string) *pb.SandboxInfo {
	t.Helper()
	resp, err := a.rpc.ListSandboxes(t.Context(), &pb.ListSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, sb := range resp.GetSandboxes() {
		if sb.GetSandboxId() == id {
			return sb
		}
	}
	return nil
}

type execStream = connect.BidiStreamForClientSimple[pb.ExecStreamRequest, pb.ExecStreamResponse]

// stream opens a stream, sends its first message and returns it with the process ID.
func (a *agent) stream(t *testing.T, first *pb.ExecStreamRequest) (*execStream, uint32) {
	t.Helper()
	s, err := a.rpc.ExecStream(t.Context())
	if err == nil {
		err = s.Send(first)
	}
	if err != nil {
		t.Fatal(err)
	}
	msg, err := s.Receive()
	if err != nil || msg.GetStarted() == nil {
		t.Fatalf("first answer = %v, %v, want started", msg, err)
	}
	return s, msg.GetStarted().GetPid()
}

func start(id string, pty *pb.TerminalSize, args ...string) *pb.ExecStreamRequest {
	return &pb.ExecStreamRequest{Event: &pb.ExecStreamRequest_Start{Start: &pb.ExecStart{
		SandboxId: id, Cmd: args[0], Args: args[1:], Stdin: pty == nil, Pty: pty,
	}}}
}

func attach(id string, pid uint32) *pb.ExecStreamRequest {
	return &pb.ExecStreamRequest{Event: &pb.ExecStreamRequest_Attach{Attach: &pb.ExecAttach{SandboxId: id, Pid: pid}}}
}

func stdin(data []byte) *pb.ExecStreamRequest {
	return &pb.ExecStreamRequest{Event: &pb.ExecStreamRequest_Stdin{Stdin: data}}
}

var closeStdin = &pb.ExecStreamRequest{Event: &pb.ExecStreamRequest_StdinClose{StdinClose: true}}

// readUntil collects output until it holds want, or until the exit if that is "".
func readUntil(t *testing.T, s *execStream, want string) (out []byte, exit *pb.ExecExit) {
	t.Helper()
	for {
		msg, err := s.Receive()
		if err != nil {
			t.Fatalf("stream broke: %v; until then: %.500q", err, out)
		}
		if msg.GetExit() != nil {
			return out, msg.GetExit()
		}
		out = append(append(append(out, msg.GetStdout()...), msg.GetStderr()...), msg.GetPty()...)
		if want != "" && bytes.Contains(out, []byte(want)) {
			return out, nil
		}
	}
}

func TestAgentServes(t *testing.T) {
	a := newAgent(t)
	a.start(t)
	began := time.Now()
	id := a.create(t, 0)
	t.Logf("create took %s", time.Since(began))
	t.Run("create again", func(t *testing.T) {
		again, err := a.rpc.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: id, MemoryMb: 128})
		if err != nil || again.GetStatus() != pb.SandboxStatus_SANDBOX_STATUS_RUNNING {
			t.Errorf("CreateSandbox() = %v, %v", again, err)
		}
		_, err = a.rpc.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: id, MemoryMb: 256})
		if connect.CodeOf(err) != connect.CodeAlreadyExists {
			t.Errorf("of another size: %v", err)
		}
	})
	t.Run("exec", func(t *testing.T) {
		r := a.sh(t, id, "echo out $COLOR; echo err >&2; exit 3")
		if string(r.GetStdout()) != "out blue\n" || string(r.GetStderr()) != "err\n" || r.GetExitCode() != 3 {
			t.Errorf("Exec() = %v", r)
		}
		in := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
		r, err := a.rpc.Exec(t.Context(), &pb.ExecRequest{SandboxId: id, Cmd: "cat", Stdin: in})
		if err != nil || !bytes.Equal(r.GetStdout(), in) {
			t.Errorf("cat: %d bytes of %d, %v", len(r.GetStdout()), len(in), err)
		}
		r, err = a.rpc.Exec(t.Context(), &pb.ExecRequest{SandboxId: id, Cmd: "sh", Args: []string{"-c", "echo begun; exec sleep 1000"}, TimeoutSec: 2})
		if err != nil || r.GetReason() != pb.ExecEndReason_EXEC_END_REASON_TIMEOUT || string(r.GetStdout()) != "begun\n" {
			t.Errorf("timeout: %v, %v", r, err)
		}
		if r := a.sh(t, id, "pgrep -x sleep"); r.GetExitCode() == 0 {
			t.Error("the command that timed out still runs")
		}
	})
	t.Run("stream", func(t *testing.T) { testStreams(t, a, id) })
	t.Run("files", func(t *testing.T) { testFiles(t, a, id) })
	t.Run("pause", func(t *testing.T) { testPause(t, a, id) })
	t.Run("timeout", func(t *testing.T) { testTimeout(t, a) })
	if _, err := a.rpc.DestroySandbox(t.Context(), &pb.DestroySandboxRequest{SandboxId: id}); err != nil {
		t.Error(err)
	}
	if a.info(t, id) != nil {
		t.Error("a destroyed sandbox is in the inventory")
	}
}

func testStreams(t *testing.T, a *agent, id string) {
	t.Helper()
	s, _ := a.stream(t, start(id, nil, "cat"))
	payload := make([]byte, 1<<20)
	r := rand.NewChaCha8([32]byte{7})
	_, _ = r.Read(payload)
	go func() {
		for rest := payload; len(rest) > 0; {
			n := min(len(rest), 50_000)
			_ = s.Send(stdin(rest[:n]))
			rest = rest[n:]
		}
		_ = s.Send(closeStdin)
	}()
	out, exit := readUntil(t, s, "")
	if !bytes.Equal(out, payload) || exit.GetExitCode() != 0 {
		t.Errorf("cat gave %d of %d bytes back, exit %v", len(out), len(payload), exit)
	}
	s, pid := a.stream(t, start(id, &pb.TerminalSize{Cols: 80, Rows: 24}, "/bin/sh"))
	_ = s.Send(stdin([]byte("stty size\n")))
	readUntil(t, s, "24 80")
	_ = s.Send(&pb.ExecStreamRequest{Event: &pb.ExecStreamRequest_Resize{Resize: &pb.TerminalSize{Cols: 100, Rows: 30}}})
	_ = s.Send(stdin([]byte("stty size\n")))
	readUntil(t, s, "30 100")
	second, _ := a.stream(t, attach(id, pid)) // the message does not name the kind of input
	_ = second.Send(stdin([]byte("echo at$((40+2))ached\n")))
	readUntil(t, s, "at42ached")
	_ = s.Send(&pb.ExecStreamRequest{Event: &pb.ExecStreamRequest_Signal{Signal: pb.Signal_SIGNAL_SIGKILL}})
	if _, exit := readUntil(t, s, ""); exit.GetExitCode() != -1 {
		t.Errorf("exit = %v, want one by a signal", exit)
	}
}

func testFiles(t *testing.T, a *agent, id string) {
	t.Helper()
	content := make([]byte, 5<<20)
	r := rand.NewChaCha8([32]byte{8})
	_, _ = r.Read(content)
	up, err := a.rpc.WriteFileStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = up.Send(&pb.WriteFileStreamRequest{Part: &pb.WriteFileStreamRequest_Meta{Meta: &pb.WriteFileMeta{SandboxId: id, Path: "/root/big", User: "root"}}})
	for rest := content; len(rest) > 0; rest = rest[min(len(rest), 64<<10):] {
		_ = up.Send(&pb.WriteFileStreamRequest{Part: &pb.WriteFileStreamRequest_Chunk{Chunk: rest[:min(len(rest), 64<<10)]}})
	}
	if _, err := up.CloseAndReceive(); err != nil {
		t.Fatal(err)
	}
	down, err := a.rpc.ReadFileStream(t.Context(), &pb.ReadFileStreamRequest{SandboxId: id, Path: "/root/big", User: "root"})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	for down.Receive() {
		sum.Write(down.Msg().GetChunk())
	}
	if want := sha256.Sum256(content); down.Err() != nil || !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Errorf("read back: %v, or another content", down.Err())
	}
	// An upload that is cut off leaves the old file.
	ctx, cut := context.WithCancel(t.Context())
	up, err = a.rpc.WriteFileStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = up.Send(&pb.WriteFileStreamRequest{Part: &pb.WriteFileStreamRequest_Meta{Meta: &pb.WriteFileMeta{SandboxId: id, Path: "/root/big", User: "root"}}})
	_ = up.Send(&pb.WriteFileStreamRequest{Part: &pb.WriteFileStreamRequest_Chunk{Chunk: []byte("half")}})
	cut()
	_, _ = up.CloseAndReceive()
	if got := a.sh(t, id, "sleep 1; wc -c </root/big; ls /root | wc -l"); string(got.GetStdout()) != "5242880\n1\n" {
		t.Errorf("after a cut upload: %q", got.GetStdout())
	}
	if _, err := a.rpc.WriteFile(t.Context(), &pb.WriteFileRequest{SandboxId: id, Path: "/tmp/small", Content: []byte("a\x00b"), User: "root"}); err != nil {
		t.Error(err)
	}
	if r, err := a.rpc.ReadFile(t.Context(), &pb.ReadFileRequest{SandboxId: id, Path: "/tmp/small"}); err != nil || string(r.GetContent()) != "a\x00b" {
		t.Errorf("ReadFile() = %v, %v", r, err)
	}
	if _, err := a.rpc.ReadFile(t.Context(), &pb.ReadFileRequest{SandboxId: id, Path: "/none"}); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("a missing file: %v", err)
	}
}

func testPause(t *testing.T, a *agent, id string) {
	t.Helper()
	for range 2 {
		if _, err := a.rpc.PauseSandbox(t.Context(), &pb.PauseSandboxRequest{SandboxId: id}); err != nil {
			t.Fatal(err)
		}
	}
	if s := a.info(t, id).GetStatus(); s != pb.SandboxStatus_SANDBOX_STATUS_PAUSED {
		t.Errorf("status = %s", s)
	}
	if _, err := a.rpc.Exec(t.Context(), &pb.ExecRequest{SandboxId: id, Cmd: "true"}); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("Exec() in a paused one = %v", err)
	}
	if _, err := a.rpc.ResumeSandbox(t.Context(), &pb.ResumeSandboxRequest{SandboxId: id}); err != nil {
		t.Fatal(err)
	}
	a.sh(t, id, "true")
}

func testTimeout(t *testing.T, a *agent) {
	t.Helper()
	id := a.create(t, 1)
	testkit.WaitUntil(t, "the sandbox is stopped", func() bool {
		return a.info(t, id).GetStatus() == pb.SandboxStatus_SANDBOX_STATUS_STOPPED
	})
	if r := a.info(t, id).GetReason(); !strings.Contains(r, "not used for 1s") {
		t.Errorf("reason = %q", r)
	}
	if _, err := a.rpc.DestroySandbox(t.Context(), &pb.DestroySandboxRequest{SandboxId: id}); err != nil || a.info(t, id) != nil {
		t.Errorf("DestroySandbox() = %v", err)
	}
}

// The agent stops in the middle of a stream, by SIGTERM and by SIGKILL: the
// command keeps running, and a stream of the next agent continues with it.
func TestAgentRestarts(t *testing.T) {
	a := newAgent(t)
	a.start(t)
	id := a.create(t, 0)
	const script = `i=0; while read line; do i=$((i+1)); echo "$i $line"; done`
	s, pid := a.stream(t, start(id, nil, "/bin/sh", "-c", script))
	_ = s.Send(stdin([]byte("one\n")))
	readUntil(t, s, "1 one\n")
	for n, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		a.stop(t, signal)
		if _, err := s.Receive(); signal == syscall.SIGTERM && connect.CodeOf(err) != connect.CodeUnavailable || err == nil || errors.Is(err, io.EOF) {
			t.Errorf("stream of an agent that stops = %v", err)
		}
		a.start(t)
		if info := a.info(t, id); info.GetStatus() != pb.SandboxStatus_SANDBOX_STATUS_RUNNING {
			t.Fatalf("adopted: %v", info)
		}
		s, _ = a.stream(t, attach(id, pid))
		_ = s.Send(stdin([]byte("again\n")))
		readUntil(t, s, fmt.Sprintf("%d again\n", n+2))
	}
	_ = s.Send(closeStdin)
	if _, exit := readUntil(t, s, ""); exit.GetExitCode() != 0 {
		t.Errorf("exit = %v", exit)
	}
}

// The agent kills itself at each point of making and destroying a sandbox.
// Afterwards the same call succeeds, and nothing else is left.
func TestAgentIsKilledAtEveryStep(t *testing.T) {
	a := newAgent(t)
	a.start(t)
	a.stop(t, syscall.SIGTERM)
	for _, point := range []string{
		"directory made", "slot acquired", "slot recorded", "disk done", "machine started", "machine recorded", "ready done", "running recorded",
		"destroy recorded", "machine stopped", "slot released",
	} {
		t.Run(point, func(t *testing.T) {
			id := string(wrenn.NewSandboxID())
			a.start(t, "WRENN_TEST_CRASH="+point)
			_, err := a.rpc.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: id, MemoryMb: 128})
			if err == nil {
				_, err = a.rpc.DestroySandbox(t.Context(), &pb.DestroySandboxRequest{SandboxId: id})
			}
			if err == nil {
				t.Fatal("the agent did not die")
			}
			a.wait(t)
			a.start(t)
			if _, err := a.rpc.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: id, MemoryMb: 128}); err != nil {
				t.Fatalf("create again: %v", err)
			}
			a.sh(t, id, "true")
			if _, err := a.rpc.DestroySandbox(t.Context(), &pb.DestroySandboxRequest{SandboxId: id}); err != nil {
				t.Error(err)
			}
			inv, err := a.rpc.ListSandboxes(t.Context(), &pb.ListSandboxesRequest{})
			if err != nil || len(inv.GetSandboxes()) != 0 {
				t.Errorf("inventory = %v, %v", inv, err)
			}
			a.stop(t, syscall.SIGTERM)
			if left, _ := filepath.Glob("/run/netns/wagent-*"); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}
