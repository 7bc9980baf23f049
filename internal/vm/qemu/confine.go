package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/vm"
)

// rootOf returns the root file system of VMMs: the program, the libraries and the
// firmware that came with it, and nothing that may differ between machines. Files of
// a machine are passed as descriptors.
func rootOf(ctx context.Context, path string) (*launch.Root, error) {
	program, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	firmware, err := exec.CommandContext(ctx, program, "-L", "help").Output()
	if err != nil {
		return nil, fmt.Errorf("%s -L help: %w", program, err)
	}
	var places []string
	for line := range strings.Lines(string(firmware)) {
		if place := strings.TrimSpace(line); filepath.IsAbs(place) {
			places = append(places, place)
		}
	}
	root, err := launch.ProgramRoot(program, places...)
	if err != nil {
		return nil, err
	}
	root.Devices = append(root.Devices, "/dev/urandom")
	return root, nil
}

// kvmDevice is opened by QEMU by its name (only QEMU 9 takes another), so each VMM has its
// own device file.
const kvmDevice = "/dev/kvm"

// ownMemoryMiB is what a VMM takes besides its guest's memory and translated code.
const ownMemoryMiB = 30

// OverheadMiB implements vm.Overhead.
func (d *Driver) OverheadMiB() int { return d.codeMiB + ownMemoryMiB }

// What the cgroup of a VMM allows besides its guest's memory and translated code: more
// than ownMemoryMiB, and its tables grow with the guest's memory.
const (
	vmmMemoryMiB   = 128
	tablesPerGuest = 16 // a 16th
)

// cgroupLimits returns what the cgroup of a VMM allows. One more CPU than the guest
// has is for the VMM's own threads.
func (d *Driver) cgroupLimits(spec vm.Spec) launch.CgroupLimits {
	mib := spec.MemoryMiB + spec.MemoryMiB/tablesPerGuest + d.codeMiB + vmmMemoryMiB
	return launch.CgroupLimits{MemoryBytes: uint64(mib) << 20, Tasks: tasks(spec), CPUs: spec.VCPUs + 1}
}

// tasks is how many threads a VMM may have: one a vCPU, its own, and those of its pool
// for disks, which has at most 64.
func tasks(spec vm.Spec) int { return spec.VCPUs + 80 }

// maxDescriptors is more than a VMM opens.
const maxDescriptors = 256

// limits returns the resource limits of a VMM. The largest file that it has a reason
// to write is a disk or the state of its devices.
func limits(spec vm.Spec) (launch.Limits, error) {
	most := int64(maxState)
	for _, disk := range spec.Disks {
		info, err := os.Stat(disk.Path)
		if err != nil {
			return launch.Limits{}, err
		}
		most = max(most, info.Size(), disk.MaxBytes)
	}
	l := launch.Limits{Files: maxDescriptors, FileBytes: uint64(most)}
	if spec.UID != 0 { // the tasks of the user: ours has others
		l.Tasks = uint64(tasks(spec))
	}
	return l, nil
}

// makeCgroup makes the VMM's cgroup, if the host has those that limit.
func (a *assembly) makeCgroup(context.Context) (err error) {
	if !a.d.cgroups {
		return nil
	}
	a.cgroup, err = launch.MakeCgroup(a.spec.ID, a.d.cgroupLimits(a.spec))
	return err
}

func (a *assembly) removeCgroup(ctx context.Context) error { return launch.RemoveCgroup(ctx, a.cgroup) }

// openCgroup opens the directory of the VMM's cgroup; nil if it has none.
func (a *assembly) openCgroup() (*os.File, error) {
	if a.cgroup == "" {
		return nil, nil
	}
	return os.Open(a.cgroup)
}
