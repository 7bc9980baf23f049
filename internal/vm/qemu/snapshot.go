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

	"wrenn"
	"wrenn/internal/rollback"
	"wrenn/internal/vm"
)

// The parts of a snapshot's directory. Memory and state are in a directory of
// their own that only we can enter, because the memory file is everybody's to
// read: VMMs run as other users, and get it as an open file.
const (
	manifestName = "qemu.json" // written last
	privateName  = "private"
	memoryName   = "memory"
	stateName    = "state"
)

const (
	manifestFormat = 1
	maxManifest    = 64 << 10
)

// The keys of vm.Ref.Private.
const (
	refManifest = "manifest" // the manifest that snapshots of the machine begin with
	refBase     = "base"     // the directory of the snapshot that it was restored from
)

// maxClockDrift is how far the clocks of two hosts may be apart, in parts per
// million: what chrony corrects without a step.
const maxClockDrift = 500

// manifest says what a snapshot fits.
type manifest struct {
	Format int `json:"format"`
	// QEMU is its version, major.minor: between those the device state's form
	// may change, and microvm has no versions of its own.
	QEMU string `json:"qemu"`
	// TSCKHz is the rate of the clock that the guest goes by, the host's own.
	TSCKHz    int      `json:"tsc_khz"`
	VCPUs     int      `json:"vcpus"`
	MemoryMiB int      `json:"memory_mib"`
	Disks     []string `json:"disks"` // "rw" or "ro" each: a guest sees the difference
	MAC       string   `json:"mac,omitempty"`
	Hardware  []string `json:"hardware"`
	StateSize int64    `json:"state_size"`
}

// manifest is that of a machine of this driver's.
func (d *Driver) manifest(spec vm.Spec) manifest {
	man := manifest{
		Format: manifestFormat, QEMU: d.version.String(), TSCKHz: d.tscKHz,
		VCPUs: spec.VCPUs, MemoryMiB: spec.MemoryMiB,
		Hardware: d.hardware(spec),
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

func (m manifest) encode() string {
	data, _ := json.Marshal(m) // strings and numbers: cannot fail
	return string(data)
}

func (m manifest) memorySize() int64 { return int64(m.MemoryMiB) << 20 }

// fits says why a snapshot with manifest m cannot become a machine with
// manifest want.
func (m manifest) fits(want manifest) error {
	for _, c := range []struct {
		what      string
		have, ask any
	}{
		{"format", m.Format, want.Format},
		{"QEMU version", m.QEMU, want.QEMU},
		{"vCPUs", m.VCPUs, want.VCPUs},
		{"MiB of memory", m.MemoryMiB, want.MemoryMiB},
		{"row of disks", fmt.Sprint(m.Disks), fmt.Sprint(want.Disks)},
		{"MAC address", m.MAC, want.MAC},
		{"hardware", strings.Join(m.Hardware, " "), strings.Join(want.Hardware, " ")},
	} {
		if c.have != c.ask {
			return wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot does not fit: its %s is %v, not %v", c.what, c.have, c.ask)
		}
	}
	if drift := max(m.TSCKHz-want.TSCKHz, want.TSCKHz-m.TSCKHz); drift > want.TSCKHz/1_000_000*maxClockDrift {
		return wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot does not fit: its clock runs at %d kHz, this host's at %d kHz", m.TSCKHz, want.TSCKHz)
	}
	return nil
}

// snapshot is one that is open for restoring. What an assembly takes of it is
// set to nil there.
type snapshot struct {
	dir           string
	memory, state *os.File
}

func (s *snapshot) close() {
	for _, f := range []*os.File{s.memory, s.state} {
		if f != nil {
			f.Close()
		}
	}
}

// openSnapshot opens the snapshot in dir if it is whole and fits the spec, and
// says with FailedPrecondition why not. The caller closes it.
func (d *Driver) openSnapshot(dir string, spec vm.Spec) (*snapshot, error) {
	dir, err := filepath.Abs(dir) // it is kept in the machine's Ref
	if err != nil {
		return nil, err
	}
	man, err := readManifest(filepath.Join(dir, manifestName))
	if err != nil {
		return nil, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "this is no whole QEMU snapshot", Err: err}
	}
	if err := man.fits(d.manifest(spec)); err != nil {
		return nil, err
	}
	s := &snapshot{dir: dir}
	s.memory, err = openSized(filepath.Join(dir, privateName, memoryName), man.memorySize())
	if err == nil {
		s.state, err = openSized(filepath.Join(dir, privateName, stateName), man.StateSize)
	}
	if err != nil {
		s.close()
		return nil, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the snapshot is damaged", Err: err}
	}
	return s, nil
}

func openSized(path string, size int64) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() != size) {
		err = fmt.Errorf("%s has %d bytes, not %d", path, info.Size(), size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func readManifest(path string) (manifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return manifest{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return manifest{}, err
	}
	var man manifest
	return man, json.Unmarshal(data, &man)
}

// Snapshot implements vm.Machine. Booted and restored machines have the same
// form of snapshot: a whole memory file, and the state of everything else.
func (m *machine) Snapshot(ctx context.Context, dir string) error {
	if err := m.gone(); err != nil {
		return err
	}
	if err := vm.CheckEmpty(dir); err != nil {
		return err
	}
	return m.alone(ctx, func() error {
		var status struct{ Status string }
		if err := m.do(ctx, "query-status", nil, &status); err != nil {
			return err
		}
		if status.Status != "paused" {
			return wrenn.Errorf(wrenn.FailedPrecondition, "a machine is paused before its snapshot is taken; this one is %q", status.Status)
		}
		if err := m.snapshotInto(ctx, dir); err != nil {
			return fmt.Errorf("snapshot of machine %s: %w", m.ref.ID, cmp.Or(m.gone(), err))
		}
		return nil
	})
}

func (m *machine) snapshotInto(ctx context.Context, dir string) error {
	var undo rollback.Stack
	defer undo.Run(ctx)
	var man manifest
	if err := json.Unmarshal([]byte(m.ref.Private[refManifest]), &man); err != nil {
		return fmt.Errorf("the machine's manifest: %w", err)
	}
	private := filepath.Join(dir, privateName)
	if err := os.Mkdir(private, 0o700); err != nil {
		return err
	}
	undo.Add(func(context.Context) error { return os.RemoveAll(private) })
	size, err := m.saveState(ctx, filepath.Join(private, stateName))
	if err != nil {
		return fmt.Errorf("device state: %w", err)
	}
	man.StateSize = size
	if err := m.saveMemory(ctx, filepath.Join(private, memoryName), man.memorySize()); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	path := filepath.Join(dir, manifestName)
	undo.Add(func(context.Context) error { return ignoreNotExist(os.Remove(path)) })
	if err := os.WriteFile(path, []byte(man.encode()+"\n"), 0o600); err != nil {
		return err
	}
	undo.Keep()
	return nil
}

func ignoreNotExist(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// saveState writes the state of the devices and vCPUs, without memory, and
// returns its size. QEMU writes into a file that we opened.
func (m *machine) saveState(ctx context.Context, path string) (int64, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var set struct {
		ID int `json:"fdset-id"`
	}
	if err := m.client().DoWithFile(ctx, "add-fd", nil, &set, f); err != nil {
		return 0, m.explain(ctx, err)
	}
	// The command's name comes from its first user; nothing of it is about Xen.
	save := map[string]any{"filename": "/dev/fdset/" + strconv.Itoa(set.ID), "live": false}
	err = m.do(ctx, "xen-save-devices-state", save, nil)
	removeErr := m.do(context.WithoutCancel(ctx), "remove-fd", map[string]int{"fdset-id": set.ID}, nil)
	if err := errors.Join(err, removeErr); err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// saveMemory writes the machine's whole memory as a file of its own.
func (m *machine) saveMemory(ctx context.Context, path string, size int64) error {
	dst, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o444)
	if err != nil {
		return err
	}
	err = m.fillMemory(ctx, dst, size)
	return errors.Join(err, dst.Close())
}

func (m *machine) fillMemory(ctx context.Context, dst *os.File, size int64) error {
	// What the VMM was given is its own to exchange: look before reading.
	src, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", m.ref.PID, memoryFD), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() != size {
		return fmt.Errorf("descriptor %d of the VMM is not its memory", memoryFD)
	}
	base, restored := m.ref.Private[refBase]
	if !restored {
		return copySparse(ctx, dst, src, size) // it writes straight into the file
	}
	old, err := openSized(filepath.Join(base, privateName, memoryName), size)
	if err != nil {
		return fmt.Errorf("the snapshot that it was restored from: %w", err)
	}
	defer old.Close()
	if err := copySparse(ctx, dst, old, size); err != nil {
		return err
	}
	return overlayPrivate(ctx, dst, m.ref.PID, info.Sys().(*syscall.Stat_t).Ino, size)
}
