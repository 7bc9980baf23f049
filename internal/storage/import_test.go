package storage

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
)

// imagesOf are the names of what is kept of images.
func imagesOf(t *testing.T, s *Store) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.Dir, importedDir))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names
}

func importText(t *testing.T, s *Store, digest, text string) string {
	t.Helper()
	src := filepath.Join(t.TempDir(), "rootfs")
	if err := os.WriteFile(src, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := s.Import(t.Context(), src, digest)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func wantText(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v; want %q", filepath.Base(path), got, err, want)
	}
}

func TestImportKeepsACopyByDigest(t *testing.T) {
	s := &Store{Dir: t.TempDir()}
	first := importText(t, s, "d1", "one")
	if again := importText(t, s, "d1", "a digest is a promise"); again != first {
		t.Errorf("the second Import of one digest returned %s, want %s", again, first)
	}
	second := importText(t, s, "d2", "two")
	wantText(t, first, "one")
	wantText(t, second, "two")
	if diff := cmp.Diff([]string{"d1.img", "d2.img"}, imagesOf(t, s)); diff != "" {
		t.Errorf("images (-want +got):\n%s", diff)
	}
	if _, err := s.Import(t.Context(), filepath.Join(t.TempDir(), "none"), "d3"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Import of a missing image = %v, want not there", err)
	}
	for _, bad := range []string{"", ".", "..", "../d1", "a/b", ".hidden", strings.Repeat("x", 200)} {
		if _, err := s.Import(t.Context(), first, bad); wrenn.CodeOf(err) != wrenn.Invalid {
			t.Errorf("Import as %q = %v, want Invalid", bad, err)
		}
	}
}

func TestCollectRemovesUnusedImages(t *testing.T) {
	s := &Store{Dir: t.TempDir()}
	if err := s.Collect("none"); err != nil {
		t.Errorf("Collect without images: %v", err)
	}
	for _, digest := range []string{"imported", "named", "twice", "old"} {
		importText(t, s, digest, digest)
	}
	importText(t, s, "twice", "")
	for _, digest := range []string{"named", "twice", "old", "never imported"} {
		s.Release(digest)
	}
	if err := s.Collect("named", "of another store"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"imported.img", "named.img", "twice.img"}, imagesOf(t, s)); diff != "" {
		t.Errorf("images (-want +got):\n%s", diff)
	}
	s.Release("twice")
	if err := s.Collect(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"imported.img"}, imagesOf(t, s)); diff != "" {
		t.Errorf("images (-want +got):\n%s", diff)
	}
}

// TestCollectDuringImport: a file that Import returned exists, whenever Collect ran.
func TestCollectDuringImport(t *testing.T) {
	s := &Store{Dir: t.TempDir()}
	src := filepath.Join(t.TempDir(), "rootfs")
	if err := os.WriteFile(src, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				path, err := s.Import(t.Context(), src, "d")
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.Stat(path); err != nil {
					t.Error(err)
				}
				s.Release("d")
			}
		})
	}
	wg.Go(func() {
		for range 100 {
			if err := s.Collect(); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
}

func TestOpenRemovesInterruptedImport(t *testing.T) {
	dir := t.TempDir()
	half := filepath.Join(dir, importedDir, "123"+stagedExt)
	if err := os.MkdirAll(half, 0o700); err != nil {
		t.Fatal(err)
	}
	s := &Store{Dir: dir}
	kept := importText(t, s, "d1", "one")
	if err := s.dropStaged(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half an import is left (%v)", err)
	}
	wantText(t, kept, "one")
}
