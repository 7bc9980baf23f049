//go:build root

package cgroup

import (
	"bufio"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"wrenn.dev/internal/testkit"
)

// newTree opens a tree in a cgroup2 directory that is removed at the end.
func newTree(t *testing.T) *Tree {
	t.Helper()
	mounts, err := os.Open("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	defer mounts.Close()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if fields[2] != "cgroup2" {
			continue
		}
		root, err := os.MkdirTemp(fields[1], "cgroup-test-") //nolint:usetesting // a directory there is a cgroup
		if err != nil {
			t.Skipf("cgroup2 is not writable: %v", err)
		}
		tree, err := Open(root, false, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			tree.Close()
			tree.Close() // twice is allowed
			for _, dir := range []string{filepath.Join(root, userName), root} {
				if err := syscall.Rmdir(dir); err != nil {
					t.Error(err)
				}
			}
		})
		return tree
	}
	t.Skip("no cgroup2 is mounted")
	return nil
}

// begin runs a shell script in a group, and returns when it has printed a line.
func begin(t *testing.T, g *Group, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: g.FD(), Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !bufio.NewScanner(out).Scan() {
		t.Fatal("the script printed no line")
	}
	return cmd
}

func acquire(t *testing.T, tree *Tree) *Group {
	t.Helper()
	g, err := tree.Acquire()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestKill(t *testing.T) {
	tree := newTree(t)
	for name, kill := range map[string]func(d *dir) error{"at once": (*dir).kill, "one by one": (*dir).killEach} {
		g := acquire(t, tree)
		cmd := begin(t, g, `trap "" TERM; setsid sleep 1000 & echo; sleep 1000; sleep 1000`)
		if err := kill(g.dir); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		_ = cmd.Wait() // it was killed
		tree.Release(g)
		tree.Release(g) // twice is allowed
		if err := g.WaitEmpty(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(g.Kill(), g.Signal(syscall.SIGKILL, 0)); err != nil || g.OutOfMemory() {
			t.Errorf("%s: after its end a group has errors: %v", name, err)
		}
	}
}

// A group of a command that was killed is not used again: the next command
// would be killed with it.
func TestReuse(t *testing.T) {
	tree := newTree(t)
	first := acquire(t, tree)
	path := first.dir.path
	tree.Release(first)
	second := acquire(t, tree)
	if second.dir.path != path {
		t.Errorf("an unused group was not used again: %s, then %s", path, second.dir.path)
	}
	cmd := begin(t, second, "echo; sleep 1000")
	if err := second.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	tree.Release(second)
	if err := second.WaitEmpty(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.WaitUntil(t, "a group that was killed is removed", func() bool {
		_, err := os.Stat(path)
		return errors.Is(err, fs.ErrNotExist)
	})
	third := acquire(t, tree)
	if cmd := begin(t, third, "echo; exit 7"); cmd.Wait() == nil || cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("the next command ended with %v", cmd.ProcessState)
	}
	tree.Release(third)
}

// What a command has left keeps its group until it ends.
func TestReleaseOfPopulated(t *testing.T) {
	tree := newTree(t)
	g := acquire(t, tree)
	cmd := begin(t, g, "sleep 1000 >/dev/null & echo; exit 0")
	_ = cmd.Wait() // 0
	tree.Release(g)
	if other := acquire(t, tree); other.dir.path == g.dir.path {
		t.Error("a populated group was used again")
	}
	select {
	case <-g.empty:
		t.Error("a populated group is called empty")
	default:
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := g.WaitEmpty(t.Context()); err != nil {
		t.Fatal(err)
	}
}
