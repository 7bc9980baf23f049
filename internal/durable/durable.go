// Package durable changes files so that a crash or a power cut leaves the old
// content or the new, never a mixture.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFunc is WriteFile, or that of a Reserve.
type WriteFunc func(path string, data []byte, perm os.FileMode) error

// WriteFile replaces path by data in one step: a temporary file beside it,
// fsync, rename, fsync of the directory. When it returns nil the new content
// survives a power cut; when it fails the old content is still there.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	return replace(f, path, data, perm)
}

// replace fills f, which is beside path, and makes it path's file. It closes f.
func replace(f *os.File, path string, data []byte, perm os.FileMode) error {
	err := fill(f, data, perm)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the first error is the one that counts
		return fmt.Errorf("write %s: %w", path, err)
	}
	return Sync(filepath.Dir(path))
}

// fill closes f.
func fill(f *os.File, data []byte, perm os.FileMode) error {
	err := f.Truncate(int64(len(data))) // a reserve's is longer
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Publish makes the directory staged appear under its final name in one step,
// with everything in it durable. The final name must not exist. When it fails
// the directory is where it was.
func Publish(staged, final string) error {
	err := filepath.WalkDir(staged, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&^fs.ModeDir != 0 { // links and the like have no content of their own
			return err
		}
		return Sync(path)
	})
	if err != nil {
		return fmt.Errorf("publish %s: %w", final, err)
	}
	if err := os.Rename(staged, final); err != nil {
		return err
	}
	if err := Sync(filepath.Dir(final)); err != nil {
		return errors.Join(fmt.Errorf("publish %s: %w", final, err), os.Rename(final, staged))
	}
	return nil
}

// Sync makes a file durable, or the names in a directory: what was created,
// renamed or removed there.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
