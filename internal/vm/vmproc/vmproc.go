// Package vmproc is a vm.Driver whose machines are processes of this machine, for tests
// and benchmarks that kill host agents: they outlive their agent as a VMM does, and
// another agent adopts them. It needs root.
//
// A machine runs a program in its network slot and in its own PID namespace. Programs in
// it see two files that they may write, as root: MemoryFile, of MemoryBytes, which is what
// a snapshot keeps of the memory, and DiskFile, the first disk. A paused machine is
// stopped by SIGSTOP. What else its processes do is not in a snapshot.
package vmproc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/vm"
)

// Name is the driver's.
const Name = "process"

// The files of a machine.
const (
	MemoryFile  = home + "/memory"
	DiskFile    = home + "/disk"
	MemoryBytes = 64 << 10

	home = "/root"
	// bin has a sync that does not write the disks of the machine that runs the test.
	bin = home + "/bin"
)

const (
	memoryName   = "memory"       // in vm.Spec.Dir and in a snapshot
	manifestName = "process.json" // written last
)

// Config says what machines run.
type Config struct {
	// Program and Args are run in each machine, with the environment Env and PATH. The
	// program calls Enter first.
	Program string
	Args    []string
	Env     []string
	// Files become its descriptors 3, 4, …
	Files []*os.File
}

// Driver starts machines.
type Driver struct{ cfg Config }

var _ vm.Driver = (*Driver)(nil)

// New returns a driver.
func New(cfg Config) *Driver {
	// The first use of a process has package os start one, to see what the kernel can. In
	// the thread of populate that one would be the first in the PID namespace, which ends
	// with it.
	if self, err := os.FindProcess(os.Getpid()); err == nil {
		_ = self.Release() // never fails
	}
	return &Driver{cfg}
}

// Name is "process".
func (d *Driver) Name() string { return Name }

// Platform implements vm.Driver.
func (d *Driver) Platform() wrenn.Platform { return wrenn.Platform{Driver: Name} }

// shape is the part of a spec that must be that of the snapshot's machine.
type shape struct {
	VCPUs     int    `json:"vcpus"`
	MemoryMiB int    `json:"memory_mib"`
	Disks     int    `json:"disks"`
	MAC       string `json:"mac,omitempty"`
}

func shapeOf(spec vm.Spec) shape {
	return shape{VCPUs: spec.VCPUs, MemoryMiB: spec.MemoryMiB, Disks: len(spec.Disks), MAC: strings.ToLower(spec.Net.MAC)}
}

type manifest struct {
	Shape  shape      `json:"shape"`
	Kernel string     `json:"kernel,omitempty"`
	Memory vm.FileSum `json:"memory"`
}

// Start boots a new machine; see vm.Driver.
func (d *Driver) Start(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
	if err := spec.Check(true); err != nil {
		return nil, err
	}
	return d.assemble(ctx, spec, spec.Kernel.Digest, make([]byte, MemoryBytes))
}

// Restore makes a machine from a snapshot; see vm.Driver.
func (d *Driver) Restore(ctx context.Context, spec vm.Spec, snapshot string) (vm.Machine, error) {
	if err := spec.Check(false); err != nil {
		return nil, err
	}
	memory, kernel, err := load(snapshot, shapeOf(spec), spec.Kernel.Digest)
	if err != nil {
		return nil, err
	}
	return d.assemble(ctx, spec, kernel, memory)
}

// load returns the memory and the kernel of a snapshot, which must have the shape, and
// the kernel if that is not empty.
func load(dir string, want shape, kernel string) (memory []byte, was string, err error) {
	var man manifest
	err = vm.ReadManifest(filepath.Join(dir, manifestName), &man)
	if err == nil && (man.Shape != want || kernel != "" && man.Kernel != kernel) {
		err = fmt.Errorf("its machine is %+v, not %+v", man, want)
	}
	if err == nil {
		var f *os.File
		if f, err = man.Memory.Open(filepath.Join(dir, memoryName)); err == nil {
			defer f.Close()
			memory = make([]byte, man.Memory.Size)
			_, err = f.ReadAt(memory, 0)
		}
	}
	if err != nil {
		return nil, "", &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "not a complete snapshot for this machine", Err: err}
	}
	return memory, man.Kernel, nil
}

// assemble makes a machine with that memory.
func (d *Driver) assemble(ctx context.Context, spec vm.Spec, kernel string, memory []byte) (_ vm.Machine, err error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := vm.CheckEmpty(spec.Dir); err != nil {
		return nil, err
	}
	if len(spec.Disks) == 0 {
		return nil, wrenn.Errorf(wrenn.Invalid, "the machine has no disk")
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start machine %s: %w", spec.ID, err), removeFiles(spec.Dir))
		}
	}()
	if err := os.WriteFile(filepath.Join(spec.Dir, memoryName), memory, 0o600); err != nil {
		return nil, err
	}
	p, err := launch.Start(launch.Command{
		Path: d.cfg.Program, Args: d.cfg.Args, Dir: "/", Namespace: spec.Net.Namespace, Files: d.cfg.Files,
		Env:    append([]string{"PATH=" + bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, d.cfg.Env...),
		Mounts: func() error { return populate(spec) },
	})
	if err != nil {
		return nil, err
	}
	private, err := json.Marshal(details{shapeOf(spec), kernel})
	if err != nil {
		return nil, errors.Join(err, p.Kill(context.WithoutCancel(ctx)))
	}
	id := p.Identity()
	ref := vm.Ref{
		Driver: Name, ID: spec.ID, Dir: spec.Dir, PID: id.PID, StartTime: id.StartTime, BootID: id.BootID,
		Private: map[string]string{detailsKey: string(private)},
	}
	return &machine{process: p, ref: ref, details: details{shapeOf(spec), kernel}}, nil
}

// details are what an agent that adopts a machine needs for its snapshots.
type details struct {
	Shape  shape  `json:"shape"`
	Kernel string `json:"kernel,omitempty"`
}

// detailsKey is where they are in vm.Ref.Private.
const detailsKey = "details"

// populate makes what the machine sees at home, in the mount namespace of the calling
// thread, whose next child is in its own PID namespace.
func populate(spec vm.Spec) error {
	if err := unix.Mount("none", home, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", home, err)
	}
	if err := os.Mkdir(bin, 0o755); err != nil { //nolint:gosec // all users run its programs
		return err
	}
	if err := os.WriteFile(filepath.Join(bin, "sync"), []byte("#!/bin/sh\n"), 0o755); err != nil { //nolint:gosec // to be run
		return err
	}
	for point, file := range map[string]string{MemoryFile: filepath.Join(spec.Dir, memoryName), DiskFile: spec.Disks[0].Path} {
		if err := os.WriteFile(point, nil, 0o600); err != nil {
			return err
		}
		if err := unix.Mount(file, point, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", point, err)
		}
	}
	return unix.Unshare(unix.CLONE_NEWPID)
}

// Enter completes the namespaces of the machine's program, which calls it first.
func Enter() error { return unix.Mount("proc", "/proc", "proc", 0, "") }

// Adopt takes over a machine that another driver started; see vm.Driver.
func (d *Driver) Adopt(_ context.Context, ref vm.Ref) (vm.Machine, error) {
	if ref.Driver != Name {
		return nil, wrenn.Errorf(wrenn.Invalid, "a machine of %q is no process", ref.Driver)
	}
	m := &machine{ref: ref}
	if err := json.Unmarshal([]byte(ref.Private[detailsKey]), &m.details); err != nil {
		return nil, wrenn.Errorf(wrenn.Invalid, "the machine's details are malformed")
	}
	var err error
	m.process, err = launch.Adopt(launch.Identity{PID: ref.PID, StartTime: ref.StartTime, BootID: ref.BootID})
	if errors.Is(err, os.ErrProcessDone) {
		return nil, errors.Join(wrenn.Errorf(wrenn.NotFound, "the machine has ended"), removeFiles(ref.Dir))
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

// removeFiles removes the machine's files in its directory. Twice is allowed.
func removeFiles(dir string) error { return remove(filepath.Join(dir, memoryName)) }

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
