//go:build root

package storage

import (
	"os"
	"os/exec"
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

// TestOpenFindsAStoreThatIsMountedElsewhere opens a store that some process
// still has mounted in a mount namespace of its own.
func TestOpenFindsAStoreThatIsMountedElsewhere(t *testing.T) {
	dir := withoutReflink(t, "12g")
	s, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
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
	if s, err = Open(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := os.Stat(file); err != nil {
		t.Errorf("%v (%s)", err, s.Note)
	}
}

func TestOpenRefusesAnImageThatCannotBeMounted(t *testing.T) {
	dir := withoutReflink(t, "64m")
	if err := os.WriteFile(filepath.Join(dir, imageName), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(t.Context(), dir); err == nil {
		t.Errorf("Open() = %+v, want an error", s)
		_ = s.Close() // the error above counts
	}
}
