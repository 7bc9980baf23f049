package qemu

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/vm"
)

// The parts of a snapshot's directory. Memory and state are in a directory that only the
// agent can enter, because every user may read the memory file: VMMs run as other users,
// and get it as an open file.
const (
	manifestName = "qemu.json" // written last
	privateName  = "private"
	memoryName   = "memory"
	stateName    = "state"

	unfinishedName = "memory.new" // memory that is being copied
)

const manifestFormat = 2

// The keys of vm.Ref.Private.
const (
	refManifest = "manifest" // the manifest that snapshots of the machine begin with
	refBase     = "base"     // the directory of the snapshot that it was restored from
	refMapped   = "mapped"   // the fileID of the file that a restored machine maps
	refMemory   = "memory"   // the fileKey of the file that the VMM maps
	refCgroup   = "cgroup"   // the directory of its cgroup; "" for none
)

// maxClockDrift is the largest difference between the clocks of two hosts, in parts per
// million: chrony corrects as much without a step.
const maxClockDrift = 500

// manifest describes what a snapshot fits.
type manifest struct {
	Format int `json:"format"`
	// QEMU is its version, major.minor: the form of the device state may change between
	// versions, and microvm has no versions.
	QEMU string `json:"qemu"`
	// Driver is the driver's name; "" is Name, of older agents. KVM and the emulator have
	// different states of the same devices.
	Driver string `json:"driver,omitempty"`
	// Processor is the host's, if the guest sees it.
	Processor string `json:"processor,omitempty"`
	// Features are those of the processor that the guest has seen, see hostFeatures.
	Features []string `json:"features,omitempty"`
	// TSCKHz is the rate of the guest's clock, which is the host's.
	TSCKHz    int      `json:"tsc_khz"`
	VCPUs     int      `json:"vcpus"`
	MemoryMiB int      `json:"memory_mib"`
	Disks     []string `json:"disks"` // "rw" or "ro" each: a guest can see the difference
	MAC       string   `json:"mac,omitempty"`
	Hardware  []string `json:"hardware"`
	// Kernel is the vm.Kernel.Digest of the guest's.
	Kernel  string     `json:"kernel,omitempty"`
	State   vm.FileSum `json:"state"`
	Changes *changes   `json:"changes,omitempty"`
}

// manifest returns the manifest of a machine of this driver.
func (d *Driver) manifest(spec vm.Spec) manifest {
	man := manifest{
		Format: manifestFormat, QEMU: d.version.String(), Driver: d.Name(), Processor: d.processor, Features: d.features, TSCKHz: d.tscKHz,
		VCPUs: spec.VCPUs, MemoryMiB: spec.MemoryMiB,
		Hardware: d.hardware(spec), Kernel: spec.Kernel.Digest,
	}
	for _, disk := range spec.Disks {
		kind := "rw"
		if disk.ReadOnly {
			kind = "ro"
		}
		man.Disks = append(man.Disks, kind)
	}
	if spec.Net.TAP != "" {
		man.MAC = strings.ToLower(spec.Net.MAC)
	}
	return man
}

// encode encodes a value of vm.Ref.Private, see machine.decode.
func encode(v any) string {
	data, _ := json.Marshal(v) // strings and numbers: cannot fail
	return string(data)
}

func (m manifest) memorySize() int64 { return int64(m.MemoryMiB) << 20 }

// fits returns nil if a snapshot with manifest m can become a machine with manifest
// want, whose kernel may be empty, else FailedPrecondition that names the difference.
func (m manifest) fits(want manifest) error {
	for _, c := range []struct {
		what      string
		have, ask any
	}{
		{"format", m.Format, want.Format},
		{"driver", cmp.Or(m.Driver, Name), want.Driver},
		{"QEMU version", m.QEMU, want.QEMU},
		{"processor", m.Processor, want.Processor},
		{"vCPUs", m.VCPUs, want.VCPUs},
		{"MiB of memory", m.MemoryMiB, want.MemoryMiB},
		{"list of disks", fmt.Sprint(m.Disks), fmt.Sprint(want.Disks)},
		{"MAC address", m.MAC, want.MAC},
		{"hardware", strings.Join(m.Hardware, " "), strings.Join(want.Hardware, " ")},
	} {
		if c.have != c.ask {
			return wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot does not fit: its %s is %v, not %v", c.what, c.have, c.ask)
		}
	}
	if lacks := without(m.Features, want.Features); len(lacks) > 0 {
		return wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot does not fit: its guest uses features that this host's processor, kernel or QEMU does not have: %.200s", strings.Join(lacks, " "))
	}
	if want.Kernel != "" && m.Kernel != want.Kernel {
		return wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot does not fit: its guest has the kernel %.80q, not %.80q", m.Kernel, want.Kernel)
	}
	if drift := max(m.TSCKHz-want.TSCKHz, want.TSCKHz-m.TSCKHz); drift > want.TSCKHz/1_000_000*maxClockDrift {
		return wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot does not fit: its clock runs at %d kHz, this host's at %d kHz", m.TSCKHz, want.TSCKHz)
	}
	return nil
}

// snapshot is a snapshot that is open for restoring. An assembly that takes over one of
// its files sets the field to nil.
type snapshot struct {
	dir           string
	kernel        string   // see manifest
	features      []string // see manifest
	memory, state *os.File
	changed       []run // where the memory differs from that of base; nil if unknown
	base          fileID
}

func (s *snapshot) close() {
	for _, f := range []*os.File{s.memory, s.state} {
		if f != nil {
			f.Close()
		}
	}
}

// openSnapshot opens the snapshot in dir. FailedPrecondition if it is not complete or
// does not fit the spec. The caller closes it.
func (d *Driver) openSnapshot(dir string, spec vm.Spec) (*snapshot, error) {
	dir, err := filepath.Abs(dir) // the machine's Ref contains it
	if err != nil {
		return nil, err
	}
	var man manifest
	if err := vm.ReadManifest(filepath.Join(dir, manifestName), &man); err != nil {
		return nil, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "not a complete QEMU snapshot", Err: err}
	}
	if err := man.fits(d.manifest(spec)); err != nil {
		return nil, err
	}
	s := &snapshot{dir: dir, kernel: man.Kernel, features: man.Features}
	s.memory, err = vm.OpenSized(filepath.Join(dir, privateName, memoryName), man.memorySize())
	if err == nil {
		s.state, err = man.State.Open(filepath.Join(dir, privateName, stateName))
	}
	if err == nil && man.Changes != nil {
		s.base = man.Changes.Base
		s.changed, err = man.Changes.read(filepath.Join(dir, privateName), man.memorySize())
	}
	if err != nil {
		s.close()
		return nil, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the snapshot is damaged", Err: err}
	}
	return s, nil
}

// PrepareSnapshot implements vm.SnapshotPreparer: it copies the memory that a restored
// machine has mapped. For a booted machine it has nothing to do.
func (m *machine) PrepareSnapshot(ctx context.Context, dir string) error {
	if err := m.gone(); err != nil {
		return err
	}
	if err := vm.CheckEmpty(dir); err != nil {
		return err
	}
	if _, restored := m.ref.Private[refBase]; !restored {
		return nil
	}
	man, err := m.manifest()
	if err != nil {
		return err
	}
	var undo rollback.Stack
	defer undo.Run(ctx)
	private := filepath.Join(dir, privateName)
	if err := os.Mkdir(private, 0o700); err != nil {
		return err
	}
	undo.Add(func(context.Context) error { return os.RemoveAll(private) })
	memory, err := m.copyBase(ctx, filepath.Join(private, unfinishedName), man.memorySize())
	if err != nil {
		return fmt.Errorf("prepare a snapshot of machine %s: %w", m.ref.ID, err)
	}
	if err := errors.Join(memory.Close(), os.Rename(memory.Name(), filepath.Join(private, memoryName))); err != nil {
		return err
	}
	undo.Keep()
	return nil
}

// prepared reports whether dir has what PrepareSnapshot makes, and nothing else. That
// stays valid: the file that a restored machine has mapped never changes.
func prepared(dir string) bool {
	outer, err := os.ReadDir(dir)
	if err != nil || len(outer) != 1 || outer[0].Name() != privateName {
		return false
	}
	inner, err := os.ReadDir(filepath.Join(dir, privateName))
	return err == nil && len(inner) == 1 && inner[0].Name() == memoryName
}

// Snapshot implements vm.Machine. Booted and restored machines have the same form of
// snapshot: a complete memory file, and the state of everything else.
func (m *machine) Snapshot(ctx context.Context, dir string) error {
	if err := m.gone(); err != nil {
		return err
	}
	if !prepared(dir) {
		if err := vm.CheckEmpty(dir); err != nil {
			return err
		}
	}
	return m.exclusively(ctx, func() error {
		var status struct{ Status string }
		if err := m.do(ctx, "query-status", nil, &status); err != nil {
			return err
		}
		if status.Status != "paused" {
			return wrenn.Errorf(wrenn.FailedPrecondition, "the machine is %s; pause it to take a snapshot", status.Status)
		}
		if err := m.snapshotInto(ctx, dir); err != nil {
			return fmt.Errorf("snapshot of machine %s: %w", m.ref.ID, cmp.Or(m.gone(), err))
		}
		return nil
	})
}

// snapshotInto takes a snapshot into a dir that is empty or prepared.
func (m *machine) snapshotInto(ctx context.Context, dir string) error {
	man, err := m.manifest()
	if err != nil {
		return err
	}
	var undo rollback.Stack
	defer undo.Run(ctx)
	private := filepath.Join(dir, privateName)
	undo.Add(func(context.Context) error { return os.RemoveAll(private) })
	if err := os.Mkdir(private, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	state := filepath.Join(private, stateName)
	if err := m.saveState(ctx, state); err != nil {
		return fmt.Errorf("device state: %w", err)
	}
	if man.State, err = vm.SumFile(state); err != nil {
		return fmt.Errorf("device state: %w", err)
	}
	changed, err := m.saveMemory(ctx, filepath.Join(private, memoryName), man.memorySize())
	if err == nil {
		man.Changes, err = m.writeChanges(private, changed, man.memorySize())
	}
	if err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	path := filepath.Join(dir, manifestName)
	undo.Add(func(context.Context) error { return ignoreNotExist(os.Remove(path)) })
	if err := vm.WriteManifest(path, man); err != nil {
		return err
	}
	undo.Keep()
	return nil
}

// decode decodes a value that encode encoded, and reports whether there is one: a
// booted machine and one that an older agent made do not have all.
func (m *machine) decode(key string, into any) bool {
	return json.Unmarshal([]byte(m.ref.Private[key]), into) == nil
}

// manifest returns what the manifests of the machine's snapshots begin with.
func (m *machine) manifest() (manifest, error) {
	var man manifest
	if err := json.Unmarshal([]byte(m.ref.Private[refManifest]), &man); err != nil {
		return man, fmt.Errorf("the machine's manifest: %w", err)
	}
	man.Format = manifestFormat // the Ref may have an older agent's
	return man, nil
}

func ignoreNotExist(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// maxState bounds the state of the devices, which has 100 KiB for most guests.
const maxState = 64 << 20

// saveState writes the state of the devices and vCPUs, without memory. QEMU writes it
// into a memfd, and not into the file of the snapshot, of which it then could write as
// much as it liked at any later time.
func (m *machine) saveState(ctx context.Context, path string) error {
	state, err := newMemory("state", 0)
	if err != nil {
		return err
	}
	defer state.Close()
	w, err := os.OpenFile(reopen(int(state.Fd())), os.O_WRONLY, 0) // QEMU wants one that it can only write to
	if err != nil {
		return err
	}
	defer w.Close()
	if err := m.sendState(ctx, w); err != nil {
		return err
	}
	if err := sealAll(state); err != nil {
		return fmt.Errorf("the VMM still writes: %w", err)
	}
	info, err := state.Stat()
	if err != nil {
		return err
	}
	if info.Size() > maxState {
		return fmt.Errorf("the VMM wrote %d bytes; at most %d are kept", info.Size(), maxState)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, io.NewSectionReader(state, 0, info.Size()))
	return errors.Join(err, f.Close())
}

// sendState makes QEMU write its state to f and close it.
func (m *machine) sendState(ctx context.Context, f *os.File) error {
	var set struct {
		ID int `json:"fdset-id"`
	}
	if err := m.client().DoWithFile(ctx, "add-fd", nil, &set, f); err != nil {
		return m.explain(ctx, err)
	}
	// The command is named after its first user; it does not need Xen.
	save := map[string]any{"filename": "/dev/fdset/" + strconv.Itoa(set.ID), "live": false}
	err := m.do(ctx, "xen-save-devices-state", save, nil)
	removeErr := m.do(context.WithoutCancel(ctx), "remove-fd", map[string]int{"fdset-id": set.ID}, nil)
	return errors.Join(err, removeErr)
}

// saveMemory writes all of the machine's memory to a new file, or completes the one that
// was prepared. It returns where the memory of a restored machine differs from the file
// that it has mapped.
func (m *machine) saveMemory(ctx context.Context, path string, size int64) ([]run, error) {
	src, err := m.openMemory(size)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	if _, restored := m.ref.Private[refBase]; !restored { // the guest writes into the file itself
		dst, err := createMemory(path)
		if err != nil {
			return nil, err
		}
		return nil, errors.Join(copySparse(ctx, dst, src, size), dst.Close())
	}
	key, err := keyOf(src)
	if err != nil {
		return nil, err
	}
	dst, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		dst, err = m.copyBase(ctx, path, size)
	}
	if err != nil {
		return nil, err
	}
	changed, err := overlayPrivate(ctx, dst, m.ref.PID, key, size)
	return changed, errors.Join(err, dst.Close())
}

// fillIn copies the pages in runs from src into the memory of the machine, whose guest has
// not run yet.
func (m *machine) fillIn(ctx context.Context, src *os.File, runs []run, size int64) error {
	memory, err := m.openMemory(size)
	if err != nil {
		return err
	}
	defer memory.Close()
	key, err := keyOf(memory)
	if err != nil {
		return err
	}
	return fillIn(ctx, m.ref.PID, key, size, src, runs)
}

// openMemory returns the VMM's memory file. The VMM may have put another file, one that
// it could open or was passed, under the number of the descriptor. So openMemory takes
// the file that it has open, without opening it again by root's rights, and accepts
// only the one that was passed at the launch.
func (m *machine) openMemory(size int64) (*os.File, error) {
	f, err := m.proc.File(memoryFD)
	if err != nil {
		return nil, fmt.Errorf("the VMM's memory: %w", err)
	}
	info, err := f.Stat()
	if err == nil && (info.Size() != size || !m.isMemory(f, info)) {
		err = fmt.Errorf("descriptor %d of the VMM is not its memory", memoryFD)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// isMemory reports whether f is the file that was passed as the machine's memory.
func (m *machine) isMemory(f *os.File, info os.FileInfo) bool {
	stat := info.Sys().(*syscall.Stat_t)
	var passed fileKey
	if m.decode(refMemory, &passed) {
		return keyOfStat(stat) == passed
	}
	// An older agent did not record it. It passed a memfd, or the file of a snapshot.
	var mapped fileID
	if m.decode(refMapped, &mapped) && stat.Ino == mapped.Inode {
		return true
	}
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	_, restored := m.ref.Private[refBase]
	if restored { // the image is sealed against everything
		return err == nil && seals&unix.F_SEAL_WRITE != 0
	}
	return err == nil && seals == 0 // every file but a memfd has a seal, or an error
}

// copyBase makes a memory file at path that is a copy of the one that the machine was
// restored from: a reflink where the file system supports it. The caller closes it.
func (m *machine) copyBase(ctx context.Context, path string, size int64) (*os.File, error) {
	old, err := vm.OpenSized(filepath.Join(m.ref.Private[refBase], privateName, memoryName), size)
	if err != nil {
		return nil, fmt.Errorf("memory of the snapshot that it was restored from: %w", err)
	}
	defer old.Close()
	f, err := createMemory(path)
	if err != nil {
		return nil, err
	}
	err = copySparse(ctx, f, old, size)
	if err == nil {
		// The source of a fork was never made durable, and the changes of its copies
		// may refer to it.
		err = old.Sync()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// createMemory makes a memory file that does not change after it is closed.
func createMemory(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o444)
}
