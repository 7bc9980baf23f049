package firecracker

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/launch"
)

// mountFiles mounts the files in the jail. The jail's
// directory is mounted on itself first, without the flags that /run has: the
// jailer makes device nodes there.
func (c *jail) mountFiles(files []file) error {
	if err := unix.Mount(c.dir, c.dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount the machine's directory: %w", err)
	}
	if err := unix.Mount("", c.dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_NOSUID, ""); err != nil {
		return fmt.Errorf("allow devices in the machine's directory: %w", err)
	}
	for _, f := range files {
		if err := mountFile(f, filepath.Join(c.root, f.name)); err != nil {
			return err
		}
	}
	return nil
}

func mountFile(f file, target string) error {
	if err := unix.Mount(f.path, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", f.name, err)
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|fileFlags(f), ""); err != nil {
		return fmt.Errorf("mount %s: %w", f.name, err)
	}
	return nil
}

func fileFlags(f file) uintptr {
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if f.readOnly {
		flags |= unix.MS_RDONLY
	}
	return flags
}

// mountInto mounts files of the host in the root of a running VMM: it makes the
// mounts here, detached, and attaches them there (open_tree(2), move_mount(2)).
func mountInto(p *launch.Process, files []file) error {
	trees := make([]int, 0, len(files))
	defer func() {
		for _, fd := range trees {
			closeFD(fd) // which also drops a tree that was not attached
		}
	}()
	for _, f := range files {
		fd, err := unix.OpenTree(unix.AT_FDCWD, f.path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("open %s: %w", f.name, err)
		}
		trees = append(trees, fd)
	}
	return inMountsOf(p, func() error {
		for i, f := range files {
			if err := unix.MoveMount(trees[i], "", unix.AT_FDCWD, "/"+f.name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				return fmt.Errorf("attach %s: %w", f.name, err)
			}
		}
		return nil
	})
}

// unmountIn reverts mountInto, also one that failed halfway. The mounts of a VMM that
// has ended no longer exist.
func unmountIn(p *launch.Process, files []file) error {
	err := inMountsOf(p, func() error {
		var errs []error
		for _, f := range slices.Backward(files) {
			err := unix.Unmount("/"+f.name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: no mount
				errs = append(errs, fmt.Errorf("unmount %s: %w", f.name, err))
			}
		}
		return errors.Join(errs...)
	})
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// inMountsOf runs fn in the mount namespace and the root of a VMM. ESRCH if that has
// ended.
func inMountsOf(p *launch.Process, fn func() error) error {
	return launch.OnThread(func() error {
		pidfd, err := unix.PidfdOpen(p.Identity().PID, 0)
		if err != nil {
			return err
		}
		defer closeFD(pidfd)
		select {
		case <-p.Done(): // then the PID may be that of another process
			return unix.ESRCH
		default:
		}
		if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns(2) wants a root and a cwd that no other thread shares
			return err
		}
		if err := unix.Setns(pidfd, unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter the VMM's mount namespace: %w", err)
		}
		return fn()
	})
}
