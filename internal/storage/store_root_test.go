//go:build root

package storage

import (
	"bytes"
	"hash/maphash"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
)

// withoutReflink returns a directory on a file system that cannot reflink.
func withoutReflink(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Lazily: a loop device closes its file some time after it was detached.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// smallSizes are the smallest that mkfs.xfs accepts.
var smallSizes = sizes{start: 512 << 20, group: 128 << 20, step: 256 << 20, mark: 64 << 20, reserve: 64 << 20}

// openSmall opens a store of smallSizes, which the end of t closes.
func openSmall(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := open(t.Context(), dir, smallSizes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if s.image == "" {
		t.Fatal(s.Note)
	}
	return s
}

func TestOpenMakesAStoreThatReflinks(t *testing.T) {
	dir := withoutReflink(t, "1g")
	for round := range 3 { // made, found again, found mounted after a crash
		s, err := open(t.Context(), dir, smallSizes)
		if err != nil {
			t.Fatal(err)
		}
		if method, err := tryClone(s.Dir); err != nil || method != Reflink {
			t.Fatalf("round %d: %q, %v in %s (%s)", round, method, err, s.Dir, s.Note)
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

func TestOpenExplainsThatClonesAreCopies(t *testing.T) {
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

// TestOpenFindsAStoreThatIsMountedElsewhere opens a store that some process
// still has mounted in another mount namespace.
func TestOpenFindsAStoreThatIsMountedElsewhere(t *testing.T) {
	dir := withoutReflink(t, "1g")
	s := openSmall(t, dir)
	file := filepath.Join(s.Dir, "kept")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	holder := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo inside; read -r line")
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		_ = holder.Wait() // read fails at the end of the input
	}()
	if _, err := out.Read(make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := openSmall(t, dir)
	if _, err := os.Stat(file); err != nil {
		t.Errorf("%v (%s)", err, again.Note)
	}
}

func TestOpenRefusesAnImageThatCannotBeUsed(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, image string){
		"not a file system": func(t *testing.T, image string) {
			t.Helper()
			if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"cut": func(t *testing.T, image string) {
			t.Helper()
			if err := os.Truncate(image, smallSizes.start-smallSizes.group); err != nil {
				t.Fatal(err)
			}
		},
		"superblock overwritten": func(t *testing.T, image string) {
			t.Helper()
			overwrite(t, image, 0, 512)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := withoutReflink(t, "1g")
			s := openSmall(t, dir)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			image := filepath.Join(dir, imageName)
			spoil(t, image)
			before := sum(t, image)
			s, err := open(t.Context(), dir, smallSizes)
			if err == nil {
				t.Fatalf("open() = %+v, want an error", s)
			}
			t.Log(err)
			if wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "xfs_repair -n") {
				t.Errorf("open() = %v, want FailedPrecondition, and what to do", err)
			}
			if sum(t, image) != before {
				t.Error("the image was changed")
			}
			if mounted(filepath.Join(dir, mountName)) {
				t.Error("it was left mounted")
			}
		})
	}
}

// TestOpenReplaysTheLog opens a store whose host lost its power: a copy of its
// image from a moment while it was in use.
func TestOpenReplaysTheLog(t *testing.T) {
	dir := withoutReflink(t, "2g")
	s := openSmall(t, dir)
	kept := filepath.Join(s.Dir, "kept")
	if err := durable.WriteFile(kept, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	if err := unix.Mount("tmpfs", other, "tmpfs", 0, "size=2g"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(other, 0) })
	if _, err := Clone(t.Context(), filepath.Join(other, imageName), s.image, 0o600); err != nil { // mounted: the log is dirty
		t.Fatal(err)
	}
	if err := s.Close(); err != nil { // XFS refuses two of one UUID
		t.Fatal(err)
	}
	again := openSmall(t, other)
	if text, err := os.ReadFile(filepath.Join(again.Dir, "kept")); err != nil || string(text) != "x" {
		t.Errorf("the durable file: %q, %v", text, err)
	}
}

func overwrite(t *testing.T, path string, at int64, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xA5}, n), at); err != nil {
		t.Fatal(err)
	}
}

var hashSeed = maphash.MakeSeed()

func sum(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var h maphash.Hash
	h.SetSeed(hashSeed)
	if _, err := io.Copy(&h, f); err != nil {
		t.Fatal(err)
	}
	return h.Sum64()
}
