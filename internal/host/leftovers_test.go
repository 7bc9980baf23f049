package host

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLeftoversNamesDirectoriesOfMachines(t *testing.T) {
	run := t.TempDir()
	const prefix = "nosuch" // of no pool
	if left, err := Leftovers(run, prefix); err != nil || len(left) > 0 {
		t.Errorf("Leftovers() of a clean host = %q, %v", left, err)
	}
	machine := filepath.Join(run, "vm", "i1")
	if err := os.MkdirAll(machine, 0o700); err != nil {
		t.Fatal(err)
	}
	left, err := Leftovers(run, prefix)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"directory " + machine}, left); diff != "" {
		t.Errorf("Leftovers() mismatch (-want +got):\n%s", diff)
	}
}
