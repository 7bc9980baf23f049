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
	"time"

	"golang.org/x/sys/unix"

	"wrenn/internal/vm"
)

// cgroupRoot is where distributions mount the cgroup2 hierarchy.
const cgroupRoot = "/sys/fs/cgroup"

// cgroupsLimit says whether the host has a cgroup2 hierarchy that can limit
// what limits limits.
func cgroupsLimit() bool {
	list, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	controllers := strings.Fields(string(list))
	return err == nil && slices.Contains(controllers, "memory") && slices.Contains(controllers, "pids")
}

// vmmMemoryMiB is what a VMM uses beside its guest's memory, with room to spare.
const vmmMemoryMiB = 128

// limits bound what a VMM that a guest took over can use. Twice the memory,
// because a snapshot that is written to a tmpfs counts as the writer's.
func limits(spec vm.Spec) []string {
	return []string{
		fmt.Sprintf("memory.max=%d", (2*uint64(spec.MemoryMiB)+vmmMemoryMiB)<<20),
		fmt.Sprintf("pids.max=%d", spec.VCPUs+16), // a thread each, the API's, the VMM's, and Async I/O's
	}
}

// freshCgroup is how long a jailer may take from making its cgroup to being in it.
const freshCgroup = time.Minute

// sweepCgroups removes the cgroups in which nothing lives: those of machines
// whose agent was killed before it knew of them. What is in use, or may be in
// the making, is left alone. A parent that is not there has none.
func sweepCgroups(parent string) error {
	entries, err := os.ReadDir(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.IsDir() || time.Since(info.ModTime()) < freshCgroup {
			continue
		}
		err = os.Remove(filepath.Join(parent, e.Name()))
		if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// The kernel lets go of the dead asynchronously, EBUSY until then.
const (
	cgroupPoll  = 5 * time.Millisecond
	cgroupLimit = 5 * time.Second
)

// removeCgroup removes the cgroup of a VMM that is gone; "" and one that is
// not there are nothing to do.
func removeCgroup(ctx context.Context, dir string) error {
	if dir == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, cgroupLimit)
	defer cancel()
	for {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, context.Cause(ctx))
		case <-time.After(cgroupPoll):
		}
	}
}
