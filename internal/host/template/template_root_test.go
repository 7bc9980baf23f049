//go:build root

package template_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wrenn"
	"wrenn/internal/host/sandbox"
	"wrenn/internal/host/server/agenttest"
	"wrenn/internal/host/template"
	"wrenn/internal/testkit"
)

var shape = sandbox.Shape{VCPUs: 1, MemoryMiB: 64}

// story is what a build said.
type story struct {
	mu    sync.Mutex // guards lines
	lines []string
}

func (s *story) say(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
}

func (s *story) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

// TestBuild: the guests are this machine's programs, which see its files.
func TestBuild(t *testing.T) {
	agent := agenttest.New(t, agenttest.Config{})
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	flag := filepath.Join(dir, "flag")
	for _, tt := range []struct {
		name     string
		spec     template.Spec
		code     wrenn.Code
		text     string // of the error
		said     string
		notThere bool // a part of said that must not be said
	}{
		{name: "nothing to do", said: "booting\nkept as a snapshot"},
		{name: "a start command that has done its work", spec: template.Spec{Start: "echo hello; echo $GREETING >&2", Env: map[string]string{"GREETING": "servus"}}, said: "servus"},
		{name: "ready later", spec: template.Spec{Start: "echo on it; sleep 1; touch " + flag + "; exec sleep 60", Ready: "test -e " + flag}, said: "on it"},
		{name: "start fails", spec: template.Spec{Start: "echo no such thing >&2; exit 7"}, code: wrenn.FailedPrecondition, text: `exit status 7: "no such thing"`, said: "no such thing"},
		{
			name: "start fails while it is waited for", spec: template.Spec{Start: "sleep 0.3; exit 7", Ready: "sleep 1000", ReadyTimeout: time.Hour},
			code: wrenn.FailedPrecondition, text: "exit status 7",
		},
		{
			name: "never ready", spec: template.Spec{Ready: "echo not yet >&2; false", ReadyTimeout: time.Second},
			code: wrenn.DeadlineExceeded, text: `did not succeed within 1s`,
		},
		{name: "a ready command that hangs", spec: template.Spec{Ready: "sleep 1000", ReadyTimeout: time.Second}, code: wrenn.DeadlineExceeded, text: "within 1s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var said story
			tt.spec.Generation, tt.spec.Shape = string(wrenn.NewGenerationID()), shape
			built, err := agent.Templates.Build(t.Context(), tt.spec, said.say)
			testkit.WantCode(t, err, tt.code, tt.text)
			if !strings.Contains(said.String(), tt.said) {
				t.Errorf("it said:\n%s\nwant %q", &said, tt.said)
			}
			there := strings.Contains(strings.Join(agent.Templates.Generations(), " "), tt.spec.Generation)
			if there != (tt.code == "") {
				t.Errorf("there: %v after %v", there, err)
			}
			if err == nil && (built.Shape != shape || built.Bytes == 0 || built.Env["GREETING"] != tt.spec.Env["GREETING"]) {
				t.Errorf("built %+v", built)
			}
			if n := agent.Manager.Live(); n != 0 || len(agent.World.Running()) != 0 {
				t.Errorf("%d sandboxes are left, machines: %v", n, agent.World.Running())
			}
		})
	}
}

func TestBuildIsDoneOnce(t *testing.T) {
	agent := agenttest.New(t, agenttest.Config{})
	spec := template.Spec{Generation: string(wrenn.NewGenerationID()), Shape: shape, Env: map[string]string{"A": "b"}}
	var first, second story
	one, err := agent.Templates.Build(t.Context(), spec, first.say)
	if err != nil {
		t.Fatal(err)
	}
	two, err := agent.Templates.Build(t.Context(), template.Spec{Generation: spec.Generation}, second.say)
	if err != nil || two.Bytes != one.Bytes || two.Env["A"] != "b" || len(second.lines) != 0 {
		t.Errorf("again: %+v, %v, it said %q", two, err, second.lines)
	}
	for range 2 {
		if err := agent.Templates.Delete(t.Context(), spec.Generation); err != nil {
			t.Error(err)
		}
	}
	if left := agent.Templates.Generations(); len(left) != 0 {
		t.Errorf("after Delete: %v", left)
	}
}

func TestBuildIsGivenUp(t *testing.T) {
	agent := agenttest.New(t, agenttest.Config{})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("nobody wants it any more")
	var said story
	spec := template.Spec{Generation: string(wrenn.NewGenerationID()), Shape: shape, Start: "echo it runs; exec sleep 1000", Ready: "false", ReadyTimeout: time.Hour}
	_, err := agent.Templates.Build(ctx, spec, func(line string) {
		said.say(line)
		if line == "it runs" {
			cancel(why)
		}
	})
	if !errors.Is(err, why) {
		t.Errorf("Build() = %v, want %v", err, why)
	}
	if left := agent.Templates.Generations(); len(left) != 0 || len(agent.World.Running()) != 0 {
		t.Errorf("left: %v, %v", left, agent.World.Running())
	}
}

func TestBuildFromSandbox(t *testing.T) {
	agent := agenttest.New(t, agenttest.Config{})
	sb, err := agent.Manager.Create(t.Context(), wrenn.NewSandboxID(), shape)
	if err != nil {
		t.Fatal(err)
	}
	var said story
	spec := template.Spec{Generation: string(wrenn.NewGenerationID()), Sandbox: sb.ID()}
	built, err := agent.Templates.Build(t.Context(), spec, said.say)
	if err != nil || built.Shape != shape {
		t.Errorf("built %+v, %v", built, err)
	}
	if info := sb.Info(); info.Status != sandbox.StatusRunning {
		t.Errorf("the sandbox is %s", info.Status)
	}
	spec.Sandbox = wrenn.NewSandboxID()
	spec.Generation = string(wrenn.NewGenerationID())
	_, err = agent.Templates.Build(t.Context(), spec, said.say)
	testkit.WantCode(t, err, wrenn.NotFound, string(spec.Sandbox))
	spec.Start = "true"
	_, err = agent.Templates.Build(t.Context(), spec, said.say)
	testkit.WantCode(t, err, wrenn.Invalid, "as it is")
	// A deleted generation's files stay while a sandbox needs them.
	copied, err := agent.Manager.Ensure(t.Context(), sandbox.Request{ID: wrenn.NewSandboxID(), Template: "mine", Shape: shape, Snapshot: agent.Templates.Generations()[0]})
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Templates.Delete(t.Context(), agent.Templates.Generations()[0]); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(copied.Pause(t.Context()), copied.Resume(t.Context()), copied.Destroy(t.Context()), sb.Destroy(t.Context())); err != nil {
		t.Error(err)
	}
	if left := agent.Manager.KeptSnapshots(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestBuildRefuses(t *testing.T) {
	agent := agenttest.New(t, agenttest.Config{})
	id := string(wrenn.NewGenerationID())
	for name, tt := range map[string]struct {
		spec template.Spec
		code wrenn.Code
		text string
	}{
		"no generation":             {template.Spec{Generation: "../x"}, wrenn.Invalid, "no generation"},
		"two sources":               {template.Spec{Generation: id, Image: "a", OCI: "b"}, wrenn.Invalid, "one of them"},
		"the image of a build":      {template.Spec{Generation: id, Image: "build." + id}, wrenn.NotFound, "no image"},
		"a file of this machine":    {template.Spec{Generation: id, OCI: "docker-archive:/etc/passwd"}, wrenn.Invalid, "does not name"},
		"a daemon of this machine":  {template.Spec{Generation: id, OCI: "docker-daemon:debian:12"}, wrenn.Invalid, "does not name"},
		"a registry not allowed":    {template.Spec{Generation: id, OCI: "registry.example/app:1"}, wrenn.PermissionDenied, "no registry"},
		"a registry by its address": {template.Spec{Generation: id, OCI: "127.0.0.1:5000/app:1"}, wrenn.PermissionDenied, "127.0.0.1:5000"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := agent.Templates.Build(t.Context(), tt.spec, func(string) {})
			testkit.WantCode(t, err, tt.code, tt.text)
		})
	}
}
