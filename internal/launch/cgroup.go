package launch

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
)

// CgroupRoot is where distributions mount the cgroup2 hierarchy.
const CgroupRoot = "/sys/fs/cgroup"

// CgroupParent is the cgroup, right under the hierarchy's root, that those of all
// VMMs are in.
const CgroupParent = "wrenn"

// controllers are those that CgroupLimits need.
var controllers = []string{"memory", "pids", "cpu"}

// CgroupsLimit reports whether the host has a cgroup2 hierarchy with the controllers
// of CgroupLimits.
func CgroupsLimit() bool { return canLimit(CgroupRoot) }

func canLimit(root string) bool {
	list, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	have := strings.Fields(string(list))
	return err == nil && !slices.ContainsFunc(controllers, func(c string) bool { return !slices.Contains(have, c) })
}

// CgroupLimits are what the processes of a cgroup may use together.
type CgroupLimits struct {
	// MemoryBytes includes the page cache that they fill, which the kernel can empty.
	MemoryBytes uint64
	// Tasks are threads and processes.
	Tasks int
	// CPUs are how many CPUs they may keep busy. Each counts for as much as one of
	// another cgroup when all CPUs are busy.
	CPUs int
}

// cpuPeriod is that of cpu.max, in µs; it is the kernel's default.
const cpuPeriod = 100_000

// maxCPUWeight is the largest cpu.weight; the kernel's default is 100.
const maxCPUWeight = 10_000

// Settings returns the names and the values of the cgroup's files, like
// "memory.max=1048576": in the form that Firecracker's jailer accepts, and always in
// the same order.
func (l CgroupLimits) Settings() []string {
	return []string{
		fmt.Sprintf("memory.max=%d", l.MemoryBytes),
		fmt.Sprintf("pids.max=%d", l.Tasks),
		fmt.Sprintf("cpu.weight=%d", min(100*l.CPUs, maxCPUWeight)),
		fmt.Sprintf("cpu.max=%d %d", l.CPUs*cpuPeriod, cpuPeriod),
	}
}

// MakeCgroup makes the cgroup name in CgroupParent and returns its directory. The
// caller removes it by RemoveCgroup.
func MakeCgroup(name string, limits CgroupLimits) (string, error) {
	return makeCgroup(CgroupRoot, name, limits)
}

func makeCgroup(root, name string, limits CgroupLimits) (string, error) {
	parent := filepath.Join(root, CgroupParent)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	for _, dir := range []string{root, parent} { // each gives its controllers to those below
		if err := write(filepath.Join(dir, "cgroup.subtree_control"), "+"+strings.Join(controllers, " +")); err != nil {
			return "", err
		}
	}
	dir := filepath.Join(parent, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	for _, setting := range limits.Settings() {
		file, value, _ := strings.Cut(setting, "=")
		if err := write(filepath.Join(dir, file), value); err != nil {
			return "", errors.Join(err, os.Remove(dir))
		}
	}
	return dir, nil
}

// write writes to a file of a cgroup, which must exist.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// freshCgroup is how long a VMM may take from the making of its cgroup to its start
// in it.
const freshCgroup = time.Minute

// SweepCgroups removes empty cgroups in CgroupParent: those of machines whose agent
// was killed before it recorded them. It does not remove those that are in use or new.
func SweepCgroups() error { return sweepCgroups(filepath.Join(CgroupRoot, CgroupParent)) }

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

// RemoveCgroup removes the cgroup of a VMM that has ended. It does nothing for "" and
// for one that does not exist.
func RemoveCgroup(ctx context.Context, dir string) error {
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
