package vmfake

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/vm"
)

// The files of a snapshot.
const (
	memoryName   = "memory"
	manifestName = "fake.json" // written last
)

// shape is the part of a spec that must be that of the snapshot's machine.
type shape struct {
	VCPUs     int    `json:"vcpus"`
	MemoryMiB int    `json:"memory_mib"`
	Disks     int    `json:"disks"`
	MAC       string `json:"mac,omitempty"`
}

func shapeOf(spec vm.Spec) shape {
	s := shape{VCPUs: spec.VCPUs, MemoryMiB: spec.MemoryMiB, Disks: len(spec.Disks)}
	if spec.Net.TAP != "" {
		s.MAC = strings.ToLower(spec.Net.MAC)
	}
	return s
}

type manifest struct {
	Shape  shape      `json:"shape"`
	Kernel string     `json:"kernel,omitempty"`
	Memory vm.FileSum `json:"memory"`
}

// PrepareSnapshot implements vm.SnapshotPreparer. It has nothing to do.
func (m *machine) PrepareSnapshot(_ context.Context, dir string) error {
	if err := m.whileAlive(func() {}); err != nil {
		return err
	}
	return vm.CheckEmpty(dir)
}

// Snapshot implements vm.Machine.
func (m *machine) Snapshot(ctx context.Context, dir string) error {
	mem, err := m.copyMemory()
	if err != nil {
		return err
	}
	if err := vm.CheckEmpty(dir); err != nil {
		return err
	}
	write := func(step Step, name string, write func(path string) error) rollback.Step {
		path := filepath.Join(dir, name)
		return rollback.Step{
			Name: step,
			Do:   func(context.Context) error { return write(path) },
			Undo: func(context.Context) error { return removeFile(path) },
		}
	}
	return rollback.Runner{Hook: m.hook}.Run(ctx,
		write(StepMemory, memoryName, func(path string) error { return writeJSON(path, mem) }),
		write(StepManifest, manifestName, func(path string) error {
			sum, err := vm.SumFile(filepath.Join(dir, memoryName))
			return errors.Join(err, vm.WriteManifest(path, manifest{shapeOf(m.spec), m.kernel, sum}))
		}))
}

// loadSnapshot returns the memory and the kernel of a snapshot, which must have the
// shape, and the kernel if that is not empty.
func loadSnapshot(dir string, want shape, kernel string) (mem memory, was string, err error) {
	var man manifest
	if err := vm.ReadManifest(filepath.Join(dir, manifestName), &man); err != nil {
		return mem, "", damaged(err)
	}
	if man.Shape != want {
		return mem, "", wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot's machine has another shape: %+v, not %+v", man.Shape, want)
	}
	if kernel != "" && man.Kernel != kernel {
		return mem, "", wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot's guest has the kernel %.80q, not %.80q", man.Kernel, kernel)
	}
	f, err := man.Memory.Open(filepath.Join(dir, memoryName))
	if err != nil {
		return mem, "", damaged(err)
	}
	defer f.Close()
	if err := json.NewDecoder(f).Decode(&mem); err != nil {
		return mem, "", damaged(err)
	}
	return mem, man.Kernel, nil
}

func damaged(why error) error {
	return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "not a complete snapshot of this driver", Err: why}
}

func writeJSON(path string, content any) error {
	data, err := json.Marshal(content)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}
