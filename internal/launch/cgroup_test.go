package launch

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestSweepCgroups(t *testing.T) {
	parent := t.TempDir()
	left, fresh := filepath.Join(parent, "left"), filepath.Join(parent, "fresh")
	control := filepath.Join(parent, "cgroup.procs")
	before := time.Now().Add(-2 * freshCgroup)
	err := errors.Join(os.Mkdir(left, 0o700), os.Mkdir(fresh, 0o700), os.WriteFile(control, nil, 0o600),
		os.Chtimes(left, before, before), os.Chtimes(control, before, before))
	if err != nil {
		t.Fatal(err)
	}
	if err := sweepCgroups(parent); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{left: false, fresh: true, control: true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v; want it there: %v", filepath.Base(path), err, want)
		}
	}
	if err := sweepCgroups(filepath.Join(parent, "none")); err != nil {
		t.Errorf("of a parent that is not there: %v", err)
	}
}
