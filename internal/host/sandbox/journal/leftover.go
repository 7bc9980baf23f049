package journal

import (
	"os"
	"path/filepath"
)

// Leftover is the directory of a sandbox that an earlier agent left.
type Leftover struct {
	Name    string
	Journal *Journal // nil when Err is set
	Err     error
}

// ReadAll reads the journals in dir, which has a directory for each sandbox. An
// agent that died while a sandbox claimed a machine of the warm pool left that
// machine in two journals: it is the sandbox's.
func ReadAll(dir string) ([]Leftover, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	all := make([]Leftover, len(entries))
	claimed := map[string]bool{} // slots, by their ids, which are never used again
	for i, e := range entries {
		j, err := Read(filepath.Join(dir, e.Name()))
		all[i] = Leftover{Name: e.Name(), Journal: j, Err: err}
		if err != nil || j.Template == PoolTemplate {
			continue
		}
		for _, inst := range j.Instances() {
			if inst.Slot != nil {
				claimed[inst.Slot.ID] = true
			}
		}
	}
	for _, left := range all {
		if j := left.Journal; j != nil && j.Template == PoolTemplate && j.Other != nil && j.Other.Slot != nil && claimed[j.Other.Slot.ID] {
			j.Other = nil
		}
	}
	return all, nil
}

// MachineDirs returns the directories of the machines that the journals name.
func MachineDirs(all []Leftover) map[string]bool {
	dirs := map[string]bool{}
	for _, left := range all {
		if left.Journal == nil {
			continue
		}
		for _, inst := range left.Journal.Instances() {
			if inst.Machine != nil {
				dirs[inst.Machine.Dir] = true
			}
		}
	}
	return dirs
}
