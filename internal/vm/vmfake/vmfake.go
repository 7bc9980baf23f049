// Package vmfake is a driver of machines that are nothing but data, for tests
// of what stands above drivers. It passes the same suite as the real ones.
package vmfake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"wrenn"
	"wrenn/internal/rollback"
	"wrenn/internal/vm"
)

// Name is the driver's.
const Name = "fake"

// The files of a fake machine and of its snapshot.
const (
	socketName   = "fake.sock"
	snapshotName = "fake.json"
)

const bootID = "fake"

// Host is what the kernel is to real drivers: machines live on it, whether or
// not a driver knows them. It is safe for concurrent use.
type Host struct {
	mu    sync.Mutex // guards the following
	pids  int
	alive map[int]*machine
}

// NewHost returns a host without machines.
func NewHost() *Host { return &Host{alive: map[int]*machine{}} }

// Kill ends a machine as SIGKILL would. One that is gone already stays so.
func (h *Host) Kill(ref vm.Ref) {
	if m := h.find(ref); m != nil {
		m.end(&vm.ExitError{Driver: Name, Reason: "signal: killed"})
	}
}

func (h *Host) find(ref vm.Ref) *machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m, ok := h.alive[ref.PID]; ok && m.ref.StartTime == ref.StartTime && m.ref.BootID == ref.BootID {
		return m
	}
	return nil
}

// in returns the machine whose network is in the namespace, or nil.
func (h *Host) in(namespace string) *machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.alive {
		if m.spec.Net.Namespace == namespace {
			return m
		}
	}
	return nil
}

func (h *Host) add(spec vm.Spec, memory memory) *machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pids++
	m := &machine{
		host: h, spec: spec, memory: memory, done: make(chan struct{}), awake: make(chan struct{}),
		ref: vm.Ref{Driver: Name, ID: spec.ID, Dir: spec.Dir, PID: h.pids, StartTime: uint64(h.pids), BootID: bootID},
	}
	close(m.awake)
	h.alive[m.ref.PID] = m
	return m
}

// Driver makes machines on a host. It is safe for concurrent use.
type Driver struct {
	host *Host
	// Fail makes Start and Restore fail after the step of that name; see Steps.
	Fail string
}

var _ vm.Driver = (*Driver)(nil)

// New returns a driver of the host.
func New(host *Host) *Driver { return &Driver{host: host} }

// Steps are what Start and Restore do.
func Steps() []string { return []string{"directory", "files", "socket", "vmm"} }

// Name is "fake".
func (d *Driver) Name() string { return Name }

// Start implements vm.Driver. The files of spec are looked for, not read.
func (d *Driver) Start(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
	if err := spec.Check(true); err != nil {
		return nil, err
	}
	return d.assemble(ctx, spec, memory{Fills: map[string]byte{}})
}

// Restore implements vm.Driver.
func (d *Driver) Restore(ctx context.Context, spec vm.Spec, snapshot string) (vm.Machine, error) {
	if err := spec.Check(false); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(snapshot, snapshotName))
	var snap saved
	if err == nil {
		err = json.Unmarshal(data, &snap)
	}
	if err != nil {
		return nil, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "this is no whole snapshot", Err: err}
	}
	if snap.Shape != shapeOf(spec) {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot is of %+v, not of %+v", snap.Shape, shapeOf(spec))
	}
	spec.Kernel = vm.Kernel{}
	return d.assemble(ctx, spec, snap.Memory)
}

func (d *Driver) assemble(ctx context.Context, spec vm.Spec, memory memory) (vm.Machine, error) {
	var m *machine
	var undo rollback.Stack
	defer undo.Run(ctx)
	socket := filepath.Join(spec.Dir, socketName)
	take := map[string]func() error{
		"directory": func() error { return vm.CheckEmpty(spec.Dir) },
		"files":     func() error { return haveFiles(spec) },
		"socket": func() error {
			undo.Add(func(context.Context) error { return remove(socket) })
			return os.WriteFile(socket, nil, 0o600)
		},
		"vmm": func() error {
			m = d.host.add(spec, memory)
			undo.Add(m.Stop)
			return nil
		},
	}
	for _, step := range Steps() {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		err := take[step]()
		if err == nil && step == d.Fail {
			err = errors.New("asked to fail")
		}
		if err != nil {
			return nil, fmt.Errorf("machine %s: %s: %w", spec.ID, step, err)
		}
	}
	undo.Keep()
	return m, nil
}

func haveFiles(spec vm.Spec) error {
	var files []string
	for _, disk := range spec.Disks {
		files = append(files, disk.Path)
	}
	if spec.Kernel.Image != "" {
		files = append(files, spec.Kernel.Image)
	}
	for _, file := range files {
		if _, err := os.Stat(file); err != nil {
			return err
		}
	}
	return nil
}

// remove is os.Remove, twice allowed.
func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Adopt implements vm.Driver.
func (d *Driver) Adopt(_ context.Context, ref vm.Ref) (vm.Machine, error) {
	if m := d.host.find(ref); m != nil {
		return m, nil
	}
	if err := remove(filepath.Join(ref.Dir, socketName)); err != nil {
		return nil, err
	}
	return nil, wrenn.Errorf(wrenn.NotFound, "the machine does not run any more")
}

// memory is what a guest has that its disk has not.
type memory struct {
	Fills    map[string]byte
	Counting bool
	Count    int
}

// shape is what a snapshot and a machine made from it have in common.
type shape struct {
	VCPUs, MemoryMiB, Disks int
	MAC                     string
}

func shapeOf(spec vm.Spec) shape {
	return shape{spec.VCPUs, spec.MemoryMiB, len(spec.Disks), strings.ToLower(spec.Net.MAC)}
}

// saved is a snapshot.
type saved struct {
	Shape  shape
	Memory memory
}
