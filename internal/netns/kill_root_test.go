//go:build root

package netns

import (
	"os/exec"
	"testing"
)

func TestKillEndsOnlyProcessesInside(t *testing.T) {
	_, path := create(t, "kill")
	outside := exec.Command("sleep", "600")
	inside := []*exec.Cmd{exec.Command("sleep", "600"), exec.Command("sleep", "600")}
	if err := outside.Start(); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range inside {
		if err := Do(path, cmd.Start); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := Kill(t.Context(), path); err != nil || n != len(inside) {
		t.Errorf("Kill() = %d, %v; want %d", n, err, len(inside))
	}
	for _, cmd := range inside {
		if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
			t.Errorf("a process inside ended with %v", err)
		}
	}
	if n, err := Kill(t.Context(), path); err != nil || n != 0 {
		t.Errorf("a second Kill() = %d, %v; want 0", n, err)
	}
	if err := outside.Process.Kill(); err != nil {
		t.Errorf("the process outside is gone: %v", err)
	}
	_ = outside.Wait() // killed above
}
