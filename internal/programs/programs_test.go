package programs

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
)

// TestUmask: the output is for its user alone, and what the program makes is as always.
func TestUmask(t *testing.T) {
	for name, wrap := range map[string]func(client.Command) client.Command{"detached": Detached, "recorded": Recorded} {
		t.Run(name, func(t *testing.T) {
			cmd := wrap(client.Command{Cmd: "/bin/sh", Args: []string{"-c", "umask; exit 3"}})
			p := exec.CommandContext(t.Context(), "/bin/sh", append([]string{"-c", `umask 0027; exec "$@"`, "sh", cmd.Cmd}, cmd.Args...)...)
			if err := p.Run(); p.ProcessState == nil || p.ProcessState.ExitCode() != 3 {
				t.Fatal(err)
			}
			log := Log(p.ProcessState.Pid())
			t.Cleanup(func() {
				_ = os.Remove(log + ".exit") // of recorded ones
				testkit.Must(t, os.Remove(log))
			})
			text, err := os.ReadFile(log)
			testkit.Must(t, err)
			if got := strings.TrimSpace(string(text)); got != "0027" {
				t.Errorf("the program's umask is %s", got)
			}
			info, err := os.Stat(log)
			testkit.Must(t, err)
			if got := info.Mode().Perm(); got != 0o600 {
				t.Errorf("the log has mode %o", got)
			}
		})
	}
}
