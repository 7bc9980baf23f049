//go:build root

package storage

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A host that began with copies keeps making them: an XFS store would not have
// its sandboxes.
func TestStoreStaysWhereSandboxesAre(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1g"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	small := sizes{start: 512 << 20, group: 128 << 20, step: 256 << 20, mark: 64 << 20, reserve: 64 << 20}
	path := os.Getenv("PATH")
	t.Setenv("PATH", "/nowhere") // no xfsprogs
	first, err := open(t.Context(), dir, small)
	if err != nil {
		t.Fatal(err)
	}
	paused := filepath.Join(first.Dir, "sandboxes", "paused")
	if err := os.MkdirAll(paused, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", path)
	for _, c := range []struct {
		what  string
		begin func() error
		image string
	}{
		{"while it has a sandbox", func() error { return nil }, ""},
		{"without sandboxes", func() error { return os.Remove(paused) }, filepath.Join(dir, imageName)},
	} {
		if err := c.begin(); err != nil {
			t.Fatal(err)
		}
		s, err := open(t.Context(), dir, small)
		if err != nil {
			t.Fatal(err)
		}
		if s.image != c.image {
			t.Errorf("%s the store is %s (%s)", c.what, s.Dir, s.Note)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
