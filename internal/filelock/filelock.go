// Package filelock locks files against other processes, and against other opens
// in this one, by flock(2). A lock belongs to the open file: it ends when all
// descriptors of that are closed, those of child processes included, and so at
// the latest when the processes end.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked is the error when another open of the file has the lock.
var ErrLocked = errors.New("file is locked")

// poll is the pause between two tries: flock(2) cannot wait with a deadline.
const poll = 100 * time.Millisecond

// Open opens the file at path, which it makes if it does not exist, and locks it.
// ErrLocked if another open has the lock. The caller closes the file, which
// unlocks it.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := TryLock(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// TryLock locks an open file or directory. ErrLocked if another open has the lock.
func TryLock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrLocked
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return nil
}

// Lock is TryLock that waits for the lock until ctx ends; then it returns ctx's
// cause. It calls waiting once if it has to wait; nil is allowed.
func Lock(ctx context.Context, f *os.File, waiting func()) error {
	for tries := 0; ; tries++ {
		if err := TryLock(f); !errors.Is(err, ErrLocked) {
			return err
		}
		if tries == 0 && waiting != nil {
			waiting()
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
