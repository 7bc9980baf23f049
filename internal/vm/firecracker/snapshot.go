package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/vm"
)

// The files of a snapshot's directory. The manifest comes last.
const (
	stateFile    = "state"
	memoryFile   = "memory"
	manifestFile = "firecracker.json"
)

// The VMM sees the files of a snapshot that it writes under these names. A restored
// one still has nameState and nameMemory.
const (
	nameNewState  = "new-state"
	nameNewMemory = "new-memory"
)

// manifest describes a snapshot and what can load it.
type manifest struct {
	Format     int        `json:"format"`
	Version    Version    `json:"version"`
	CPU        string     `json:"cpu"`              // see vm.HostProcessor
	Kernel     string     `json:"kernel,omitempty"` // vm.Kernel.Digest of the guest's
	Machine    shape      `json:"machine"`
	State      vm.FileSum `json:"state"`
	MemorySize int64      `json:"memory_size"`
}

const manifestFormat = 2

// shape is the part of a machine's spec that a snapshot records. A snapshot may be
// loaded with another TAP: the call names the new one.
type shape struct {
	VCPUs     int         `json:"vcpus"`
	MemoryMiB int         `json:"memory_mib"`
	Disks     []diskShape `json:"disks"`
	TAP       string      `json:"tap,omitempty"`
	MAC       string      `json:"mac,omitempty"`
	// Limited reports whether a disk has a rate, which is in the state of the devices then.
	Limited bool `json:"limited,omitempty"`
}

type diskShape struct {
	Size     int64 `json:"size"`
	ReadOnly bool  `json:"read_only"`
}

func shapeOf(spec vm.Spec) (shape, error) {
	s := shape{VCPUs: spec.VCPUs, MemoryMiB: spec.MemoryMiB, Disks: []diskShape{}, TAP: spec.Net.TAP}
	if s.TAP != "" {
		s.MAC = spec.Net.MAC
	}
	for _, disk := range spec.Disks {
		info, err := os.Stat(disk.Path)
		if err != nil {
			return shape{}, fmt.Errorf("disk: %w", err)
		}
		s.Disks = append(s.Disks, diskShape{info.Size(), disk.ReadOnly})
		s.Limited = s.Limited || disk.Rate != vm.DiskRate{}
	}
	return s, nil
}

// Snapshot implements vm.Machine. If the VMM tracks the machine's changes it writes
// only those, over a clone of their base.
func (m *machine) Snapshot(ctx context.Context, dir string) (err error) {
	if err := m.op.Lock(ctx); err != nil {
		return err
	}
	defer m.op.Unlock()
	if err := m.paused(ctx); err != nil {
		return err
	}
	if err := m.memory.ready(ctx, dir); err != nil {
		return err
	}
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Run(ctx)) }()
	undo.Add(func(context.Context) error { return removeSnapshot(dir) })
	if err := m.write(ctx, dir); err != nil {
		return err
	}
	if err := m.describe(dir); err != nil {
		return err
	}
	m.memory.begin(m.tracksTo(dir))
	undo.Keep()
	return nil
}

// PrepareSnapshot implements vm.SnapshotPreparer: it clones the memory.
func (m *machine) PrepareSnapshot(ctx context.Context, dir string) error {
	if err := m.op.Lock(ctx); err != nil {
		return err
	}
	defer m.op.Unlock()
	if err := m.alive(); err != nil {
		return err
	}
	if err := vm.CheckEmpty(dir); err != nil {
		return err
	}
	return m.memory.prepare(ctx, dir)
}

// tracksTo returns the directory of the base of the tracked changes after a snapshot
// was taken to dir; "" if none are tracked.
func (m *machine) tracksTo(dir string) string {
	if m.tracks == "" {
		return ""
	}
	return dir
}

// paused returns FailedPrecondition unless the machine is paused.
func (m *machine) paused(ctx context.Context) error {
	if err := m.alive(); err != nil {
		return err
	}
	state, err := m.api.state(ctx)
	if err != nil {
		return m.explain(ctx, err)
	}
	if state != statePaused {
		return wrenn.Errorf(wrenn.FailedPrecondition, "the machine is %s; pause it to take a snapshot", strings.ToLower(state))
	}
	return nil
}

// write makes the VMM write state and memory to files that are lent to it. From then
// on it tracks changes since this snapshot, also if write fails.
func (m *machine) write(ctx context.Context, dir string) (err error) {
	kind := "Full"
	if m.memory.known() {
		kind = "Diff" // it writes into the existing memory file, see capabilities
	}
	if err := m.jail.recordSnapshot(); err != nil {
		return err
	}
	m.memory.end()
	files := []file{
		{name: nameNewState, path: filepath.Join(dir, stateFile)},
		{name: nameNewMemory, path: filepath.Join(dir, memoryFile)},
	}
	for _, f := range files {
		if err := touch(f.path); err != nil {
			return err
		}
	}
	revoke, err := m.jail.lend(m.process, files)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, revoke()) }()
	err = m.api.create(ctx, m.shape.MemoryMiB, snapshotCreate{Type: kind, State: nameNewState, Memory: nameNewMemory})
	if err != nil {
		return m.explain(ctx, err)
	}
	return nil
}

// touch makes a file unless it exists.
func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// describe makes the files read-only and writes the manifest. All VMMs that see the
// files may read them; the permissions of the directory keep others away.
func (m *machine) describe(dir string) error {
	for _, name := range []string{stateFile, memoryFile} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.Chown(path, os.Getuid(), os.Getgid()), os.Chmod(path, 0o444)); err != nil {
			return err
		}
	}
	state, err := vm.SumFile(filepath.Join(dir, stateFile))
	if err != nil {
		return err
	}
	memory, err := os.Stat(filepath.Join(dir, memoryFile))
	if err != nil {
		return err
	}
	return vm.WriteManifest(filepath.Join(dir, manifestFile), manifest{
		Format: manifestFormat, Version: m.driver.version, CPU: vm.HostProcessor(), Kernel: m.kernel, Machine: m.shape,
		State: state, MemorySize: memory.Size(),
	})
}

func removeSnapshot(dir string) error {
	var errs []error
	for _, name := range []string{manifestFile, stateFile, memoryFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// checkSnapshot returns the manifest of the snapshot in dir, or FailedPrecondition if
// it cannot become a machine of the shape, and with the kernel if that is not empty.
func (d *Driver) checkSnapshot(want shape, kernel, dir string) (manifest, error) {
	var made manifest
	err := vm.ReadManifest(filepath.Join(dir, manifestFile), &made)
	if err == nil && made.Format != manifestFormat {
		err = fmt.Errorf("%s has format %d, not %d", manifestFile, made.Format, manifestFormat)
	}
	if err != nil {
		return manifest{}, damaged(err)
	}
	if !d.version.loads(made.Version) {
		return manifest{}, wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot is from Firecracker %s, which Firecracker %s cannot load", made.Version, d.version)
	}
	if cpu := vm.HostProcessor(); made.CPU != cpu {
		return manifest{}, wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot is from another processor: %s, not %s", made.CPU, cpu)
	}
	if kernel != "" && made.Kernel != kernel {
		return manifest{}, wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot's guest has the kernel %.80q, not %.80q", made.Kernel, kernel)
	}
	if err := made.Machine.fits(want); err != nil {
		return manifest{}, err
	}
	if err := made.matches(dir); err != nil {
		return manifest{}, damaged(err)
	}
	return made, nil
}

func damaged(why error) error {
	return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "not a usable Firecracker snapshot", Err: why}
}

// matches checks the files against the manifest. Of the memory it checks only the
// size: to read all of it would cost what mapping it saves.
func (made manifest) matches(dir string) error {
	state, err := made.State.Open(filepath.Join(dir, stateFile))
	if err != nil {
		return err
	}
	state.Close()
	if made.MemorySize != int64(made.Machine.MemoryMiB)<<20 {
		return fmt.Errorf("%s: %d bytes of memory are not %d MiB", manifestFile, made.MemorySize, made.Machine.MemoryMiB)
	}
	memory, err := vm.OpenSized(filepath.Join(dir, memoryFile), made.MemorySize)
	if err != nil {
		return err
	}
	return memory.Close()
}

// fits returns nil if a snapshot of a machine of shape s can become a machine of the
// shape want, else FailedPrecondition that names the difference.
func (s shape) fits(want shape) error {
	differs := func(what string, has, wanted any) error {
		return wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot's machine has %s %v, not %v", what, has, wanted)
	}
	switch {
	case s.VCPUs != want.VCPUs:
		return differs("vCPUs:", s.VCPUs, want.VCPUs)
	case s.MemoryMiB != want.MemoryMiB:
		return differs("MiB of memory:", s.MemoryMiB, want.MemoryMiB)
	case len(s.Disks) != len(want.Disks):
		return differs("disks:", len(s.Disks), len(want.Disks))
	case !slices.Equal(s.Disks, want.Disks):
		return wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot's machine has disks of other sizes, or other read-only disks")
	case (s.TAP == "") != (want.TAP == ""):
		return wrenn.Errorf(wrenn.FailedPrecondition, "only one of the snapshot's machine and the new machine has a network")
	case s.MAC != want.MAC:
		return differs("the MAC address", s.MAC, want.MAC)
	}
	return nil
}
