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

// cgroupsLimit reports whether the host has a cgroup2 hierarchy with the controllers
// of limits.
func cgroupsLimit() bool {
	list, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	controllers := strings.Fields(string(list))
	return err == nil && slices.Contains(controllers, "memory") && slices.Contains(controllers, "pids")
}

// vmmMemoryMiB is more than a VMM uses besides its guest's memory.
const vmmMemoryMiB = 128

// limits returns the limits of a VMM, which a guest may have taken over. It may use
// twice the guest's memory, because a snapshot that it writes to a tmpfs counts too.
func limits(spec vm.Spec) []string {
	return []string{
		fmt.Sprintf("memory.max=%d", (2*uint64(spec.MemoryMiB)+vmmMemoryMiB)<<20),
		fmt.Sprintf("pids.max=%d", spec.VCPUs+16), // a thread each, the API's, the VMM's, and Async I/O's
	}
}

// freshCgroup is how long a jailer may take from making its cgroup to entering it.
const freshCgroup = time.Minute

// sweepCgroups removes empty cgroups in parent: those of machines whose agent was
// killed before it recorded them. It does not remove those that are in use or new.
// The parent need not exist.
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

// The kernel releases dead processes asynchronously; until then it returns EBUSY.
const (
	cgroupPoll  = 5 * time.Millisecond
	cgroupLimit = 5 * time.Second
)

// removeCgroup removes the cgroup of a VMM that has ended. It does nothing for "" and
// for one that does not exist.
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
