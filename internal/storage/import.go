package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
)

const (
	importedDir = "imported"
	importedExt = ".img"
	stagedExt   = ".new"
)

// digestForm is what can name an image: it is a file name, and never a hidden or
// a relative one.
var digestForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9:._-]{0,127}$`)

// Import returns the path of a file in the store with the content of the
// immutable image at path, which digest names; the first call makes a copy. The
// file stays until it was Released as often as it was imported and a Collect
// does not except it. Exhausted when the disk is full.
func (s *Store) Import(ctx context.Context, path, digest string) (string, error) {
	if !digestForm.MatchString(digest) {
		return "", wrenn.Errorf(wrenn.Invalid, "%.80q cannot name an image", digest)
	}
	dir := filepath.Join(s.Dir, importedDir)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	s.use(digest, 1) // before the file exists: Collect must not see it unused
	final := filepath.Join(dir, digest+importedExt)
	if err := s.put(ctx, final, path); err != nil {
		s.use(digest, -1)
		return "", fmt.Errorf("import image %s: %w", digest, err)
	}
	return final, nil
}

// put makes final a copy of the file at path, unless final exists.
func (s *Store) put(ctx context.Context, final, path string) error {
	if _, err := os.Stat(final); err == nil {
		return nil
	}
	staged, err := os.MkdirTemp(filepath.Dir(final), "*"+stagedExt)
	if err != nil {
		return explainFull(err)
	}
	defer func() { _ = os.RemoveAll(staged) }() // else the next Open removes it
	file := filepath.Join(staged, filepath.Base(final))
	if _, err := Clone(ctx, file, path, 0o400); err != nil {
		return explainFull(err)
	}
	if err := errors.Join(durable.Sync(file), os.Rename(file, final)); err != nil {
		return explainFull(err)
	}
	return durable.Sync(filepath.Dir(final))
}

func explainFull(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &wrenn.Error{Code: wrenn.Exhausted, Message: "this host's disk is full", Err: err}
	}
	return err
}

// Release undoes one Import. The image stays until the next Collect.
func (s *Store) Release(digest string) { s.use(digest, -1) }

func (s *Store) use(digest string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uses == nil {
		s.uses = map[string]int{}
	}
	if s.uses[digest] += n; s.uses[digest] <= 0 {
		delete(s.uses, digest)
	}
}

// Collect removes the images that no Import since Open is using, except those
// named. Disks that were cloned from an image do not need it.
func (s *Store) Collect(except ...string) error {
	dir := filepath.Join(s.Dir, importedDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// An Import counts its use under mu before it looks for the file, so it either
	// prevents the removal or finds the file removed.
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, e := range entries {
		digest, isImage := strings.CutSuffix(e.Name(), importedExt)
		switch {
		case !isImage: // staged by a running Import
		case s.uses[digest] == 0 && !slices.Contains(except, digest):
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// dropStaged removes what an interrupted Import has left.
func (s *Store) dropStaged() error {
	left, err := filepath.Glob(filepath.Join(s.Dir, importedDir, "*"+stagedExt))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range left {
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}
