package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/vm"
)

// The names of a machine's files as its VMM sees them, relative to its working
// directory. A snapshot's state contains those of the disks, so they are the same
// for every machine and independent of the host.
const (
	nameSocket = "api.sock"
	nameKernel = "kernel"
	nameInitrd = "initrd"
	nameState  = "state"
	nameMemory = "memory"
	diskPrefix = "disk" // disk0, disk1, …
)

func diskName(i int) string { return diskPrefix + strconv.Itoa(i) }

// file is a file of the host that a VMM can see.
type file struct {
	name     string // in the jail
	path     string // on the host
	readOnly bool
}

// jail is the directory of one VMM. The jailer enforces it: the VMM is a separate
// user and sees only the files that it was given, by mounts that only its mount
// namespace has. For development, without the jailer, it is a plain directory with
// symbolic links.
type jail struct {
	dir      string // vm.Spec.Dir; the jail owns all its content
	root     string // the VMM's working directory: dir, or the chroot in it
	enforced bool
	uid, gid uint32
	cgroup   string // directory of the jail's cgroup; empty for none
}

// newJail plans the jail of a machine. Nothing exists yet.
func (d *Driver) newJail(spec vm.Spec) *jail {
	c := &jail{dir: spec.Dir, root: spec.Dir, enforced: spec.UID != 0, uid: spec.UID, gid: spec.GID}
	if c.enforced {
		// The jailer's layout: base/<name of the program>/<id>/root.
		c.root = filepath.Join(spec.Dir, filepath.Base(d.program), spec.ID, "root")
		if d.limits {
			c.cgroup = filepath.Join(launch.CgroupRoot, launch.CgroupParent, spec.ID)
		}
	}
	return c
}

// clear removes all that is in the jail, after its VMM has ended. Twice is allowed.
func (c *jail) clear(ctx context.Context) error {
	entries, err := os.ReadDir(c.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	errs := []error{launch.RemoveCgroup(ctx, c.cgroup)}
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(c.dir, e.Name())))
	}
	return errors.Join(errs...)
}

// snapshotMarker is a file in the jail that exists once a snapshot of the machine
// was begun. Only until then are the machine's changes relative to what it was
// restored from, and the next agent must know.
const snapshotMarker = "snapshot-taken"

func (c *jail) recordSnapshot() error {
	return touch(filepath.Join(c.dir, snapshotMarker))
}

func (c *jail) wasSnapshotted() bool {
	_, err := os.Lstat(filepath.Join(c.dir, snapshotMarker))
	return !errors.Is(err, fs.ErrNotExist)
}

// allow gives the VMM's user the access to a file that it needs: to read a
// read-only file, and to own one that it writes.
func (c *jail) allow(f file) error {
	if !c.enforced {
		return nil
	}
	info, err := os.Stat(f.path)
	if err != nil {
		return err
	}
	if f.readOnly {
		if info.Mode().Perm()&0o444 == 0o444 {
			return nil
		}
		return os.Chmod(f.path, info.Mode().Perm()|0o444)
	}
	return os.Chown(f.path, int(c.uid), int(c.gid))
}

// populate gives the VMM its files before its launch, by links; with the jailer it
// makes the files to mount them on.
func (c *jail) populate(files []file) error {
	root, err := os.OpenRoot(c.root) // a VMM may have changed what is in there
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	for _, f := range files {
		if err := c.place(root, f); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return nil
}

func (c *jail) place(root *os.Root, f file) error {
	if err := c.allow(f); err != nil {
		return err
	}
	if !c.enforced {
		abs, err := filepath.Abs(f.path)
		if err != nil {
			return err
		}
		return root.Symlink(abs, f.name)
	}
	point, err := root.OpenFile(f.name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return point.Close()
}

// vmmArgs are Firecracker's own arguments, with the jailer and without.
var vmmArgs = []string{"--api-sock", nameSocket, "--show-level"}

// launch starts the VMM with its files.
func (d *Driver) launch(c *jail, spec vm.Spec, files []file) (*launch.Process, error) {
	if !c.enforced {
		return launch.Start(launch.Command{
			Path:      d.program,
			Args:      append([]string{"--id", spec.ID}, vmmArgs...), // the jailer passes on the id by itself
			Dir:       c.root,
			Namespace: spec.Net.Namespace,
		})
	}
	// The mounts end with the VMM. The host never has them, whichever process is killed at whatever time.
	return launch.Start(launch.Command{
		Path: d.jailer, Args: d.jailerArgs(c, spec), Dir: "/",
		Mounts: func() error { return c.mountFiles(files) },
	})
}

// vmmMemoryMiB is more than a VMM uses besides its guest's memory.
const vmmMemoryMiB = 128

// limits returns the limits of a VMM, which a guest may have taken over. It may use
// twice the guest's memory, because a snapshot that it writes to a tmpfs counts too.
// Each vCPU has a thread, and so have the API, the VMM and Async I/O; one more CPU is
// for these.
func limits(spec vm.Spec) launch.CgroupLimits {
	return launch.CgroupLimits{
		MemoryBytes: (2*uint64(spec.MemoryMiB) + vmmMemoryMiB) << 20,
		Tasks:       spec.VCPUs + 16,
		CPUs:        spec.VCPUs + 1,
	}
}

// maxState is more than the device state of a snapshot has.
const maxState = 64 << 20

// largestFile returns how large a VMM may make a file: the largest that it has a
// reason to write, a disk or a snapshot's memory. A disk that is missing fails later.
func largestFile(spec vm.Spec) int64 {
	most := max(int64(spec.MemoryMiB)<<20, maxState)
	for _, disk := range spec.Disks {
		if info, err := os.Stat(disk.Path); err == nil {
			most = max(most, info.Size(), disk.MaxBytes)
		}
	}
	return most
}

// jailerArgs returns the jailer's arguments, see Firecracker's docs/jailer.md. The
// VMM gets no PID namespace: the jailer would fork, and the launched process, whose
// identity is known, would not be the VMM. The jail has no /proc, and no other
// process has its user.
func (d *Driver) jailerArgs(c *jail, spec vm.Spec) []string {
	args := []string{
		"--id", spec.ID, "--exec-file", d.program,
		"--uid", strconv.FormatUint(uint64(spec.UID), 10), "--gid", strconv.FormatUint(uint64(spec.GID), 10),
		"--chroot-base-dir", c.dir,
	}
	if spec.Net.Namespace != "" {
		args = append(args, "--netns", spec.Net.Namespace)
	}
	args = append(args, "--resource-limit", fmt.Sprintf("fsize=%d", largestFile(spec)))
	if c.cgroup != "" {
		args = append(args, "--cgroup-version", "2", "--parent-cgroup", launch.CgroupParent)
		for _, limit := range limits(spec).Settings() {
			args = append(args, "--cgroup", limit)
		}
	}
	return append(append(args, "--"), vmmArgs...)
}

// lend gives a running VMM files until the caller calls revoke. Their names must be
// new in the jail.
func (c *jail) lend(p *launch.Process, files []file) (revoke func() error, err error) {
	revoke = func() error { return c.revoke(p, files) }
	if err := c.populate(files); err != nil {
		return nil, errors.Join(err, revoke())
	}
	if !c.enforced {
		return revoke, nil
	}
	if err := mountInto(p, files); err != nil {
		return nil, errors.Join(err, revoke())
	}
	return revoke, nil
}

func (c *jail) revoke(p *launch.Process, files []file) error {
	var errs []error
	if c.enforced {
		errs = append(errs, unmountIn(p, files))
	}
	root, err := os.OpenRoot(c.root)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer func() { _ = root.Close() }()
	for _, f := range slices.Backward(files) {
		if err := root.Remove(f.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// dial connects to the VMM's API. The path could be too long for a Unix socket's
// address, and the VMM, which a guest may have taken over, could have put a link to
// another socket of the host in its place: so dial opens the socket first, without
// following links, and connects to it by descriptor.
func (c *jail) dial(ctx context.Context) (net.Conn, error) {
	root, err := unix.Open(c.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the VMM's directory: %w", err)
	}
	defer closeFD(root)
	fd, err := unix.Openat(root, nameSocket, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the API's socket: %w", err)
	}
	defer closeFD(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, errors.New("the API's socket is not a socket")
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
}

// closeFD closes a descriptor that nothing was written to, so it ignores the error.
func closeFD(fd int) { _ = unix.Close(fd) }
