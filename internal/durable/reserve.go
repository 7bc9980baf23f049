package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// reserveSize is more than any file has that is written by a Reserve.
const reserveSize = 256 << 10

// Reserve is space that is set aside on a file system, for small files that
// must be written when nothing is free any more: what gives space back is noted
// first. It is safe for concurrent use; one process at a time may use its path.
type Reserve struct {
	path string
	mu   sync.Mutex // whoever fills or takes it
}

// NewReserve returns the reserve whose file is at path. Nothing is set aside before Fill.
func NewReserve(path string) *Reserve { return &Reserve{path: path} }

// Fill sets the space aside, unless it is. It is called when there may be some
// again: at the start, and after something was removed. That a file system
// cannot allocate ahead is no error: there is no reserve then.
func (r *Reserve) Fill() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := os.Stat(r.path); err == nil {
		return nil
	}
	staged := r.path + ".new"
	f, err := os.OpenFile(staged, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, reserveSize), f.Close())
	if err == nil {
		err = os.Rename(staged, r.path)
	}
	if err == nil {
		return nil
	}
	_ = os.Remove(staged) // the first error is the one that counts
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return fmt.Errorf("set space aside at %s: %w", r.path, err)
}

// WriteFile is the package's WriteFile. On a full disk the space that was set
// aside becomes the file: no block of it and no inode is asked for, that others
// who write meanwhile could get first. path must be on the reserve's file system.
func (r *Reserve) WriteFile(path string, data []byte, perm os.FileMode) error {
	err := WriteFile(path, data, perm)
	if !errors.Is(err, unix.ENOSPC) || len(data) > reserveSize {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	staged := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".reserve")
	if moveErr := os.Rename(r.path, staged); moveErr != nil { // used up
		return err
	}
	f, err := os.OpenFile(staged, os.O_WRONLY, 0)
	if err != nil {
		return errors.Join(err, os.Remove(staged))
	}
	return replace(f, path, data, perm)
}
