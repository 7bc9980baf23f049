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

	"wrenn"
	"wrenn/internal/durable"
)

const (
	importedDir = "imported"
	importedExt = ".img"
	stagedExt   = ".new"
)

// digestForm is what can name an image: a file's name, and no other's.
var digestForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9:._-]{0,127}$`)

// Import returns a file in the store with the content of the immutable image
// at path, whose digest names it; a copy is made the first time. It stays until
// it is Released as often as it was imported, and a Keep does not name it.
// Exhausted when the disk is full.
func (s *Store) Import(ctx context.Context, path, digest string) (string, error) {
	if !digestForm.MatchString(digest) {
		return "", wrenn.Errorf(wrenn.Invalid, "%.80q cannot name an image", digest)
	}
	dir := filepath.Join(s.Dir, importedDir)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	s.use(digest, 1) // before it is there: Keep must not see it as nobody's
	final := filepath.Join(dir, digest+importedExt)
	if err := s.put(ctx, final, path); err != nil {
		s.use(digest, -1)
		return "", fmt.Errorf("import image %s: %w", digest, err)
	}
	return final, nil
}

// put makes final a copy of the file at path, unless it is there.
func (s *Store) put(ctx context.Context, final, path string) error {
	if _, err := os.Stat(final); err == nil {
		return nil
	}
	staged, err := os.MkdirTemp(filepath.Dir(final), "*"+stagedExt)
	if err != nil {
		return explainFull(err)
	}
	defer func() { _ = os.RemoveAll(staged) }() // the next Open removes what is left
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

// Release undoes one Import. The image stays until the next Keep.
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

// Keep removes the images that are neither named here nor imported and not
// released since Open. Disks that were cloned from an image share nothing with
// its name: they stay what they are.
func (s *Store) Keep(digests ...string) error {
	dir := filepath.Join(s.Dir, importedDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// An Import that begins now finds its image removed, or uses it before.
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, e := range entries {
		digest, isImage := strings.CutSuffix(e.Name(), importedExt)
		switch {
		case !isImage: // of an Import at work
		case s.uses[digest] == 0 && !slices.Contains(digests, digest):
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// dropStaged removes what a killed Import has left.
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
