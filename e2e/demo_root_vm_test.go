//go:build root && vm

// Package e2e shows the product from outside: its programs, with real guests.
package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is for a cold boot under emulation on a machine that does much else.
const patience = 3 * time.Minute

// prefix keeps the tests' namespaces and links apart from an agent's.
const prefix = "we2e"

// demo is a run of "host-agent demo" in a state directory of the test's own.
type demo struct {
	cmd *exec.Cmd
	out *watched
}

// startDemo runs it on the guest image that was prepared before the tests.
func startDemo(t *testing.T, dir string, command ...string) *demo {
	t.Helper()
	args := []string{
		"--state", filepath.Join(dir, "state"), "demo", "--run", filepath.Join(dir, "run"),
		"--images", needed(t, "WRENN_TEST_IMAGES"), "--range", "10.213.0.0/16", "--prefix", prefix,
	}
	d := &demo{cmd: exec.Command(hostAgent(t), append(args, command...)...), out: newWatched()}
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.cmd.Process.Kill() }) // it has ended in every test that passes
	return d
}

// wait returns the exit code and everything that was printed.
func (d *demo) wait(t *testing.T) (int, string) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- d.cmd.Wait() }()
	select {
	case err := <-done:
		if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
			t.Fatalf("demo: %v", exit)
		}
	case <-time.After(patience):
		t.Fatalf("the demo did not end within %s; it printed:\n%s", patience, d.out)
	}
	return d.cmd.ProcessState.ExitCode(), d.out.String()
}

// stateDir returns a short temporary directory: sockets live below it.
func stateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "we2e") //nolint:usetesting // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left := leftovers(t, dir); len(left) > 0 {
			t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestDemo(t *testing.T) {
	dir := stateDir(t)
	for _, tc := range []struct {
		name    string
		command []string
		code    int
		want    []string
	}{
		{"greeting alone", nil, 0, []string{`hello from \d+\.\d+`}},
		{"a command of the user's", []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, 3, []string{`(?m)^  out$`, `(?m)^  err$`, `exit status 3`}},
		{"a command that is not there", []string{"no-such-program"}, 1, []string{`no-such-program`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, out := startDemo(t, dir, tc.command...).wait(t)
			if code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			for _, want := range tc.want {
				if !regexp.MustCompile(want).MatchString(out) {
					t.Errorf("nothing in the output matches %s", want)
				}
			}
			if t.Failed() {
				t.Log(out)
			}
		})
	}
}

// TestDemoInterrupted ends the demo in the middle, in both ways, at moments
// that differ in what has been made.
func TestDemoInterrupted(t *testing.T) {
	dir := stateDir(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		for moment, command := range map[string][]string{
			"A new machine": nil, "hello from": {"sleep", "600"}, "The same machine again": nil,
		} {
			t.Run(fmt.Sprintf("%s at %q", sig, moment), func(t *testing.T) {
				d := startDemo(t, dir, command...)
				if !d.out.wait(moment, patience) {
					t.Fatalf("the demo did not come to %q:\n%s", moment, d.out)
				}
				if err := d.cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
				code, out := d.wait(t)
				if code == 0 {
					t.Errorf("an interrupted demo ended with 0:\n%s", out)
				}
				if sig == syscall.SIGKILL {
					if code, out := startDemo(t, dir).wait(t); code != 0 {
						t.Errorf("the next demo ended with %d:\n%s", code, out)
					}
				}
				if left := leftovers(t, dir); len(left) > 0 {
					t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
				}
			})
		}
	}
}

// TestDemoNeedsRoot runs a copy of the program, where nobody may reach it.
func TestDemoNeedsRoot(t *testing.T) {
	dir := stateDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(hostAgent(t))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "host-agent")
	if err := os.WriteFile(path, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "demo")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "run it with sudo") {
		t.Errorf("demo as nobody: %v:\n%s", err, out)
	}
}

func TestDemoTwoAtOnceIsRefused(t *testing.T) {
	dir := stateDir(t)
	first := startDemo(t, dir, "sleep", "600")
	if !first.out.wait("hello from", patience) {
		t.Fatalf("the first demo does not run:\n%s", first.out)
	}
	if code, out := startDemo(t, dir).wait(t); code == 0 || !strings.Contains(out, "another host agent") {
		t.Errorf("the second demo ended with %d:\n%s", code, out)
	}
	if err := first.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	first.wait(t)
}

// leftovers names the processes, mounts, namespaces and links of the test's
// state directory that are still there.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	left := processes(t, dir)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) || strings.Contains(line, "/netns/"+prefix) {
			left = append(left, "mount "+line)
		}
	}
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if strings.HasPrefix(link.Name(), prefix) {
			left = append(left, "link "+link.Name())
		}
	}
	for _, pattern := range []string{"run/vm/*", "state/sandboxes/*", "state/store/sandboxes/*", "state/snapshots/*", "state/store/snapshots/*"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, files...)
	}
	return left
}

// processes names those that have dir in their command lines.
func processes(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range cmdlines {
		if line, err := os.ReadFile(path); err == nil && bytes.Contains(line, []byte(dir)) {
			found = append(found, "process "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

func hostAgent(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../bin/host-agent")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: make build first", err)
	}
	return path
}

// needed returns a setting of the tests; without it the test is skipped, and
// fails where nothing may be skipped.
func needed(t *testing.T, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" && os.Getenv("WRENN_CI") == "1" {
		t.Fatalf("%s is not set", name)
	}
	if value == "" {
		t.Skipf("%s is not set: see CONTRIBUTING.md", name)
	}
	return value
}
