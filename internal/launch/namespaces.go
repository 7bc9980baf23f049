package launch

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/netns"
)

// OnThread runs fn on a new thread, which ends with it: so fn may move the thread
// to other namespaces. It is never the main thread, which cannot end and whose
// namespaces count as those of the whole process.
func OnThread(fn func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked, unless it is the main thread
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			result <- OnThread(fn) // on another thread: this one is in use until then
			return
		}
		result <- fn()
	}()
	return <-result
}

// inNamespaces runs fn on a thread that is in a new mount namespace, in the command's
// network namespace and in its root.
func inNamespaces(cmd Command, fn func() error) error {
	return OnThread(func() error {
		if err := leaveMounts(); err != nil {
			return err
		}
		if cmd.Mounts != nil {
			if err := cmd.Mounts(); err != nil {
				return err
			}
		}
		if err := enterNetwork(cmd.Namespace); err != nil {
			return err
		}
		if err := enterRoot(cmd); err != nil {
			return err
		}
		return fn()
	})
}

// leaveMounts moves the thread to a new mount namespace, from which nothing
// propagates to the host. What the host unmounts is unmounted here as well: in a
// private namespace the VMM would keep each file system of the host in use for as
// long as it runs, see mount_namespaces(7).
func leaveMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("new mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts one-way: %w", err)
	}
	return nil
}

func enterNetwork(path string) error {
	if path == "" {
		return nil
	}
	ns, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}

// enterRoot moves the thread to the command's root. From then on it sees no file of the
// host, and what it executes gains no privileges.
func enterRoot(cmd Command) error {
	if cmd.Root == nil {
		return nil
	}
	if err := cmd.Root.enter(cmd.UID, cmd.GID); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("allow no new privileges: %w", err)
	}
	return nil
}
