package freeze

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"wrenn.dev/internal/testkit"
)

func TestWithoutCgroup2(t *testing.T) {
	for _, root := range []string{"", t.TempDir(), "/nowhere"} {
		g := New(root)
		if err := g.Freeze(t.Context()); !errors.Is(err, ErrUnsupported) {
			t.Errorf("Freeze() of %q = %v, want %v", root, err, ErrUnsupported)
		}
		if err := g.Thaw(); !errors.Is(err, ErrUnsupported) {
			t.Errorf("Thaw() of %q = %v, want %v", root, err, ErrUnsupported)
		}
	}
}

// fake is a directory that looks like cgroup2, whose kernel is the test.
func fake(t *testing.T, groups map[string]string) *Groups {
	t.Helper()
	g := &Groups{root: t.TempDir(), own: "agent"}
	for name, events := range groups {
		g.write(t, name, "cgroup.freeze", "0")
		g.write(t, name, "cgroup.events", events)
	}
	return g
}

func (g *Groups) write(t *testing.T, group, file, text string) {
	t.Helper()
	path := filepath.Join(g.root, group, file)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// freezeFiles are the contents of all cgroup.freeze.
func (g *Groups) freezeFiles(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	files, err := filepath.Glob(filepath.Join(g.root, "*", "cgroup.freeze"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found[filepath.Base(filepath.Dir(file))] = string(raw)
	}
	return found
}

func TestTheAgentsOwnGroupIsLeftOut(t *testing.T) {
	const frozen = "populated 1\nfrozen 1\n"
	g := fake(t, map[string]string{"user": frozen, "docker": frozen, "agent": "populated 1\nfrozen 0\n"})
	if err := g.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"user": "1", "docker": "1", "agent": "0"}, g.freezeFiles(t)); diff != "" {
		t.Errorf("frozen (-want +got):\n%s", diff)
	}
	if err := g.Thaw(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"user": "0", "docker": "0", "agent": "0"}, g.freezeFiles(t)); diff != "" {
		t.Errorf("thawed (-want +got):\n%s", diff)
	}
}

// A process that hangs in the kernel is named, and nothing stays frozen.
func TestStuck(t *testing.T) {
	hung := inUninterruptibleWait(t)
	g := fake(t, map[string]string{"docker": "populated 0\nfrozen 1\n", "user": "populated 1\nfrozen 0\n"})
	g.write(t, "user/job", "cgroup.procs", strconv.Itoa(os.Getpid())+"\n"+hung+"\n")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err := g.Freeze(ctx)
	stuck, ok := errors.AsType[*StuckError](err)
	if !ok || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Freeze() = %v, want a StuckError", err)
	}
	if stuck.Group != "user" || len(stuck.Hung) != 1 || !strings.HasPrefix(stuck.Hung[0], hung+" (") {
		t.Errorf("stuck: %+v, want process %s of group user", stuck, hung)
	}
	if diff := cmp.Diff(map[string]string{"user": "0", "docker": "0"}, g.freezeFiles(t)); diff != "" {
		t.Errorf("after the failure (-want +got):\n%s", diff)
	}
}

// inUninterruptibleWait returns the pid of a process that waits so: for a
// child of vfork(2), which waits until the other end of a pipe is opened.
func inUninterruptibleWait(t *testing.T) string {
	t.Helper()
	testkit.Program(t, "python3")
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "python3", "-c",
		`import os, sys; os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)])`, fifo)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if f, err := os.OpenFile(fifo, os.O_WRONLY, 0); err == nil {
			f.Close()
		}
		cmd.Wait()
	})
	pid := strconv.Itoa(cmd.Process.Pid)
	testkit.WaitUntil(t, "the process is in an uninterruptible wait", func() bool {
		_, state := status(pid)
		return state == "D"
	})
	return pid
}
