package storage

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestImportKeepsOneCopyByDigest(t *testing.T) {
	s := &Store{Dir: t.TempDir()}
	src := filepath.Join(t.TempDir(), "rootfs")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(src, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	importAs := func(digest, want string) string {
		t.Helper()
		path, err := s.Import(t.Context(), src, digest)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Fatalf("Import(%s) holds %q, %v; want %q", digest, got, err, want)
		}
		return path
	}

	write("one")
	first := importAs("d1", "one")
	if err := os.WriteFile(first+".new", []byte("half"), 0o600); err != nil { // as a killed import leaves it
		t.Fatal(err)
	}
	write("two")
	if again := importAs("d1", "one"); again != first {
		t.Errorf("the second Import of one digest returned %s, want %s", again, first)
	}
	second := importAs("d2", "two")
	for _, gone := range []string{first, first + ".new"} {
		if _, err := os.Stat(gone); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there (%v)", filepath.Base(gone), err)
		}
	}
	if err := os.Remove(src); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(second); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(t.Context(), src, "d2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Import of a missing image = %v, want not there", err)
	}
}
