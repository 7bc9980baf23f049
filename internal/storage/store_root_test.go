//go:build root

package storage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// withoutReflink returns a directory on a file system that cannot reflink.
func withoutReflink(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestOpenMakesAStoreThatReflinks(t *testing.T) {
	dir := withoutReflink(t, "12g")
	for round := range 3 { // made, found again, found mounted after a crash
		s, err := Open(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		if !canReflink(s.Dir) {
			t.Fatalf("round %d: no reflink in %s (%s)", round, s.Dir, s.Note)
		}
		file := filepath.Join(s.Dir, "kept")
		if round == 0 {
			err = os.WriteFile(file, []byte("x"), 0o600)
		} else {
			_, err = os.Stat(file)
		}
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if round == 1 {
			continue // as if killed: the mount stays
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if mounted(filepath.Join(dir, mountName)) {
			t.Fatal("Close left the store mounted")
		}
	}
}

func TestOpenSaysThatItMustCopy(t *testing.T) {
	dir := withoutReflink(t, "64m")
	s, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Dir != dir || !strings.Contains(s.Note, "copies") || !strings.Contains(s.Note, "does not fit") {
		t.Errorf("Open() = %+v, want a store in %s that says why it copies", s, dir)
	}
	if _, err := os.Stat(filepath.Join(dir, imageName+".new")); err == nil {
		t.Error("a half-made image is left")
	}
}
