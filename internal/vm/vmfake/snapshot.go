package vmfake

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"wrenn"
	"wrenn/internal/rollback"
	"wrenn/internal/vm"
)

// The files of a snapshot.
const (
	memoryName   = "memory"
	manifestName = "fake.json" // written last
)

// shape is what a spec must have in common with a snapshot.
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
	Shape  shape  `json:"shape"`
	Memory string `json:"memory"` // the SHA-256 of its file
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
	data, err := json.Marshal(mem)
	if err != nil {
		return err
	}
	var undo rollback.Stack
	defer undo.Run(ctx)
	for _, part := range []struct {
		step    Step
		name    string
		content any
	}{
		{StepMemory, memoryName, json.RawMessage(data)},
		{StepManifest, manifestName, manifest{shapeOf(m.spec), digest(data)}},
	} {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		path := filepath.Join(dir, part.name)
		undo.Add(func(context.Context) error { return os.Remove(path) })
		if err := errors.Join(writeJSON(path, part.content), m.fault(part.step)); err != nil {
			return err
		}
	}
	undo.Keep()
	return nil
}

// loadSnapshot reads the memory of a snapshot that must have the shape.
func loadSnapshot(dir string, want shape) (mem memory, err error) {
	var man manifest
	data, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err == nil {
		err = json.Unmarshal(data, &man)
	}
	if err != nil {
		return mem, damaged(err)
	}
	if man.Shape != want {
		return mem, wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot is of a machine of another shape: %+v, not %+v", man.Shape, want)
	}
	if data, err = os.ReadFile(filepath.Join(dir, memoryName)); err != nil {
		return mem, damaged(err)
	}
	if digest(data) != man.Memory {
		return mem, damaged(errors.New("its memory is not the one that was written"))
	}
	if err := json.Unmarshal(data, &mem); err != nil {
		return mem, damaged(err)
	}
	return mem, nil
}

func damaged(why error) error {
	return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "that is no whole snapshot of this driver", Err: why}
}

func writeJSON(path string, content any) error {
	data, err := json.Marshal(content)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
