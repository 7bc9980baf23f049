package identity

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// bootID shows the id that the kernel makes at the first read and keeps: random(4).
const bootID = "/proc/sys/kernel/random/boot_id"

// Linux is the kernel that the program runs on. It needs CAP_SYS_ADMIN.
type Linux struct {
	// Private is a directory for mounts that users need not see.
	Private string
}

// SetHostname is sethostname(2).
func (Linux) SetHostname(name string) error { return unix.Sethostname([]byte(name)) }

// Signal is kill(2). A process that is gone is no error.
func (Linux) Signal(pid, signal int) error {
	if err := unix.Kill(pid, unix.Signal(signal)); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", pid, err)
	}
	return nil
}

// Show mounts file, read-only, over the one at path.
//
// A mount inside /proc has a price: users that make a new namespace (rootless
// containers, unshare --mount-proc) could mount no /proc in it, because the kernel
// wants a visible one without mounts over parts of it (mount_too_revealing in
// fs/namespace.c). So a second one is mounted in Private.
func (k Linux) Show(file, path string) error {
	if same, err := sameFile(file, path); same || err != nil {
		return err
	}
	if path == bootID {
		if err := k.mountWholeProc(); err != nil {
			return err
		}
	}
	if err := unix.Mount(file, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount over %s: %w", path, err)
	}
	const flags = unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("", path, "", flags, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", path, err)
	}
	return nil
}

func (k Linux) mountWholeProc() error {
	dir := filepath.Join(k.Private, "proc")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if stat.Type == unix.PROC_SUPER_MAGIC {
		return nil
	}
	if err := unix.Mount("proc", dir, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return nil
}

func sameFile(a, b string) (bool, error) {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	if err := errors.Join(errA, errB); err != nil {
		return false, err
	}
	return os.SameFile(infoA, infoB), nil
}
