package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Root is a root file system for one process: a few parts of the host's, each at its
// own path, and nothing else. Nothing in it can be written unless it is in Writable.
type Root struct {
	// ReadOnly are directories and files of the host. What is mounted below a
	// directory is not seen.
	ReadOnly []string
	// Writable are directories and files of the host that the process may write to,
	// as far as its user may.
	Writable []string
	// Devices are device files of the host, like /dev/null. In ReadOnly and Writable
	// device files do not work.
	Devices []string
	// Nodes are device files of the host, like /dev/kvm, of which the process gets its
	// own, with mode 0600 and its user as the owner: the host's may belong to a group.
	// This needs CAP_MKNOD.
	Nodes []string
	// Links are symbolic links, by their paths: that of /lib is "usr/lib" on most
	// distributions.
	Links map[string]string
	// Proc gives the process a /proc that shows the process itself, and nothing else
	// of the host.
	Proc bool
}

// stage is where the new root is put together. Every host has this directory, and
// the thread that uses it is in its own mount namespace.
const stage = "/proc"

// tree is a part of the host that becomes visible in a Root.
type tree struct {
	path  string
	fd    int // a detached mount of it
	dir   bool
	flags uintptr
}

// enter makes the root that of the calling thread, which must be in its own mount
// namespace, and from which every mount of the host disappears. The process will run
// as the user.
func (r *Root) enter(uid, gid uint32) error {
	trees, err := r.open()
	defer func() {
		for _, t := range trees {
			_ = unix.Close(t.fd) // nothing was written to it
		}
	}()
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=64k,nr_inodes=1024,mode=0755"); err != nil {
		return fmt.Errorf("mount a new root: %w", err)
	}
	for _, t := range trees {
		if err := t.attach(); err != nil {
			return fmt.Errorf("mount %s in the new root: %w", t.path, err)
		}
	}
	if err := errors.Join(r.link(), r.mountProc(), r.makeNodes(int(uid), int(gid))); err != nil {
		return err
	}
	if err := unix.Mount("", stage, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("make the new root read-only: %w", err)
	}
	return changeRoot(stage)
}

// open opens all parts before the first mount, which could hide another.
func (r *Root) open() ([]tree, error) {
	var trees []tree
	for _, kind := range []struct {
		paths []string
		flags uintptr
	}{
		{r.ReadOnly, unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV},
		{r.Writable, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{r.Devices, unix.MS_NOSUID | unix.MS_NOEXEC},
	} {
		for _, path := range kind.paths {
			t, err := openTree(path, kind.flags)
			if err != nil {
				return trees, fmt.Errorf("open %s for the new root: %w", path, err)
			}
			trees = append(trees, t)
		}
	}
	return trees, nil
}

func openTree(path string, flags uintptr) (tree, error) {
	if !filepath.IsAbs(path) {
		return tree{}, errors.New("not an absolute path")
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return tree{}, err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		_ = unix.Close(fd) // the first error is the one that counts
		return tree{}, err
	}
	return tree{path: path, fd: fd, dir: stat.Mode&unix.S_IFMT == unix.S_IFDIR, flags: flags}, nil
}

func (t tree) attach() error {
	point := filepath.Join(stage, t.path)
	if err := t.makePoint(point); err != nil {
		return err
	}
	if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, point, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	return unix.Mount("", point, "", unix.MS_BIND|unix.MS_REMOUNT|t.flags, "")
}

// makePoint makes what the tree is mounted on. A file is made without opening it: a
// child of another thread, forked at that moment, would hold it open for writing
// until its program starts, and the root could not become read-only.
func (t tree) makePoint(point string) error {
	if t.dir {
		return os.MkdirAll(point, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(point), 0o755); err != nil {
		return err
	}
	return unix.Mknod(point, unix.S_IFREG|0o444, 0)
}

// makeNodes makes the device files that belong to the user. Each is mounted on itself,
// because device files of the root itself do not work.
func (r *Root) makeNodes(uid, gid int) error {
	for _, path := range r.Nodes {
		if err := makeNode(path, uid, gid); err != nil {
			return fmt.Errorf("device file %s in the new root: %w", path, err)
		}
	}
	return nil
}

func makeNode(path string, uid, gid int) error {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return err
	}
	if kind := stat.Mode & unix.S_IFMT; kind != unix.S_IFCHR && kind != unix.S_IFBLK {
		return errors.New("not a device file")
	}
	point := filepath.Join(stage, path)
	if err := os.MkdirAll(filepath.Dir(point), 0o755); err != nil {
		return err
	}
	if err := unix.Mknod(point, stat.Mode&unix.S_IFMT|0o600, int(stat.Rdev)); err != nil {
		return err
	}
	if err := os.Lchown(point, uid, gid); err != nil {
		return err
	}
	if err := unix.Mount(point, point, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", point, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOEXEC, "")
}

func (r *Root) link() error {
	for path, target := range r.Links {
		if err := os.Symlink(target, filepath.Join(stage, path)); err != nil {
			return fmt.Errorf("new root: %w", err)
		}
	}
	return nil
}

// mountProc mounts a /proc in which a process without privileges sees its own
// directory only (hidepid), and none of the files about the host (subset, Linux 5.8).
// It belongs to this process's PID namespace: no code of ours runs in that of the
// child before its program does, and /proc/self is right in both.
func (r *Root) mountProc() error {
	if !r.Proc {
		return nil
	}
	point := filepath.Join(stage, "proc")
	if err := os.Mkdir(point, 0o555); err != nil {
		return err
	}
	if err := unix.Mount("proc", point, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "hidepid=2,subset=pid"); err != nil {
		return fmt.Errorf("mount /proc in the new root (needs Linux 5.8): %w", err)
	}
	return nil
}

// changeRoot makes dir, a mount, the root of the mount namespace. Where that is not
// possible because the host runs in its first root file system, from an initramfs,
// dir covers that and becomes the root of the thread.
func changeRoot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	err := unix.PivotRoot(".", ".")
	if errors.Is(err, unix.EINVAL) {
		if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move the new root: %w", err)
		}
		if err := unix.Chroot("."); err != nil {
			return fmt.Errorf("change the root: %w", err)
		}
		return unix.Chdir("/")
	}
	if err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil { // the old root, now on top of the new one
		return fmt.Errorf("remove the host's root: %w", err)
	}
	return unix.Chdir("/")
}
