package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// reserveSize is larger than any file that a Reserve writes.
const reserveSize = 256 << 10

// Reserve is reserved space on a file system, for small files that must be
// written when the disk is full: an operation that frees space is recorded before
// it runs. It is safe for concurrent use; one process at a time may use its path.
type Reserve struct {
	path string
	mu   sync.Mutex // guards the file at path
}

// NewReserve returns a reserve whose file is at path. It is empty until Fill.
func NewReserve(path string) *Reserve { return &Reserve{path: path} }

// Fill reserves the space, unless it is reserved. Call it when there may be free
// space: at the start, and after a removal. On a file system that cannot
// preallocate it returns nil, and the reserve stays empty.
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
	_ = os.Remove(staged) // the first error matters
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return fmt.Errorf("reserve space at %s: %w", r.path, err)
}

// WriteFile is the package's WriteFile, but on a full disk the reserve's file
// becomes path's file. That needs no new block and no new inode, which another
// writer could take first. path must be on the reserve's file system.
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
