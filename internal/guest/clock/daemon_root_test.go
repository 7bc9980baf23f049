//go:build root

package clock

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/testkit"
)

const chronyd = "/usr/sbin/chronyd"

// TestStartDaemon: a real chronyd, that leaves this machine's clock alone, is ready
// when the call returns and has the usual priority.
func TestStartDaemon(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		testkit.Must(t, os.WriteFile(path, []byte(text), mode))
		return path
	}
	program := file("chronyd", "#!/bin/sh\nexec "+testkit.Program(t, chronyd)+" -x -u root \"$@\"\n", 0o755)
	pids := filepath.Join(dir, "pid")
	config := file("conf", fmt.Sprintf("port 0\ncmdport 0\nbindcmdaddress /\npidfile %s\n", pids), 0o644)
	testkit.Must(t, startDaemon(t.Context(), program, config, pids))
	text, err := os.ReadFile(pids)
	testkit.Must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	testkit.Must(t, err)
	defer func() { _ = unix.Kill(pid, unix.SIGKILL) }()
	// The system call answers 20 minus the priority.
	if priority, err := unix.Getpriority(unix.PRIO_PROCESS, pid); err != nil || priority != 20 {
		t.Errorf("priority is %d, %v; want 20", priority, err)
	}
	if err := startDaemon(t.Context(), program, file("bad", "nonsense\n", 0o644), pids); err == nil {
		t.Error("a wrong configuration: no error")
	}
}
