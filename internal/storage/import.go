package storage

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"wrenn/internal/durable"
)

const (
	importedDir = "imported"
	importedExt = ".img"
)

// Import returns a file in the store with the content of the immutable image
// at path, whose digest names it; a copy is made the first time. Images that
// were imported before and have another digest are removed: disks that were
// cloned from them share nothing with their names.
func (s *Store) Import(ctx context.Context, path, digest string) (string, error) {
	dir := filepath.Join(s.Dir, importedDir)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	name := digest + importedExt
	final := filepath.Join(dir, name)
	if err := removeOthers(dir, name); err != nil {
		return "", err
	}
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	staged := final + ".new"
	if _, err := Clone(ctx, staged, path, 0o400); err != nil {
		return "", err
	}
	if err := errors.Join(durable.Sync(staged), os.Rename(staged, final)); err != nil {
		return "", err
	}
	return final, durable.Sync(dir)
}

// removeOthers also removes what a killed Import left.
func removeOthers(dir, keep string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*"+importedExt+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range files {
		if filepath.Base(file) != keep {
			errs = append(errs, os.Remove(file))
		}
	}
	return errors.Join(errs...)
}
