// Package vmfake is a vm.Driver whose machines live in memory, for tests of packages
// that use machines: as strict as the contract, without a VMM, root or waiting.
// Tests can make each step fail, and write the guest's program.
//
// A World stands for the kernel: it holds the machines, and outlives the drivers as
// the kernel outlives host agents. No goroutine runs for a machine.
package vmfake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"wrenn.dev"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/vm"
)

// Name is the driver's.
const Name = "fake"

// Step is something that a driver does; Config.Hook can make it fail.
type Step = string

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
	// Hook, if set, is called after each step (before StepStop), and makes it fail
	// with the error that it returns. Several goroutines may call it at once.
	Hook rollback.Hook
}

// Driver makes machines in its world.
type Driver struct {
	world *World
	hook  rollback.Hook
}

var _ vm.Driver = (*Driver)(nil)

// New returns a driver.
func New(cfg Config) *Driver {
	return &Driver{world: cfg.World, hook: cfg.Hook}
}

// FailAt returns a hook for Config: each of the steps fails with an error that
// names it.
func FailAt(steps ...Step) rollback.Hook {
	return func(now Step) error {
		if slices.Contains(steps, now) {
			return fmt.Errorf("injected fault at %s", now)
		}
		return nil
	}
}

// Name is "fake".
func (d *Driver) Name() string { return Name }

// Platform implements vm.Driver.
func (d *Driver) Platform() wrenn.Platform { return wrenn.Platform{Driver: Name} }

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

// assemble runs the steps that Start and Restore share. load returns the memory
// that the machine begins with, and its kernel.
func (d *Driver) assemble(ctx context.Context, spec vm.Spec, load func() (memory, string, error)) (vm.Machine, error) {
	if err := vm.CheckEmpty(spec.Dir); err != nil {
		return nil, err
	}
	var mem memory
	var kernel string
	var p *process
	var disks []*os.File
	err := rollback.Runner{Hook: d.hook}.Run(ctx,
		rollback.Step{
			Name: StepFiles,
			Do: func(context.Context) error {
				return os.WriteFile(filepath.Join(spec.Dir, fileName), nil, 0o600)
			},
			Undo: func(context.Context) error { return removeFiles(spec.Dir) },
		},
		rollback.Step{Name: StepLoad, Do: func(context.Context) (err error) {
			mem, kernel, err = load()
			return err
		}},
		rollback.Step{
			Name: StepDisks,
			Do: func(context.Context) (err error) {
				disks, err = openDisks(spec.Disks)
				return err
			},
			Undo: func(context.Context) error { closeAll(disks); return nil },
		},
		rollback.Step{
			Name: StepProcess,
			Do: func(context.Context) (err error) {
				p, err = d.world.spawn(spec, mem, kernel, disks)
				return err
			},
			Undo: func(context.Context) error {
				if p != nil {
					p.end(stopped)
				}
				return nil
			},
		},
		rollback.Step{Name: StepBoot, Do: func(context.Context) error { return p.boot(d.world.Boot) }})
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", spec.ID, err)
	}
	return &machine{p, d.hook}, nil
}

// Adopt takes over a machine that another driver of the same world started;
// see vm.Driver.
func (d *Driver) Adopt(_ context.Context, ref vm.Ref) (vm.Machine, error) {
	if ref.Driver != Name {
		return nil, wrenn.Errorf(wrenn.Invalid, "a machine of %q is not the fake's", ref.Driver)
	}
	if p := d.world.find(ref); p != nil {
		return &machine{p, d.hook}, nil
	}
	if err := removeFiles(ref.Dir); err != nil {
		return nil, err
	}
	return nil, wrenn.Errorf(wrenn.NotFound, "the machine has ended")
}

// fileName is the file that a machine has in vm.Spec.Dir until it is stopped, like
// a VMM's socket.
const fileName = "fake.vmm"

// removeFiles removes the machine's files in its directory. Twice is allowed.
func removeFiles(dir string) error { return removeFile(filepath.Join(dir, fileName)) }

func removeFile(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
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

// openDisks opens the disks, each as it is used. With an error it returns those that
// it has opened.
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

// closeAll closes the files. Twice is allowed.
func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
