// Package durable changes files atomically: a crash or a power cut leaves the old
// content or the new, never a mixture.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFunc is the type of WriteFile, and of a Reserve's WriteFile.
type WriteFunc func(path string, data []byte, perm os.FileMode) error

// WriteFile replaces the content of path atomically: a temporary file beside it,
// fsync, rename, fsync of the directory. When it returns nil the new content
// survives a power cut; when it fails path has its old content.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	return replace(f, path, data, perm)
}

// replace writes data to f, which is in path's directory, renames f to path and
// closes it.
func replace(f *os.File, path string, data []byte, perm os.FileMode) error {
	err := fill(f, data, perm)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the first error matters
		return fmt.Errorf("write %s: %w", path, err)
	}
	return Sync(filepath.Dir(path))
}

// fill writes data to f, syncs it and closes it.
func fill(f *os.File, data []byte, perm os.FileMode) error {
	err := f.Truncate(int64(len(data))) // a reserve's file is longer
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

// Publish syncs everything in the directory staged and renames it to final, which
// must not exist. When it fails the directory is still at staged.
func Publish(staged, final string) error {
	err := filepath.WalkDir(staged, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&^fs.ModeDir != 0 { // links and special files have no content to sync
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

// Sync makes the content of a file durable, or the entries of a directory: its
// creations, renames and removals.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
