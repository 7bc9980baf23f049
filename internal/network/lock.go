package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"wrenn"
)

// lock is the sole right to a prefix: a second pool would take the first one's
// slots for leftovers. The kernel gives it back when the process dies.
type lock struct{ *os.File }

// takeLock returns FailedPrecondition when another pool has the prefix.
func takeLock(cfg Config) (lock, error) {
	if err := os.MkdirAll(cfg.RunDir, 0o755); err != nil {
		return lock{}, err
	}
	path := filepath.Join(cfg.RunDir, "network-"+cfg.Prefix+".lock")
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return lock{}, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return lock{}, wrenn.Errorf(wrenn.FailedPrecondition,
					"another agent uses the network prefix %q on this machine: stop it, or set another prefix and another range", cfg.Prefix)
			}
			return lock{}, fmt.Errorf("lock %s: %w", path, err)
		}
		if isAt(f, path) {
			return lock{f}, nil
		}
		f.Close() // its last holder removed the file in between
	}
}

func isAt(f *os.File, path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(mine, there)
}

// release removes the file while the lock is still held, then lets go.
func (l lock) release() error {
	return errors.Join(os.Remove(l.Name()), l.Close())
}
