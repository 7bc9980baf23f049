// Package vmfake is a vm.Driver whose machines live in memory, for tests of
// whoever composes machines: as strict as the contract, without a VMM, root or
// waiting. Each step can be made to fail, and a guest does what the test says.
//
// A World stands for the kernel: it holds the machines, and outlives the
// drivers as the kernel outlives host agents. No goroutine runs for a machine.
package vmfake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"wrenn"
	"wrenn/internal/rollback"
	"wrenn/internal/vm"
)

// Name is the driver's.
const Name = "fake"

// Step is something that a driver does; Config.Fault can make it fail.
type Step string

// The steps of the driver and of its machines.
const (
	StepFiles   Step = "files"   // something was made in vm.Spec.Dir
	StepLoad    Step = "load"    // the snapshot or the kernel was read
	StepDisks   Step = "disks"   // the disks were opened
	StepProcess Step = "process" // the VMM runs
	StepBoot    Step = "boot"    // the guest runs

	StepPause    Step = "pause"
	StepResume   Step = "resume"
	StepMemory   Step = "memory"   // a snapshot's memory was written
	StepManifest Step = "manifest" // a snapshot's manifest was written
	StepStop     Step = "stop"     // the one that fails before it is taken: the VMM goes on
)

// StartSteps are those of Start and of Restore, in order.
func StartSteps() []Step {
	return []Step{StepFiles, StepLoad, StepDisks, StepProcess, StepBoot}
}

// SnapshotSteps are those of Machine.Snapshot, in order.
func SnapshotSteps() []Step { return []Step{StepMemory, StepManifest} }

// Config is what a Driver needs.
type Config struct {
	World *World // needed
	// Fault, if set, is asked when a step was taken (StepStop: is about to be)
	// and makes it fail with the error that it returns. It may be called by
	// several goroutines at once.
	Fault func(Step) error
}

// Driver makes machines in its world.
type Driver struct {
	world *World
	fault func(Step) error
}

var _ vm.Driver = (*Driver)(nil)

// New returns a driver.
func New(cfg Config) *Driver {
	d := &Driver{world: cfg.World, fault: cfg.Fault}
	if d.fault == nil {
		d.fault = func(Step) error { return nil }
	}
	return d
}

// FailAt returns a fault for Config: every step named fails with an error that
// names it.
func FailAt(steps ...Step) func(Step) error {
	return func(now Step) error {
		if slices.Contains(steps, now) {
			return fmt.Errorf("injected fault at %s", now)
		}
		return nil
	}
}

// Name is "fake".
func (d *Driver) Name() string { return Name }

// Start boots a new machine; see vm.Driver.
func (d *Driver) Start(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
	if err := spec.Check(true); err != nil {
		return nil, err
	}
	return d.assemble(ctx, spec, func() (memory, string, error) {
		for _, file := range []string{spec.Kernel.Image, spec.Kernel.Initrd} {
			if err := readable(file); err != nil {
				return memory{}, "", fmt.Errorf("kernel: %w", err)
			}
		}
		return memory{}, spec.Kernel.Digest, nil
	})
}

// Restore makes a machine from a snapshot; see vm.Driver.
func (d *Driver) Restore(ctx context.Context, spec vm.Spec, snapshot string) (vm.Machine, error) {
	if err := spec.Check(false); err != nil {
		return nil, err
	}
	return d.assemble(ctx, spec, func() (memory, string, error) {
		return loadSnapshot(snapshot, shapeOf(spec), spec.Kernel.Digest)
	})
}

// assemble takes the steps that Start and Restore share; load makes the
// memory that the machine begins with, and says its kernel.
func (d *Driver) assemble(ctx context.Context, spec vm.Spec, load func() (memory, string, error)) (vm.Machine, error) {
	if err := vm.CheckEmpty(spec.Dir); err != nil {
		return nil, err
	}
	var undo rollback.Stack
	defer undo.Run(ctx)
	var mem memory
	var kernel string
	var p *process
	var disks []*os.File
	for _, step := range []struct {
		name Step
		do   func() error
	}{
		{StepFiles, func() error {
			undo.AddFunc(func() { _ = removeFiles(spec.Dir) }) // best effort: the first error is the one that counts
			return os.WriteFile(filepath.Join(spec.Dir, fileName), nil, 0o600)
		}},
		{StepLoad, func() (err error) {
			mem, kernel, err = load()
			return err
		}},
		{StepDisks, func() (err error) {
			disks, err = openDisks(spec.Disks)
			undo.AddFunc(func() { closeAll(disks) })
			return err
		}},
		{StepProcess, func() (err error) {
			if p, err = d.world.spawn(spec, mem, kernel, disks); err == nil {
				undo.AddFunc(func() { p.end(stopped) })
			}
			return err
		}},
		{StepBoot, func() error { return p.boot(d.world.Boot) }},
	} {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err := errors.Join(step.do(), d.fault(step.name)); err != nil {
			return nil, fmt.Errorf("start machine %s: %s: %w", spec.ID, step.name, err)
		}
	}
	undo.Keep()
	return &machine{p, d.fault}, nil
}

// Adopt takes over a machine that another driver of the same world started;
// see vm.Driver.
func (d *Driver) Adopt(_ context.Context, ref vm.Ref) (vm.Machine, error) {
	if ref.Driver != Name {
		return nil, wrenn.Errorf(wrenn.Invalid, "a machine of %q is not the fake's", ref.Driver)
	}
	if p := d.world.find(ref); p != nil {
		return &machine{p, d.fault}, nil
	}
	if err := removeFiles(ref.Dir); err != nil {
		return nil, err
	}
	return nil, wrenn.Errorf(wrenn.NotFound, "the machine does not run any more")
}

// fileName is what a machine has in vm.Spec.Dir while it is there, like a
// VMM's socket.
const fileName = "fake.vmm"

// removeFiles removes what a machine has in its directory. Twice is allowed.
func removeFiles(dir string) error {
	if err := os.Remove(filepath.Join(dir, fileName)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func readable(path string) error {
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

// openDisks opens the disks as they should be used; those that it did are
// returned with an error, too.
func openDisks(disks []vm.Disk) (files []*os.File, err error) {
	for _, disk := range disks {
		flag := os.O_RDWR
		if disk.ReadOnly {
			flag = os.O_RDONLY
		}
		f, err := os.OpenFile(disk.Path, flag, 0)
		if err != nil {
			return files, fmt.Errorf("disk: %w", err)
		}
		files = append(files, f)
	}
	return files, nil
}

// closeAll may be repeated.
func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
