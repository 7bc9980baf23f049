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

	"wrenn/internal/vm"
	"wrenn/internal/vm/launch"
)

// The names of a machine's files as its VMM sees them, relative to its working
// directory. A snapshot's state keeps those of the disks, so they are the same
// in every cell and say nothing of the host.
const (
	nameSocket = "api.sock"
	nameKernel = "kernel"
	nameInitrd = "initrd"
	nameState  = "state"
	nameMemory = "memory"
	diskPrefix = "disk" // disk0, disk1, …
)

func diskName(i int) string { return diskPrefix + strconv.Itoa(i) }

// file is a file of the host that a VMM gets to see.
type file struct {
	name     string // in the cell
	path     string // on the host
	readOnly bool
}

// cell is the place where one VMM lives. There are two kinds: a jail, where it
// is a user of its own and sees only the files that it was given, by mounts
// that only its mount namespace has; and, for development, a plain directory
// with symbolic links.
type cell struct {
	dir      string // vm.Spec.Dir; all of its content is the cell's
	root     string // the VMM's working directory: dir, or the jail's root in it
	jailed   bool
	uid, gid uint32
	cgroup   string // directory of the jail's cgroup; empty for none
}

// newCell plans the cell of a machine; there is nothing to undo yet.
func (d *Driver) newCell(spec vm.Spec) *cell {
	c := &cell{dir: spec.Dir, root: spec.Dir, jailed: spec.UID != 0, uid: spec.UID, gid: spec.GID}
	if c.jailed {
		// The jailer's layout: base/<name of the program>/<id>/root.
		c.root = filepath.Join(spec.Dir, filepath.Base(d.program), spec.ID, "root")
		if d.limits {
			c.cgroup = filepath.Join(cgroupRoot, d.cgroupParent, spec.ID)
		}
	}
	return c
}

// clear removes all that the cell made, after its VMM is gone. Twice is allowed.
func (c *cell) clear(ctx context.Context) error {
	entries, err := os.ReadDir(c.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	errs := []error{removeCgroup(ctx, c.cgroup)}
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(c.dir, e.Name())))
	}
	return errors.Join(errs...)
}

// snapshotNote is a file in the cell's directory that is there when a snapshot
// of the machine was begun: only until then its changes are changes of what it
// was restored from, and the next agent must know.
const snapshotNote = "snapshot-taken"

func (c *cell) noteSnapshot() error {
	return touch(filepath.Join(c.dir, snapshotNote))
}

func (c *cell) wasSnapshotted() bool {
	_, err := os.Lstat(filepath.Join(c.dir, snapshotNote))
	return !errors.Is(err, fs.ErrNotExist)
}

// allow gives the VMM's user the access to a file that it needs: to read what
// is only read, and to own what it writes.
func (c *cell) allow(f file) error {
	if !c.jailed {
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

// furnish gives the VMM that is about to be launched its files, by links; a
// jail gets places to mount them on.
func (c *cell) furnish(files []file) error {
	root, err := os.OpenRoot(c.root) // a VMM may have been in there
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

func (c *cell) place(root *os.Root, f file) error {
	if err := c.allow(f); err != nil {
		return err
	}
	if !c.jailed {
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

// vmmArgs are Firecracker's own arguments, in a jail and without.
var vmmArgs = []string{"--api-sock", nameSocket, "--show-level"}

// launch starts the VMM with its files.
func (d *Driver) launch(c *cell, spec vm.Spec, files []file) (*launch.Process, error) {
	if !c.jailed {
		return launch.Start(launch.Command{
			Path:      d.program,
			Args:      append([]string{"--id", spec.ID}, vmmArgs...), // the jailer passes on the id by itself
			Dir:       c.root,
			Namespace: spec.Net.Namespace,
		})
	}
	// The mounts are gone with the VMM; the host never has them, whoever is killed when.
	return launch.Start(launch.Command{
		Path: d.jailer, Args: d.jailerArgs(c, spec), Dir: "/",
		Mounts: func() error { return c.mountFiles(files) },
	})
}

// jailerArgs: see Firecracker's docs/jailer.md. The VMM gets no PID namespace
// of its own: the jailer would fork, and the process that was launched, whose
// identity is known, would not be the VMM. Its jail has no /proc, and no other
// process has its user.
func (d *Driver) jailerArgs(c *cell, spec vm.Spec) []string {
	args := []string{
		"--id", spec.ID, "--exec-file", d.program,
		"--uid", strconv.FormatUint(uint64(spec.UID), 10), "--gid", strconv.FormatUint(uint64(spec.GID), 10),
		"--chroot-base-dir", c.dir,
	}
	if spec.Net.Namespace != "" {
		args = append(args, "--netns", spec.Net.Namespace)
	}
	if c.cgroup != "" {
		args = append(args, "--cgroup-version", "2", "--parent-cgroup", d.cgroupParent)
		for _, limit := range limits(spec) {
			args = append(args, "--cgroup", limit)
		}
	}
	return append(append(args, "--"), vmmArgs...)
}

// lend gives a running VMM files, for as long as it takes to call give back.
// Their names must be new in the cell.
func (c *cell) lend(p *launch.Process, files []file) (giveBack func() error, err error) {
	giveBack = func() error { return c.takeBack(p, files) }
	if err := c.furnish(files); err != nil {
		return nil, errors.Join(err, giveBack())
	}
	if !c.jailed {
		return giveBack, nil
	}
	if err := mountInto(p, files); err != nil {
		return nil, errors.Join(err, giveBack())
	}
	return giveBack, nil
}

func (c *cell) takeBack(p *launch.Process, files []file) error {
	var errs []error
	if c.jailed {
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

// dial connects to the VMM's API. The path could be too long for a Unix
// socket's address, and the VMM, which a guest may have taken over, could
// have put a link to another socket of the host in its place: so the socket is
// opened first, without following links, and connected to by descriptor.
func (c *cell) dial(ctx context.Context) (net.Conn, error) {
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

// closeFD closes a descriptor that nothing was written to: no error counts.
func closeFD(fd int) { _ = unix.Close(fd) }
