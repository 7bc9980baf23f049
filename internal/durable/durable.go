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

// WriteFile replaces path by data in one step: a temporary file beside it,
// fsync, rename, fsync of the directory. When it returns nil the new content
// survives a power cut; when it fails the old content is still there.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	err = fill(f, data, perm)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the first error is the one that counts
		return fmt.Errorf("write %s: %w", path, err)
	}
	return Sync(dir)
}

func fill(f *os.File, data []byte, perm os.FileMode) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Publish makes the directory staged appear under its final name in one step,
// with everything in it durable. The final name must not exist.
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
	return Sync(filepath.Dir(final))
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
