//go:build root

package template_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/testkit"
)

var size = wrenn.Size{VCPUs: 1, MemoryMiB: 64}

// buildLog is the log of a build.
type buildLog struct {
	mu    sync.Mutex // guards lines and steps
	lines []string
	steps []string
}

func (s *buildLog) add(ev wrenn.BuildEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ev.Step != "" {
		s.steps = append(s.steps, ev.Step)
		return
	}
	s.lines = append(s.lines, ev.Line)
}

func (s *buildLog) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

// TestBuild: the guests run as programs of this machine and see its files.
func TestBuild(t *testing.T) {
	agent := agenttest.New(t, agenttest.Config{})
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	flag := filepath.Join(dir, "flag")
	for _, tt := range []struct {
		name   string
		spec   wrenn.TemplateSpec
		code   wrenn.Code
		text   string // of the error
		logged string
	}{
		{name: "nothing to do", logged: "booting\nsaved as a snapshot"},
		{name: "a start command that has done its work", spec: wrenn.TemplateSpec{StartCmd: "echo hello; echo $GREETING >&2", Env: map[string]string{"GREETING": "servus"}}, logged: "servus"},
		{name: "ready later", spec: wrenn.TemplateSpec{StartCmd: "echo on it; sleep 1; touch " + flag + "; exec sleep 60", ReadyCmd: "test -e " + flag}, logged: "on it"},
		{name: "start fails", spec: wrenn.TemplateSpec{StartCmd: "echo no such thing >&2; exit 7"}, code: wrenn.FailedPrecondition, text: `exit status 7: "no such thing"`, logged: "no such thing"},
		{
			name: "start fails while it is waited for", spec: wrenn.TemplateSpec{StartCmd: "sleep 0.3; exit 7", ReadyCmd: "sleep 1000", ReadyTimeout: time.Hour},
			code: wrenn.FailedPrecondition, text: "exit status 7",
		},
		{
			name: "never ready", spec: wrenn.TemplateSpec{ReadyCmd: "echo not yet >&2; false", ReadyTimeout: time.Second},
			code: wrenn.DeadlineExceeded, text: `did not succeed within 1s`,
		},
		{name: "a ready command that hangs", spec: wrenn.TemplateSpec{ReadyCmd: "sleep 1000", ReadyTimeout: time.Second}, code: wrenn.DeadlineExceeded, text: "within 1s"},
		{name: "little free disk", spec: wrenn.TemplateSpec{DiskMiB: 8, MinFreeDiskMiB: 1}, logged: "saved as a snapshot"},
		{name: "too much free disk", spec: wrenn.TemplateSpec{MinFreeDiskMiB: 1 << 30, MaxDiskMiB: 20480}, code: wrenn.Invalid, text: "and 20480 are allowed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log buildLog
			id := wrenn.NewBuildID()
			tt.spec.Size = size
			built, err := agent.Templates.Build(t.Context(), wrenn.BuildRequest{ID: id, Spec: tt.spec}, log.add)
			testkit.WantCode(t, err, tt.code, tt.text)
			if !strings.Contains(log.String(), tt.logged) {
				t.Errorf("the log is:\n%s\nwant %q", &log, tt.logged)
			}
			exists := slices.Contains(agent.Templates.Builds().IDs, id)
			if exists != (tt.code == "") {
				t.Errorf("the build exists: %v, after %v", exists, err)
			}
			if err == nil && (built.Size != size || built.SizeBytes == 0 || built.Env["GREETING"] != tt.spec.Env["GREETING"] || built.DiskMiB != tt.spec.DiskMiB) {
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
	job := wrenn.BuildRequest{ID: wrenn.NewBuildID(), Spec: wrenn.TemplateSpec{Size: size, Env: map[string]string{"A": "b"}}}
	var first, second buildLog
	one, err := agent.Templates.Build(t.Context(), job, first.add)
	if err != nil {
		t.Fatal(err)
	}
	two, err := agent.Templates.Build(t.Context(), wrenn.BuildRequest{ID: job.ID}, second.add)
	if err != nil || two.SizeBytes != one.SizeBytes || two.Env["A"] != "b" || len(second.lines) != 0 {
		t.Errorf("again: %+v, %v, its log %q", two, err, second.lines)
	}
	for range 2 {
		if err := agent.Templates.Delete(t.Context(), job.ID, ""); err != nil {
			t.Error(err)
		}
	}
	if left := agent.Templates.Builds().IDs; len(left) != 0 {
		t.Errorf("after Delete: %v", left)
	}
}

func TestBuildIsCanceled(t *testing.T) {
	agent := agenttest.New(t, agenttest.Config{})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the caller is gone")
	var log buildLog
	job := wrenn.BuildRequest{ID: wrenn.NewBuildID(), Spec: wrenn.TemplateSpec{
		Size: size, StartCmd: "echo it runs; exec sleep 1000", ReadyCmd: "false", ReadyTimeout: time.Hour,
	}}
	_, err := agent.Templates.Build(ctx, job, func(ev wrenn.BuildEvent) {
		log.add(ev)
		if ev.Line == "it runs" {
			cancel(why)
		}
	})
	if !errors.Is(err, why) {
		t.Errorf("Build() = %v, want %v", err, why)
	}
	if left := agent.Templates.Builds().IDs; len(left) != 0 || len(agent.World.Running()) != 0 {
		t.Errorf("left: %v, %v", left, agent.World.Running())
	}
}

func TestBuildFromSandbox(t *testing.T) {
	agent := agenttest.New(t, agenttest.Config{})
	sb, err := agent.Manager.Create(t.Context(), wrenn.NewSandboxID(), size)
	if err != nil {
		t.Fatal(err)
	}
	var log buildLog
	job := wrenn.BuildRequest{ID: wrenn.NewBuildID(), Spec: wrenn.TemplateSpec{From: wrenn.TemplateSource{Sandbox: sb.ID()}}}
	built, err := agent.Templates.Build(t.Context(), job, log.add)
	if err != nil || built.Size != size {
		t.Errorf("built %+v, %v", built, err)
	}
	if info := sb.Info(); info.Status != sandbox.StatusRunning {
		t.Errorf("the sandbox is %s", info.Status)
	}
	job.ID, job.Spec.From.Sandbox = wrenn.NewBuildID(), wrenn.NewSandboxID()
	_, err = agent.Templates.Build(t.Context(), job, log.add)
	testkit.WantCode(t, err, wrenn.NotFound, string(job.Spec.From.Sandbox))
	job.Spec.StartCmd = "true"
	_, err = agent.Templates.Build(t.Context(), job, log.add)
	testkit.WantCode(t, err, wrenn.Invalid, "as it is")
	// A deleted build's files stay while a sandbox needs them.
	copied, err := agent.Manager.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Template: "mine", Size: size, Build: agent.Templates.Builds().IDs[0]})
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Templates.Delete(t.Context(), agent.Templates.Builds().IDs[0], ""); err != nil {
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
	id := wrenn.NewBuildID()
	for name, tt := range map[string]struct {
		id   wrenn.BuildID
		from wrenn.TemplateSource
		code wrenn.Code
		text string
	}{
		"no build":                  {"../x", wrenn.TemplateSource{}, wrenn.Invalid, "build"},
		"two sources":               {id, wrenn.TemplateSource{Image: "a", OCI: "b"}, wrenn.Invalid, "one of them"},
		"the image of a build":      {id, wrenn.TemplateSource{Image: "build." + string(id)}, wrenn.NotFound, "no image"},
		"a file of this machine":    {id, wrenn.TemplateSource{OCI: "docker-archive:/etc/passwd"}, wrenn.Invalid, "does not name"},
		"a daemon of this machine":  {id, wrenn.TemplateSource{OCI: "docker-daemon:debian:12"}, wrenn.Invalid, "does not name"},
		"a registry not allowed":    {id, wrenn.TemplateSource{OCI: "registry.example/app:1"}, wrenn.PermissionDenied, "no registry"},
		"a registry by its address": {id, wrenn.TemplateSource{OCI: "127.0.0.1:5000/app:1"}, wrenn.PermissionDenied, "127.0.0.1:5000"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := agent.Templates.Build(t.Context(), wrenn.BuildRequest{ID: tt.id, Spec: wrenn.TemplateSpec{From: tt.from}}, func(wrenn.BuildEvent) {})
			testkit.WantCode(t, err, tt.code, tt.text)
		})
	}
}
