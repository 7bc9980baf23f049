//go:build root

package mcpserver

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"wrenn.dev/client"
	"wrenn.dev/internal/livetest"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/programs"
	"wrenn.dev/internal/testkit"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// agent is a client of a server, whose sandboxes are processes of this machine.
type agent struct {
	t       *testing.T
	session *mcp.ClientSession
}

// connect starts a session in memory.
func connect(t *testing.T, cfg Config) (agent, *Server) {
	t.Helper()
	s, err := New(cfg)
	testkit.Must(t, err)
	here, there := mcp.NewInMemoryTransports()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(context.WithoutCancel(t.Context()), there) }()
	session, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil).Connect(t.Context(), here, nil)
	testkit.Must(t, err)
	t.Cleanup(func() {
		testkit.Must(t, session.Close())
		testkit.Must(t, <-ended)
	})
	return agent{t, session}, s
}

type args map[string]any

// use calls a tool that must succeed.
func use[Out any](a agent, tool string, in args) (out Out) {
	a.t.Helper()
	result, err := a.session.CallTool(a.t.Context(), &mcp.CallToolParams{Name: tool, Arguments: in})
	testkit.Must(a.t, err)
	if result.IsError {
		a.t.Fatalf("%s %v: %s", tool, in, textOf(result))
	}
	text, err := json.Marshal(result.StructuredContent)
	testkit.Must(a.t, err)
	testkit.Must(a.t, json.Unmarshal(text, &out))
	return out
}

func textOf(result *mcp.CallToolResult) string {
	var all strings.Builder
	for _, c := range result.Content {
		if text, ok := c.(*mcp.TextContent); ok {
			all.WriteString(text.Text)
		}
	}
	return all.String()
}

// fails calls a tool that must fail with all of the texts.
func (a agent) fails(tool string, in args, texts ...string) {
	a.t.Helper()
	result, err := a.session.CallTool(a.t.Context(), &mcp.CallToolParams{Name: tool, Arguments: in})
	if err != nil {
		a.t.Errorf("%s %v: %v", tool, in, err)
		return
	}
	for _, text := range texts {
		if !result.IsError || !strings.Contains(textOf(result), text) {
			a.t.Errorf("%s %v: %s: want an error with %q", tool, in, textOf(result), text)
		}
	}
}

func clientOf(t *testing.T, s livetest.Server) *client.Client {
	t.Helper()
	api, err := client.New(client.Config{URL: s.URL, Key: s.Key})
	testkit.Must(t, err)
	return api
}

// TestTools uses sandboxes as an agent does.
func TestTools(t *testing.T) {
	live := livetest.New(t)
	api := clientOf(t, live)
	a, server := connect(t, Config{Client: api})
	made := use[sandboxOutput](a, "create_sandbox", args{"name": "one", "labels": args{"who": "me"}, "timeout_minutes": 7})
	want := map[string]string{"name": "one", "who": "me", LabelMadeBy: MadeBy, LabelSession: server.Session()}
	if diff := cmp.Diff(want, made.Labels); diff != "" || made.State != "running" || made.TimeoutMinutes != 7 {
		t.Errorf("created %+v, labels %s", made, diff)
	}
	id := made.SandboxID
	t.Run("commands", func(t *testing.T) { a.in(t).commands(id) })
	t.Run("cancel", func(t *testing.T) { a.in(t).cancel(id) })
	t.Run("programs", func(t *testing.T) { a.in(t).programs(id) })
	t.Run("files", func(t *testing.T) { a.in(t).files(id) })
	t.Run("states", func(t *testing.T) { a.in(t).states(id) })
	t.Run("bound", func(t *testing.T) {
		b, _ := connect(t, Config{Client: api, Sandbox: id})
		if got := use[runOutput](b, "run_command", args{"command": "echo hi", "user": root}); got.Stdout != "hi\n" {
			t.Errorf("%+v", got)
		}
		b.fails("run_command", args{"sandbox_id": id, "command": "true"}, "sandbox_id")
	})
	if n, err := server.Destroy(t.Context()); err != nil || n == 0 {
		t.Errorf("destroyed %d, %v", n, err)
	}
	if got := use[listOutput](a, "list_sandboxes", args{"mine": true}); len(got.Sandboxes) != 0 {
		t.Errorf("after Destroy: %+v", got)
	}
	a.fails("run_command", args{"sandbox_id": "i00000000000000000000", "command": "true"}, "there is no sandbox", "list_sandboxes")
	a.fails("run_command", args{"sandbox_id": id}, "command")
	a.fails("run_command", args{"sandbox_id": id, "command": "true", "timeout_seconds": 0}, "minimum")
}

func (a agent) in(t *testing.T) agent { return agent{t, a.session} } //nolint:thelper // it keeps t

func (a agent) commands(id string) {
	got := use[runOutput](a, "run_command", args{"sandbox_id": id, "user": root, "command": "cat; echo err >&2; exit 3", "stdin": "in"})
	got.DurationMS = 0
	if diff := cmp.Diff(runOutput{ExitCode: 3, Status: "exit status 3", Stdout: "in", Stderr: "err\n"}, got); diff != "" {
		a.t.Error(diff)
	}
	got = use[runOutput](a, "run_command", args{"sandbox_id": id, "user": root, "command": "seq 100000", "max_output_bytes": 256})
	if !strings.HasPrefix(got.Stdout, "1\n2\n") || !strings.HasSuffix(got.Stdout, "99999\n100000\n") || got.StdoutCut != 588895-256 || len(got.Stdout) > 400 {
		a.t.Errorf("%+v", got)
	}
	got = use[runOutput](a, "run_command", args{"sandbox_id": id, "user": root, "command": "echo begun; exec sleep 600", "timeout_seconds": 1})
	if !got.TimedOut || got.Stdout != "begun\n" {
		a.t.Errorf("%+v", got)
	}
	a.fails("run_command", args{"sandbox_id": id, "command": "true", "user": "absent"}, "absent")
}

// cancel cancels a call, which ends its command.
func (a agent) cancel(id string) {
	file := filepath.Join(a.t.TempDir(), "fifo")
	ctx, cancel := context.WithCancel(a.t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := a.session.CallTool(ctx, &mcp.CallToolParams{Name: "run_command", Arguments: args{
			"sandbox_id": id, "user": root, "command": "echo $$ > " + file + "; exec sleep 600",
		}})
		ended <- err
	}()
	var process string
	testkit.WaitUntil(a.t, "the command runs", func() bool {
		text, err := os.ReadFile(file)
		process = "/proc/" + strings.TrimSpace(string(text))
		return err == nil && len(text) > 0
	})
	cancel()
	if err := <-ended; err == nil {
		a.t.Error("the canceled call succeeded")
	}
	testkit.WaitUntil(a.t, "the command has ended", func() bool {
		_, err := os.Stat(process)
		return err != nil
	})
}

func (a agent) programs(id string) {
	a.t.Cleanup(func() { _ = os.RemoveAll(programs.Dir) }) // the guests are this machine
	started := use[programOutput](a, "start_program", args{"sandbox_id": id, "user": root, "command": "echo one; echo two >&2; exit 5"})
	got := use[outputOutput](a, "read_output", args{"sandbox_id": id, "program_id": started.ProgramID, "wait_seconds": 60})
	if diff := cmp.Diff(outputOutput{ExitCode: new(5), Output: "one\ntwo\n", NextOffset: 8, TotalBytes: 8}, got); diff != "" {
		a.t.Error(diff)
	}
	got = use[outputOutput](a, "read_output", args{"sandbox_id": id, "program_id": started.ProgramID, "offset": 4})
	if got.Output != "two\n" || got.Offset != 4 || got.NextOffset != 8 {
		a.t.Errorf("from 4: %+v", got)
	}
	started = use[programOutput](a, "start_program", args{"sandbox_id": id, "user": root, "command": "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.1; done"})
	testkit.WaitUntil(a.t, "the program has printed", func() bool {
		got := use[outputOutput](a, "read_output", args{"sandbox_id": id, "program_id": started.ProgramID})
		return got.Running && got.Output == "ready\n"
	})
	if got := use[stopOutput](a, "stop_program", args{"sandbox_id": id, "program_id": started.ProgramID, "grace_seconds": 60}); !got.Stopped {
		a.t.Error("it was not stopped")
	}
	got = use[outputOutput](a, "read_output", args{"sandbox_id": id, "program_id": started.ProgramID})
	if got.Running || !strings.HasPrefix(got.Output, "ready\n") || !strings.HasSuffix(got.Output, "bye\n") || got.ExitCode == nil || *got.ExitCode != 0 {
		a.t.Errorf("after the stop: %+v", got)
	}
	if got := use[stopOutput](a, "stop_program", args{"sandbox_id": id, "program_id": started.ProgramID}); got.Stopped {
		a.t.Error("it was stopped twice")
	}
	a.fails("read_output", args{"sandbox_id": id, "program_id": 4000000}, "no output of a program 4000000")
}

func (a agent) files(id string) {
	dir := a.t.TempDir()
	name := filepath.Join(dir, "a", "b ü.txt")
	use[writeOutput](a, "write_file", args{"sandbox_id": id, "user": root, "path": name, "content": "12345ü7"})
	got := use[readFileOutput](a, "read_file", args{"sandbox_id": id, "user": root, "path": name, "offset": 1, "max_bytes": 5})
	if diff := cmp.Diff(readFileOutput{Content: "2345", Encoding: "text", Bytes: 4, More: true, NextOffset: 5}, got); diff != "" {
		a.t.Error(diff)
	}
	use[writeOutput](a, "write_file", args{"sandbox_id": id, "user": root, "path": filepath.Join(dir, "bin"), "content": "AP8=", "encoding": "base64"})
	got = use[readFileOutput](a, "read_file", args{"sandbox_id": id, "user": root, "path": filepath.Join(dir, "bin")})
	if diff := cmp.Diff(readFileOutput{Content: "AP8=", Encoding: "base64", Bytes: 2, NextOffset: 2}, got); diff != "" {
		a.t.Error(diff)
	}
	list := use[filesOutput](a, "list_files", args{"sandbox_id": id, "user": root, "path": dir, "depth": 2})
	for i := range list.Files {
		list.Files[i].Modified = ""
		if list.Files[i].Type == "directory" {
			list.Files[i].Bytes = 0
		}
	}
	want := []fileOutput{
		{Path: filepath.Join(dir, "a"), Type: "directory"}, {Path: name, Type: "file", Bytes: 8}, {Path: filepath.Join(dir, "bin"), Type: "file", Bytes: 2},
	}
	if diff := cmp.Diff(want, list.Files); diff != "" || list.Truncated {
		a.t.Error(diff)
	}
	if list := use[filesOutput](a, "list_files", args{"sandbox_id": id, "user": root, "path": dir, "limit": 1}); len(list.Files) != 1 || !list.Truncated {
		a.t.Errorf("%+v", list)
	}
	a.fails("list_files", args{"sandbox_id": id, "user": root, "path": dir + "/absent"}, "absent")
	a.fails("read_file", args{"sandbox_id": id, "user": root, "path": dir + "/absent"}, "absent")
	a.fails("read_file", args{"sandbox_id": id, "user": root, "path": name, "offset": 100}, "8 bytes")
	a.fails("write_file", args{"sandbox_id": id, "user": root, "path": name, "content": "?", "encoding": "base64"}, "not base64")
}

func (a agent) states(id string) {
	on := args{"sandbox_id": id}
	if got := use[sandboxOutput](a, "pause_sandbox", on); got.State != "paused" {
		a.t.Errorf("%+v", got)
	}
	if got := use[sandboxOutput](a, "resume_sandbox", on); got.State != "running" {
		a.t.Errorf("%+v", got)
	}
	point := use[checkpointOutput](a, "create_checkpoint", args{"sandbox_id": id, "name": "p"})
	copies := use[forkOutput](a, "fork_sandbox", args{"sandbox_id": id, "count": 2})
	if len(copies.Copies) != 2 || copies.Copies[0].ForkedFrom != id || copies.Copies[0].Labels["who"] != "me" || copies.Copies[0].Labels["name"] != "" {
		a.t.Errorf("%+v", copies)
	}
	for _, c := range copies.Copies {
		use[destroyOutput](a, "destroy_sandbox", args{"sandbox_id": c.SandboxID})
	}
	branched := use[forkOutput](a, "branch_from_checkpoint", args{"sandbox_id": id, "checkpoint_id": point.CheckpointID})
	if len(branched.Copies) != 1 {
		a.t.Errorf("%+v", branched)
	}
	all := use[checkpointsOutput](a, "list_checkpoints", on)
	if len(all.Checkpoints) != 1 || all.Checkpoints[0].Name != "p" {
		a.t.Errorf("after branching: %+v", all)
	}
	at := args{"sandbox_id": id, "checkpoint_id": point.CheckpointID}
	if got := use[sandboxOutput](a, "restore_checkpoint", at); got.State != "running" {
		a.t.Errorf("%+v", got)
	}
	use[deletedOutput](a, "delete_checkpoint", at)
	a.fails("restore_checkpoint", at, "checkpoint")
	if got := use[networkOutput](a, "set_network", args{"sandbox_id": id, "internet": false, "allow": []string{"1.1.1.1"}}); got.Internet || len(got.Allow) != 1 {
		a.t.Errorf("%+v", got)
	}
	if got := use[portOutput](a, "expose_port", args{"sandbox_id": id, "port": 8000}); !strings.HasSuffix(got.URL, "/p/"+id+"/8000/") || got.Listening {
		a.t.Errorf("%+v", got)
	}
	if got := use[templatesOutput](a, "list_templates", args{}); len(got.Templates) == 0 || got.Templates[0].Name != "base" {
		a.t.Errorf("%+v", got)
	}
}

// withKey sends a key with each request.
type withKey string

func (k withKey) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	if k != "" {
		r.Header.Set("Authorization", "Bearer "+string(k))
	}
	return http.DefaultTransport.RoundTrip(r)
}

// TestHTTP has a session over HTTP, whose calls are made by the caller's key.
func TestHTTP(t *testing.T) {
	live := livetest.New(t)
	s, err := New(Config{Offline: true})
	testkit.Must(t, err)
	server := httptest.NewServer(s.Handler(HTTPConfig{URL: live.URL}))
	t.Cleanup(server.Close)
	dial := func(key string) (*mcp.ClientSession, error) {
		return mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil).Connect(t.Context(), &mcp.StreamableClientTransport{
			Endpoint: server.URL + Path, HTTPClient: &http.Client{Transport: withKey(key)},
		}, nil)
	}
	for _, key := range []string{"", "e2b_0000000000000000000000000000000000000000", strings.Repeat("x", 1000)} {
		if _, err := dial(key); err == nil {
			t.Errorf("the key %.20q has a session", key)
		}
	}
	session, err := dial(live.Key)
	testkit.Must(t, err)
	t.Cleanup(func() { session.Close() })
	a := agent{t, session}
	made := use[sandboxOutput](a, "create_sandbox", args{})
	if made.Network == nil || made.Network.Internet || made.Labels[LabelSession] != session.ID() {
		t.Errorf("%+v", made)
	}
	a.fails("create_sandbox", args{"network": args{"internet": true}}, "without network")
	a.fails("set_network", args{"sandbox_id": made.SandboxID, "internet": false, "allow": []string{"1.1.1.1"}}, "without network")
	a.cancel(made.SandboxID)
	use[destroyOutput](a, "destroy_sandbox", args{"sandbox_id": made.SandboxID})
}
