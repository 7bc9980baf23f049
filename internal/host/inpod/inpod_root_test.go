//go:build root

package inpod

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/testkit"
)

// asAgent has the test's program be the agent: it enters the host and becomes a shell there.
const asAgent = "WRENN_TEST_HOST_PID"

func TestMain(m *testing.M) {
	if pid, err := strconv.Atoi(os.Getenv(asAgent)); err == nil {
		err = Exec(pid, "/bin/sh", []string{"sh", "-c", "cat /proc/self/cgroup; cat " + os.Getenv("MARK")}, os.Environ())
		os.Stderr.WriteString(err.Error())
		os.Exit(3) //nolint:forbidigo // this process is the agent
	}
	os.Exit(m.Run()) //nolint:forbidigo // as TestMain must
}

// TestExec: a process with another mount stands for the host, and one with another
// mount namespace and in a cgroup of a pod for the agent.
func TestExec(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	testkit.Must(t, os.WriteFile(mark, []byte("of the pod"), 0o600))
	other := filepath.Join(t.TempDir(), "other")
	testkit.Must(t, os.WriteFile(other, []byte("of the host"), 0o600))
	host := exec.CommandContext(t.Context(), "/bin/sh", "-c", `mount --make-rprivate / && mount --bind "$1" "$2" && echo ready && read line`, "sh", other, mark)
	host.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	stdin, err := host.StdinPipe()
	testkit.Must(t, err)
	stdout, err := host.StdoutPipe()
	testkit.Must(t, err)
	testkit.Must(t, host.Start())
	t.Cleanup(func() { stdin.Close(); _ = host.Wait() })
	var ready [6]byte
	if _, err := stdout.Read(ready[:]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(removeGroups)
	self, err := os.Executable()
	testkit.Must(t, err)
	agent := exec.CommandContext(t.Context(), self)
	agent.Env = append(os.Environ(), asAgent+"="+strconv.Itoa(host.Process.Pid), "MARK="+mark)
	agent.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	out, err := agent.CombinedOutput()
	if !strings.HasSuffix(string(out), "of the host") {
		t.Errorf("the agent printed %q, %v", out, err)
	}
	for line := range strings.Lines(string(out)) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 && parts[2] != "/"+group && mounted(t, parts[1]) {
			t.Errorf("still in the cgroup %s", line)
		}
	}
}

// removeGroups removes the cgroups that Exec made. The kernel keeps those of an agent.
func removeGroups() {
	text, _ := os.ReadFile("/proc/self/mountinfo")
	for _, dir := range hierarchies(text) {
		_ = os.Remove(filepath.Join(dir, group))
	}
}

// mounted reports whether the hierarchy is mounted here: of one that is not, no process
// can leave its cgroup.
func mounted(t *testing.T, controllers string) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	testkit.Must(t, err)
	for _, dir := range hierarchies(text) {
		if controllers == "" && strings.HasSuffix(dir, "unified") || controllers != "" && strings.Contains(string(text), controllers) {
			return true
		}
	}
	return controllers == "" && len(hierarchies(text)) == 1
}

func TestExecWithoutTheHost(t *testing.T) {
	done := make(chan error)
	go func() { done <- Exec(1<<30, "/bin/true", nil, nil) }() // its thread ends with it
	if err := <-done; err == nil || !strings.Contains(err.Error(), "hostPID") {
		t.Errorf("no such process: %v", err)
	}
}
