//go:build root && vm

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"wrenn.dev/internal/testkit"
)

// tour runs what "make run" runs, in the test's own state directory.
func tour(t *testing.T, dir string, command ...string) *everything {
	t.Helper()
	return startUp(t, dir, append([]string{"--", "../scripts/tour.sh"}, command...)...)
}

// end waits for the end and returns the exit code and everything that was printed.
func (e *everything) end(t *testing.T) (int, string) {
	t.Helper()
	select {
	case <-e.done:
	case <-time.After(patience):
		t.Fatalf("it did not end within %s; it printed:\n%s", patience, e.out)
	}
	return e.cmd.ProcessState.ExitCode(), e.out.String()
}

func TestRun(t *testing.T) {
	dir := stateDir(t)
	for _, tc := range []struct {
		name    string
		command []string
		code    int
		want    []string
	}{
		{"greeting alone", nil, 0, []string{`sandbox create\n`, `sandbox exec \w+ -- sh -c .*\nhello from Linux \d+\.\d+`, `sandbox kill`, `stopping`}},
		{"a command of the user's", []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, 3, []string{`(?m)^out$`, `(?m)^err$`}},
		{"a command that is not there", []string{"no-such-program"}, 127, []string{`no-such-program.* not found`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, out := tour(t, dir, tc.command...).end(t)
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
			if left := leftovers(t, dir); len(left) > 0 {
				t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			}
		})
	}
}

// TestRunInterrupted ends the tour in all ways, at moments that differ in what
// exists already. Ctrl-C and the end of the terminal signal all processes that the
// terminal started; for the latter one moment is enough.
func TestRunInterrupted(t *testing.T) {
	dir := stateDir(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGHUP, syscall.SIGKILL} {
		for moment, command := range map[string][]string{
			"starting the database": nil, "starting the host agent": nil, "sandbox create": nil, "asleep\n": {"sh", "-c", "echo asleep; sleep 600"},
		} {
			if sig == syscall.SIGHUP && moment != "sandbox create" {
				continue
			}
			t.Run(fmt.Sprintf("%s at %q", sig, moment), func(t *testing.T) {
				e := tour(t, dir, command...)
				if !e.out.wait(moment, patience) {
					t.Fatalf("it did not come to %q:\n%s", moment, e.out)
				}
				target := -e.cmd.Process.Pid
				if sig == syscall.SIGKILL {
					target = e.cmd.Process.Pid
				}
				if err := syscall.Kill(target, sig); err != nil {
					t.Fatal(err)
				}
				if code, out := e.end(t); code == 0 {
					t.Errorf("it was interrupted and ended with 0:\n%s", out)
				}
				if sig == syscall.SIGKILL {
					if code, out := tour(t, dir).end(t); code != 0 {
						t.Errorf("the next one ended with %d:\n%s", code, out)
					}
				}
				if left := leftovers(t, dir); len(left) > 0 {
					t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
				}
			})
		}
	}
}

func TestRunTwoAtOnceIsRefused(t *testing.T) {
	dir := stateDir(t)
	first := tour(t, dir, "sh", "-c", "echo asleep; sleep 600")
	if !first.out.wait("asleep\n", patience) {
		t.Fatalf("the first one does not run:\n%s", first.out)
	}
	if code, out := tour(t, dir).end(t); code != 1 || !strings.Contains(out, fmt.Sprintf("(process %d)", first.cmd.Process.Pid)) {
		t.Errorf("the second one ended with %d:\n%s", code, out)
	}
	if err := syscall.Kill(-first.cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code, out := first.end(t); code != 130 {
		t.Errorf("the first one ended with %d:\n%s", code, out)
	}
}

// TestUpNeedsRoot runs a copy of the program in a directory that all users can enter.
func TestUpNeedsRoot(t *testing.T) {
	dir := stateDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile("../bin/wrenn")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "wrenn")
	if err := os.WriteFile(path, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "up")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "sudo wrenn up") {
		t.Errorf("up without root: %v:\n%s", err, out)
	}
}

// TestExamples runs the programs of docs/recipes.md, and reads the metrics of both programs.
func TestExamples(t *testing.T) {
	dir := stateDir(t)
	plane, agent := testkit.FreeAddress(t), testkit.FreeAddress(t)
	const scrape = `../examples/test.sh && curl -sf http://$0/metrics | grep '^wrenn_host_up.* 1' && curl -sf http://$1/metrics | grep '^wrenn_sandboxes'`
	code, out := startUp(t, dir, "--metrics", plane, "--agent-metrics", agent, "--", "bash", "-c", scrape, plane, agent).end(t)
	if code != 0 || !strings.Contains(out, "review leaves nothing works") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}
