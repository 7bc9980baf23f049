//go:build root

package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"wrenn.dev/internal/testkit"
)

// testRoot is what a shell needs, and a directory to write to.
func testRoot(t *testing.T, writable ...string) *Root {
	t.Helper()
	r := &Root{Devices: []string{os.DevNull}, Links: map[string]string{}, Proc: true, Writable: writable, ReadOnly: []string{"/usr"}}
	for _, name := range []string{"/bin", "/lib", "/lib64"} {
		if target, err := os.Readlink(name); err == nil {
			r.Links[name] = target
		} else {
			r.ReadOnly = append(r.ReadOnly, name)
		}
	}
	return r
}

// inRoot runs a script as another user in its own root.
func inRoot(t *testing.T, script string, change func(*Command)) string {
	t.Helper()
	cmd := sh(script)
	cmd.UID, cmd.GID, cmd.Dir, cmd.Root = 64_123, 64_123, "/", testRoot(t)
	if change != nil {
		change(&cmd)
	}
	p := start(t, cmd)
	if exit, err := p.Wait(t.Context()); err != nil || exit.Code != 0 {
		t.Fatalf("Wait() = %+v, %v: %s", exit, err, p.Log())
	}
	return string(p.Output())
}

func TestRootHasNothingElseOfTheHost(t *testing.T) {
	out := inRoot(t, `cd /; echo *; echo /proc/*; echo $$; cat /proc/self/mounts`, nil)
	lines := strings.SplitN(out, "\n", 4)
	if want := "bin dev lib lib64 proc usr"; lines[0] != want {
		t.Errorf("/ has %q, want %q", lines[0], want)
	}
	for entry := range strings.FieldsSeq(lines[1]) {
		name := filepath.Base(entry)
		if name != "self" && name != "thread-self" && strings.Trim(name, "0123456789") != "" {
			t.Errorf("it sees %s", entry)
		}
	}
	if got := len(strings.Fields(lines[1])); got > 3 {
		t.Errorf("it sees other processes: %s", lines[1])
	}
	if lines[2] != "1" {
		t.Errorf("its PID is %s: it is not in its own PID namespace", lines[2])
	}
	for mount := range strings.SplitSeq(strings.TrimSpace(lines[3]), "\n") {
		where := strings.Fields(mount)[1]
		if where != "/" && !strings.HasPrefix(where, "/usr") && !strings.HasPrefix(where, "/dev/null") && where != "/proc" {
			t.Errorf("a mount of the host is left: %s", mount)
		}
	}
}

// A device file of the process's own can be used by its user alone, whatever the mode of
// the host's is.
func TestRootHasDeviceFilesOfItsUser(t *testing.T) {
	host := filepath.Join(t.TempDir(), "zero") // which only root may open
	testkit.Must(t, unix.Mknod(host, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
	out := inRoot(t, fmt.Sprintf(`stat -c '%%u %%g %%a' %[1]s; head -c 3 %[1]s | wc -c; ! rm %[1]s; ! chmod 666 %[1]s`, host), func(c *Command) {
		c.Root.Nodes = []string{host}
	})
	if want := "64123 64123 600\n3\n"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
	cmd := sh("true")
	cmd.Root = testRoot(t)
	cmd.Root.Nodes = []string{"/etc/passwd"}
	if _, err := Start(cmd); err == nil {
		t.Error("a file that is no device became one")
	}
}

func TestRootCannotBeChanged(t *testing.T) {
	shared, private := t.TempDir(), filepath.Join(t.TempDir(), "private")
	testkit.Must(t, os.WriteFile(private, []byte("secret"), 0o644))
	testkit.Must(t, os.Chmod(shared, 0o777))
	inRoot(t, fmt.Sprintf(`! touch /x; ! touch /usr/x; ! cat %s; touch %s/made`, private, shared), func(c *Command) {
		c.UID, c.GID = 0, 0 // not even root
		c.Root.Writable = []string{shared}
	})
	if _, err := os.Stat(filepath.Join(shared, "made")); err != nil {
		t.Error(err)
	}
}

// TestRootsAreMadeWhileOthersFork starts processes in roots beside others that fork
// all the time, and hold what this process has open until their programs start.
func TestRootsAreMadeWhileOthersFork(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	var forks errgroup.Group
	for range 8 {
		forks.Go(func() error {
			for ctx.Err() == nil {
				if err := exec.Command("/bin/true").Run(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for range 100 {
		inRoot(t, "true", func(c *Command) {
			c.Root.ReadOnly = append(c.Root.ReadOnly, "/etc/passwd", "/etc/group", "/etc/hosts")
		})
	}
	stop()
	testkit.Must(t, forks.Wait())
}

func TestProgramsInARootGainNothing(t *testing.T) {
	if out := inRoot(t, `grep NoNewPrivs /proc/self/status; readlink /proc/self/ns/ipc`, nil); !strings.Contains(out, "NoNewPrivs:\t1") {
		t.Errorf("%q", out)
	} else if here, _ := os.Readlink("/proc/self/ns/ipc"); strings.Contains(out, here) {
		t.Error("it is in the host's IPC namespace")
	}
}

// A descriptor that this process itself inherited, without the mark that keeps it
// from children, is not passed on.
func TestNoDescriptorIsInherited(t *testing.T) {
	var pipe [2]int
	testkit.Must(t, unix.Pipe(pipe[:]))
	t.Cleanup(func() { unix.Close(pipe[0]); unix.Close(pipe[1]) })
	const number = 251
	testkit.Must(t, unix.Dup2(pipe[1], number))
	t.Cleanup(func() { unix.Close(number) })
	p := start(t, Command{Path: "/bin/sleep", Args: []string{"1000"}})
	// The program's loader has libraries open for a moment; what is inherited stays.
	testkit.WaitNoError(t, "it has only the standard descriptors", func() error {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Identity().PID))
		for _, fd := range fds {
			if name := fd.Name(); name != "0" && name != "1" && name != "2" {
				err = errors.Join(err, fmt.Errorf("it has descriptor %s", name))
			}
		}
		return err
	})
}

func TestLimits(t *testing.T) {
	cmd := sh("exec sleep 1000")
	cmd.UID, cmd.GID = 64_123, 64_123
	cmd.Limits = Limits{Tasks: 7, Files: 33, FileBytes: 4096, MemoryBytes: 1 << 30, CPUSeconds: 5}
	p := start(t, cmd)
	proc := fmt.Sprintf("/proc/%d/", p.Identity().PID)
	limits, err := os.ReadFile(proc + "limits")
	testkit.Must(t, err)
	for name, want := range map[string]string{
		"Max core file size": "0 0", "Max processes": "7 7", "Max open files": "33 33", "Max file size": "4096 4096",
		"Max address space": "1073741824 1073741824", "Max cpu time": "5 5",
	} {
		_, rest, _ := strings.Cut(string(limits), name)
		if got := strings.Fields(rest); len(got) < 2 || got[0]+" "+got[1] != want {
			t.Errorf("%s is %.2q, want %s", name, got, want)
		}
	}
	// The agent's own is negative in production, and a child inherits it.
	if got, err := os.ReadFile(proc + "oom_score_adj"); string(got) != "500\n" {
		t.Errorf("oom_score_adj = %q, %v: when memory is short others die before it", got, err)
	}
}

func TestNoNetwork(t *testing.T) {
	if out := inRoot(t, "readlink /proc/self/ns/net", func(c *Command) { c.NoNetwork = true }); strings.Contains(out, netNamespace(t)) {
		t.Errorf("it is in this network namespace: %s", out)
	}
}

func netNamespace(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink("/proc/self/ns/net")
	testkit.Must(t, err)
	return name
}
