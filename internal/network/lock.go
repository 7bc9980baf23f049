package network

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"wrenn.dev"
)

// lock is the exclusive right to a prefix: a second pool would take the first
// one's slots for leftovers. The kernel releases it when the process dies. The
// file contains the range, for pools of other prefixes: while there are no slots,
// no route shows that the range is taken.
//
// It is a record lock (fcntl), not the flock of internal/filelock, because
// F_OFD_GETLK reports whether another pool holds it without taking it.
type lock struct{ *os.File }

// takeLock returns FailedPrecondition when another pool has the prefix, or a
// range that overlaps.
func takeLock(cfg Config) (lock, error) {
	if err := os.MkdirAll(cfg.RunDir, 0o755); err != nil {
		return lock{}, err
	}
	l, err := lockFile(lockPath(cfg, cfg.Prefix))
	if errors.Is(err, unix.EAGAIN) {
		return lock{}, wrenn.Errorf(wrenn.FailedPrecondition,
			"another agent uses the network prefix %q on this machine: stop it, or set another prefix and another range", cfg.Prefix)
	}
	if err != nil {
		return lock{}, err
	}
	// The range is written before the others are read: of two pools that open at
	// once, at least one sees the other's.
	err = l.write(cfg.Range.String())
	if err == nil {
		err = checkOthers(cfg)
	}
	if err != nil {
		return lock{}, errors.Join(err, l.release())
	}
	return l, nil
}

func lockPath(cfg Config, prefix string) string {
	return filepath.Join(cfg.RunDir, "network-"+prefix+".lock")
}

// lockFile creates and locks the file at path; EAGAIN when another pool has it.
func lockFile(path string) (lock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return lock{}, err
		}
		// A lock of the open file, not of the process: fcntl_locking(2).
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
			f.Close()
			return lock{}, fmt.Errorf("lock %s: %w", path, err)
		}
		if isAt(f, path) {
			return lock{f}, nil
		}
		f.Close() // its last holder has removed the file since it was opened
	}
}

func isAt(f *os.File, path string) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	current, err := os.Stat(path)
	return err == nil && os.SameFile(opened, current)
}

func (l lock) write(text string) error {
	if err := l.Truncate(0); err != nil {
		return err
	}
	_, err := l.WriteAt([]byte(text), 0)
	return err
}

// checkOthers returns FailedPrecondition when a pool of another prefix, which
// is open now, has a range that overlaps.
func checkOthers(cfg Config) error {
	paths, err := filepath.Glob(lockPath(cfg, "*"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		if path == lockPath(cfg, cfg.Prefix) {
			continue
		}
		if other, held := heldRange(path); held && other.Overlaps(cfg.Range) {
			prefix := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "network-"), ".lock")
			return wrenn.Errorf(wrenn.FailedPrecondition,
				"the network range %s overlaps %s, which the agent with the network prefix %q uses: set another range", cfg.Range, other, prefix)
		}
	}
	return nil
}

// heldRange reads the range in a lock file; ok is false if no pool holds the lock.
func heldRange(path string) (held netip.Prefix, ok bool) {
	f, err := os.Open(path)
	if err != nil {
		return netip.Prefix{}, false
	}
	defer f.Close()
	probe := unix.Flock_t{Type: unix.F_RDLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &probe); err != nil || probe.Type == unix.F_UNLCK {
		return netip.Prefix{}, false
	}
	const longest = len("255.255.255.255/32")
	text, err := io.ReadAll(io.LimitReader(f, int64(longest)))
	if err != nil {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(string(text))
	return p, err == nil
}

// release removes the file while the lock is still held, then unlocks it.
func (l lock) release() error {
	return errors.Join(os.Remove(l.Name()), l.Close())
}
