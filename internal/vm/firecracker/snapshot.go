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

	"wrenn"
	"wrenn/internal/rollback"
	"wrenn/internal/vm"
)

// The files of a snapshot's directory. The manifest comes last.
const (
	stateFile    = "state"
	memoryFile   = "memory"
	manifestFile = "firecracker.json"
)

// While a snapshot is written, the VMM sees its files under these names; one
// that was restored still has nameState and nameMemory.
const (
	nameNewState  = "new-state"
	nameNewMemory = "new-memory"
)

// manifest says what a snapshot is, and what may load it.
type manifest struct {
	Format     int        `json:"format"`
	Version    Version    `json:"version"`
	CPU        string     `json:"cpu"`              // see cpuModel
	Kernel     string     `json:"kernel,omitempty"` // vm.Kernel.Digest of the guest's
	Machine    shape      `json:"machine"`
	State      vm.FileSum `json:"state"`
	MemorySize int64      `json:"memory_size"`
}

const manifestFormat = 2

// shape is what a snapshot has of the spec of its machine. Another TAP is no
// obstacle: the new one is named when a snapshot is loaded.
type shape struct {
	VCPUs     int         `json:"vcpus"`
	MemoryMiB int         `json:"memory_mib"`
	Disks     []diskShape `json:"disks"`
	TAP       string      `json:"tap,omitempty"`
	MAC       string      `json:"mac,omitempty"`
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
	}
	return s, nil
}

// Snapshot implements vm.Machine. Of a machine whose changes are tracked, only
// those are written, over a clone of what they are changes of.
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

// tracksTo is the directory of the snapshot that the tracked changes are
// changes of, after one was taken to dir: "" if none are tracked.
func (m *machine) tracksTo(dir string) string {
	if m.tracks == "" {
		return ""
	}
	return dir
}

// paused is nil when the machine is, FailedPrecondition otherwise.
func (m *machine) paused(ctx context.Context) error {
	if err := m.alive(); err != nil {
		return err
	}
	state, err := m.api.state(ctx)
	if err != nil {
		return m.explain(ctx, err)
	}
	if state != statePaused {
		return wrenn.Errorf(wrenn.FailedPrecondition, "a machine must be paused to take a snapshot of it; this one is %s", strings.ToLower(state))
	}
	return nil
}

// write lets the VMM write state and memory to files that it is lent. From
// then on it counts changes anew, whether all went well or not.
func (m *machine) write(ctx context.Context, dir string) (err error) {
	kind := "Full"
	if m.memory.known() {
		kind = "Diff" // it writes into the memory file that is there, see capabilities
	}
	if err := m.cell.noteSnapshot(); err != nil {
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
	giveBack, err := m.cell.lend(m.process, files)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, giveBack()) }()
	err = m.api.create(ctx, m.shape.MemoryMiB, snapshotCreate{Type: kind, State: nameNewState, Memory: nameNewMemory})
	if err != nil {
		return m.explain(ctx, err)
	}
	return nil
}

// touch makes sure that there is a file.
func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// describe makes the files nobody's to change, and writes the manifest. They
// may be read by all VMMs that are shown them; that nobody else reads them is
// for the permissions of the directory to say.
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
		Format: manifestFormat, Version: m.driver.version, CPU: cpuModel(), Kernel: m.kernel, Machine: m.shape,
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

// checkSnapshot says whether a machine of the shape, and of the kernel if one is
// named, may be made from the snapshot in dir, else FailedPrecondition; the
// manifest is what it is of.
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
		return manifest{}, wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot was made by Firecracker %s, which %s does not load", made.Version, d.version)
	}
	if cpu := cpuModel(); made.CPU != cpu {
		return manifest{}, wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot was made on another processor: %s, this is %s", made.CPU, cpu)
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
	return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "not a usable snapshot of Firecracker", Err: why}
}

// matches holds the manifest to the files beside it. Of the memory the size
// must do: to read all of it would cost what mapping it saves.
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

// fits says with FailedPrecondition what keeps a machine of the shape want
// from being made of one of the shape s.
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
		return wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot's machine has disks of other sizes, or other disks are read-only")
	case (s.TAP == "") != (want.TAP == ""):
		return wrenn.Errorf(wrenn.FailedPrecondition, "only one of the snapshot's machine and the wanted one has a network")
	case s.MAC != want.MAC:
		return differs("the MAC address", s.MAC, want.MAC)
	}
	return nil
}

// cpuModel names the host's kind of processor; a guest that was told of one
// cannot go on on another.
func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	return cpuModelOf(info)
}

// cpuModelOf takes vendor, family, model and stepping of the first processor.
func cpuModelOf(cpuinfo []byte) string {
	first, _, _ := strings.Cut(string(cpuinfo), "\n\n")
	var parts []string
	for line := range strings.Lines(first) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "vendor_id", "cpu family", "model", "stepping":
			parts = append(parts, strings.TrimSpace(value))
		}
	}
	return strings.Join(parts, " ")
}
