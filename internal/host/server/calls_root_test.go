//go:build root

package server_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"wrenn.dev"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/hostwire"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/wire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

func TestExec(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := c.create(t)
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		req  *pb.ExecRequest
		want *pb.ExecResponse
	}{
		"both outputs and a code": {
			&pb.ExecRequest{Cmd: "sh", Args: []string{"-c", "printf out; printf err >&2; exit 3"}},
			&pb.ExecResponse{Stdout: []byte("out"), Stderr: []byte("err"), ExitCode: 3, Status: "exit status 3"},
		},
		"input, binary": {
			&pb.ExecRequest{Cmd: "cat", Stdin: []byte{0, 255, '\n'}},
			&pb.ExecResponse{Stdout: []byte{0, 255, '\n'}, Status: "exit status 0"},
		},
		"environment and directory": {
			&pb.ExecRequest{Cmd: "sh", Args: []string{"-c", `printf %s "$WHO in $PWD"`}, Env: map[string]string{"WHO": "me"}, Cwd: dir},
			&pb.ExecResponse{Stdout: []byte("me in " + dir), Status: "exit status 0"},
		},
		"a signal": {
			&pb.ExecRequest{Cmd: "sh", Args: []string{"-c", "kill -9 $$"}},
			&pb.ExecResponse{ExitCode: -1, Status: "signal: killed"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tc.req.SandboxId, tc.req.User = id, "root"
			tc.want.Reason = pb.ExecEndReason_EXEC_END_REASON_EXITED
			got, err := c.Exec(t.Context(), tc.req)
			testkit.Must(t, err)
			if !proto.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestExecIsBounded(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := c.create(t)
	const limit = 8 << 20
	got, err := c.Exec(t.Context(), &pb.ExecRequest{SandboxId: id, User: "root", Cmd: "head", Args: []string{"-c", fmt.Sprint(limit + 1), "/dev/zero"}, TimeoutSec: 60})
	testkit.Must(t, err)
	if len(got.GetStdout()) != limit || !got.GetTruncated() {
		t.Errorf("%d bytes, truncated %v; want %d that are", len(got.GetStdout()), got.GetTruncated(), limit)
	}
	pid := filepath.Join(t.TempDir(), "pid")
	late, err := c.Exec(t.Context(), &pb.ExecRequest{SandboxId: id, User: "root", Cmd: "sh", Args: []string{"-c", "echo $$ >$0; echo begun; exec sleep 600", pid}, TimeoutSec: 1})
	testkit.Must(t, err)
	want := &pb.ExecResponse{Stdout: []byte("begun\n"), ExitCode: -1, Status: "signal: killed", Reason: pb.ExecEndReason_EXEC_END_REASON_TIMEOUT}
	if !proto.Equal(late, want) {
		t.Errorf("a command that does not end in time: %v, want %v", late, want)
	}
	var n int
	text, err := os.ReadFile(pid)
	testkit.Must(t, err)
	if _, err := fmt.Sscan(string(text), &n); err != nil {
		t.Fatal(err)
	}
	testkit.WaitUntil(t, "the command is gone", func() bool { return syscall.Kill(n, 0) != nil })
	_, err = c.Exec(t.Context(), &pb.ExecRequest{SandboxId: id})
	testkit.WantRPCCode(t, err, connect.CodeInvalidArgument, "cmd is missing")
	_, err = c.Exec(t.Context(), &pb.ExecRequest{SandboxId: id, Cmd: "/no/such/program", User: "root"})
	testkit.WantRPCCode(t, err, connect.CodeNotFound, "/no/such/program")
	_, err = c.Exec(t.Context(), &pb.ExecRequest{SandboxId: id, Cmd: "true", User: "no-such-user"})
	testkit.WantRPCCode(t, err, connect.CodeInvalidArgument, "no-such-user")
	_, err = c.Exec(t.Context(), &pb.ExecRequest{SandboxId: id, Cmd: "cat", Stdin: make([]byte, 18<<20)})
	testkit.WantRPCCode(t, err, connect.CodeResourceExhausted, "")
}

// TestWhatAGuestCannotDo: its full disk is no limit of the host, and a read that
// fails no silence.
func TestWhatAGuestCannotDo(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := c.create(t)
	small := t.TempDir()
	testkit.Must(t, syscall.Mount("tmpfs", small, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { _ = syscall.Unmount(small, syscall.MNT_DETACH) })
	_, err := c.WriteFile(t.Context(), &pb.WriteFileRequest{SandboxId: id, Path: filepath.Join(small, "file"), User: "root", Content: make([]byte, 1<<20)})
	testkit.WantCode(t, wire.FromConnect("host", err), wrenn.NoSpace)
	testkit.WantRPCCode(t, err, connect.CodeResourceExhausted, "no space left on device") // what older peers read
	_, err = c.ReadFile(t.Context(), &pb.ReadFileRequest{SandboxId: id, Path: "/proc/self/mem", User: "root"})
	testkit.WantCode(t, wire.FromConnect("host", err), wrenn.GuestFailed)
	testkit.WantRPCCode(t, err, connect.CodeFailedPrecondition, "input/output error")
	_, err = c.ReadFile(t.Context(), &pb.ReadFileRequest{SandboxId: id, Path: "/etc/passwd", User: "no-such-user"})
	testkit.WantRPCCode(t, err, connect.CodeInvalidArgument, "no-such-user")
}

// TestAPauseSaysThatItCut: streams and files that are open end with it.
func TestAPauseSaysThatItCut(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := c.create(t)
	stream, err := c.ExecStream(t.Context())
	testkit.Must(t, err)
	testkit.Must(t, stream.Send(hostwire.ExecStart(wrenn.SandboxID(id), wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "sleep", Args: []string{"600"}, User: "root"}})))
	_, err = stream.Receive()
	testkit.Must(t, err)
	upload, err := c.WriteFileStream(t.Context())
	testkit.Must(t, err)
	testkit.Must(t, upload.Send(meta(id, filepath.Join(t.TempDir(), "file"))))
	testkit.Must(t, upload.Send(chunk(make([]byte, 1<<20))))
	_, err = c.PauseSandbox(t.Context(), &pb.PauseSandboxRequest{SandboxId: id})
	testkit.Must(t, err)
	for err == nil {
		_, err = stream.Receive()
	}
	testkit.WantCode(t, wire.FromConnect("host", err), wrenn.CutByPause, "resume it")
	for err = nil; err == nil; {
		err = upload.Send(chunk(make([]byte, 1<<16)))
	}
	_, err = upload.CloseAndReceive()
	testkit.WantCode(t, wire.FromConnect("host", err), wrenn.CutByPause, "resume it")
}

func TestSignalOfNoProcess(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := c.create(t)
	_, err := c.SignalProcess(t.Context(), &pb.SignalProcessRequest{SandboxId: id, Pid: 1 << 30, Signal: pb.Signal_SIGNAL_SIGTERM})
	testkit.WantRPCCode(t, err, connect.CodeNotFound, "")
	_, err = c.SignalProcess(t.Context(), &pb.SignalProcessRequest{SandboxId: id, Pid: 1})
	testkit.WantRPCCode(t, err, connect.CodeInvalidArgument, "")
}

const smallFile = 16 << 20

func meta(id, path string) *pb.WriteFileStreamRequest {
	return &pb.WriteFileStreamRequest{Part: &pb.WriteFileStreamRequest_Meta{Meta: &pb.WriteFileMeta{SandboxId: id, Path: path, User: "root"}}}
}

func chunk(p []byte) *pb.WriteFileStreamRequest {
	return &pb.WriteFileStreamRequest{Part: &pb.WriteFileStreamRequest_Chunk{Chunk: p}}
}

func TestSmallFiles(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := c.create(t)
	path := filepath.Join(t.TempDir(), "file")
	for name, content := range map[string][]byte{"binary": {0, 255, '\n'}, "empty": {}, "as large as may be": bytes.Repeat([]byte("x"), smallFile)} {
		_, err := c.WriteFile(t.Context(), &pb.WriteFileRequest{SandboxId: id, User: "root", Path: path, Content: content})
		testkit.Must(t, err)
		got, err := c.ReadFile(t.Context(), &pb.ReadFileRequest{SandboxId: id, User: "root", Path: path})
		testkit.Must(t, err)
		if !bytes.Equal(got.GetContent(), content) {
			t.Errorf("%s: %d bytes came back of %d", name, len(got.GetContent()), len(content))
		}
	}
	_, err := c.WriteFile(t.Context(), &pb.WriteFileRequest{SandboxId: id, User: "root", Path: path, Content: make([]byte, smallFile+1)})
	testkit.WantRPCCode(t, err, connect.CodeResourceExhausted, "stream it")
	testkit.Must(t, os.Truncate(path, smallFile+1))
	_, err = c.ReadFile(t.Context(), &pb.ReadFileRequest{SandboxId: id, User: "root", Path: path})
	testkit.WantRPCCode(t, err, connect.CodeResourceExhausted, "stream it")
	_, err = c.ReadFile(t.Context(), &pb.ReadFileRequest{SandboxId: id, User: "root", Path: "/no/such/file"})
	testkit.WantRPCCode(t, err, connect.CodeNotFound, "/no/such/file")
	_, err = c.ReadFile(t.Context(), &pb.ReadFileRequest{SandboxId: id, User: "root", Path: filepath.Dir(path)})
	testkit.WantRPCCode(t, err, connect.CodeInvalidArgument, "directory")
	_, err = c.WriteFile(t.Context(), &pb.WriteFileRequest{SandboxId: id, User: "root", Path: filepath.Dir(path)})
	testkit.WantRPCCode(t, err, connect.CodeInvalidArgument, "directory")
}

func TestStreamedFiles(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := c.create(t)
	path := filepath.Join(t.TempDir(), "file")
	content := bytes.Repeat([]byte("0123456789abcde\n"), (smallFile+1<<20)/16)
	up, err := c.WriteFileStream(t.Context())
	testkit.Must(t, err)
	testkit.Must(t, up.Send(meta(id, path)))
	for rest := content; len(rest) > 0; {
		n := min(100_000, len(rest))
		testkit.Must(t, up.Send(chunk(rest[:n])))
		rest = rest[n:]
	}
	_, err = up.CloseAndReceive()
	testkit.Must(t, err)
	down, err := c.ReadFileStream(t.Context(), &pb.ReadFileStreamRequest{SandboxId: id, User: "root", Path: path})
	testkit.Must(t, err)
	defer down.Close()
	var got bytes.Buffer
	for down.Receive() {
		got.Write(down.Msg().GetChunk())
	}
	testkit.Must(t, down.Err())
	if !bytes.Equal(got.Bytes(), content) {
		t.Errorf("%d bytes came back of %d", got.Len(), len(content))
	}
	missing, err := c.ReadFileStream(t.Context(), &pb.ReadFileStreamRequest{SandboxId: id, User: "root", Path: "/no/such/file"})
	testkit.Must(t, err)
	defer missing.Close()
	if missing.Receive() {
		t.Error("a file that is not there has content")
	}
	testkit.WantRPCCode(t, missing.Err(), connect.CodeNotFound, "/no/such/file")
}

// An upload that does not keep to the order, or breaks off, changes nothing.
func TestUploadsThatGoWrong(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := c.create(t)
	path := filepath.Join(t.TempDir(), "file")
	testkit.Must(t, os.WriteFile(path, []byte("before"), 0o600))
	for name, tc := range map[string]struct {
		parts []*pb.WriteFileStreamRequest
		code  connect.Code
	}{
		"nothing":            {nil, connect.CodeInvalidArgument},
		"content first":      {[]*pb.WriteFileStreamRequest{chunk([]byte("x"))}, connect.CodeInvalidArgument},
		"meta twice":         {[]*pb.WriteFileStreamRequest{meta(id, path), chunk([]byte("x")), meta(id, path)}, connect.CodeInvalidArgument},
		"too much at once":   {[]*pb.WriteFileStreamRequest{meta(id, path), chunk(make([]byte, smallFile+2<<20))}, connect.CodeResourceExhausted},
		"to a directory":     {[]*pb.WriteFileStreamRequest{meta(id, filepath.Dir(path)), chunk([]byte("x"))}, connect.CodeInvalidArgument},
		"of another sandbox": {[]*pb.WriteFileStreamRequest{meta("i0123456789abcdefghij", path)}, connect.CodeNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			stream, err := c.WriteFileStream(t.Context())
			testkit.Must(t, err)
			for _, part := range tc.parts {
				if stream.Send(part) != nil {
					break // the answer says why
				}
			}
			_, err = stream.CloseAndReceive()
			testkit.WantRPCCode(t, err, tc.code, "")
		})
	}
	t.Run("a caller that goes away", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stream, err := c.WriteFileStream(ctx)
		testkit.Must(t, err)
		testkit.Must(t, stream.Send(meta(id, path)))
		testkit.Must(t, stream.Send(chunk([]byte("half"))))
		cancel()
		_, err = stream.CloseAndReceive()
		testkit.WantRPCCode(t, err, connect.CodeCanceled, "")
	})
	// Whatever was staged beside it goes, and the file is as it was.
	testkit.WaitUntil(t, "nothing is left beside the file", func() bool {
		entries, err := os.ReadDir(filepath.Dir(path))
		return err == nil && len(entries) == 1
	})
	if text, err := os.ReadFile(path); err != nil || string(text) != "before" {
		t.Errorf("the file is %q, %v", text, err)
	}
}

// At the stop a call that is under way ends well; its sandbox lives on.
func TestStopLetsCallsEnd(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := c.create(t)
	dir := t.TempDir()
	begun, gate := filepath.Join(dir, "begun"), filepath.Join(dir, "gate")
	testkit.Must(t, syscall.Mkfifo(gate, 0o600))
	done := make(chan error, 1)
	go func() {
		got, err := c.Exec(t.Context(), &pb.ExecRequest{SandboxId: id, User: "root", Cmd: "sh", Args: []string{"-c", "touch $0; cat $1", begun, gate}})
		if err == nil && string(got.GetStdout()) != "go on" {
			err = fmt.Errorf("it put out %q", got.GetStdout())
		}
		done <- err
	}()
	testkit.WaitUntil(t, "the command runs", func() bool { _, err := os.Stat(begun); return err == nil })
	stopped := make(chan struct{})
	go func() { defer close(stopped); c.agent.Stop(t) }()
	testkit.WaitUntil(t, "no new command is let in", func() bool {
		_, err := connectTo(t, c.agent).Ping(t.Context(), &pb.PingRequest{})
		return err != nil
	})
	f, err := os.OpenFile(gate, os.O_WRONLY, 0)
	testkit.Must(t, err)
	_, err = io.WriteString(f, "go on")
	testkit.Must(t, err)
	testkit.Must(t, f.Close())
	if err := <-done; err != nil {
		t.Errorf("Exec() = %v", err)
	}
	<-stopped
	c.agent.Start(t)
	got, err := connectTo(t, c.agent).Exec(t.Context(), &pb.ExecRequest{SandboxId: id, User: "root", Cmd: "echo", Args: []string{"here"}})
	if err != nil || !strings.Contains(string(got.GetStdout()), "here") {
		t.Errorf("with the next agent: %v, %v", got, err)
	}
}
