//go:build root

package netns

import (
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestProcesses(t *testing.T) {
	_, empty := create(t, "procs-a")
	_, lived := create(t, "procs-b")
	_, other := create(t, "procs-c")
	inside := map[string][]int{}
	for _, path := range []string{lived, lived, other} {
		cmd := exec.Command("sleep", "600")
		if err := Do(path, cmd.Start); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }) // it ends by the signal
		inside[path] = append(inside[path], cmd.Process.Pid)
	}
	got, err := Processes([]string{empty, lived, Path("no-such-namespace")})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string][]int{lived: inside[lived]}, got, cmp.Transformer("set", func(pids []int) map[int]bool {
		set := map[int]bool{}
		for _, pid := range pids {
			set[pid] = true
		}
		return set
	})); diff != "" {
		t.Errorf("Processes() (-want +got):\n%s", diff)
	}
}
