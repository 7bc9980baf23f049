package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
)

func testStore(t *testing.T) *store {
	t.Helper()
	s, err := openStore(t.TempDir(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func content(t *testing.T, s *store) []string {
	t.Helper()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != ".lock" {
			names = append(names, e.Name())
		}
	}
	return names
}

func put(text string) func(string) error {
	return func(dir string) error { return os.WriteFile(filepath.Join(dir, "f"), []byte(text), 0o644) }
}

func TestBuildPublishesTheWholeOnly(t *testing.T) {
	s := testStore(t)
	boom := errors.New("boom")
	err := s.build("x", func(dir string) error { return errors.Join(put("half")(dir), boom) })
	if !errors.Is(err, boom) || s.has("x") {
		t.Errorf("build() = %v, and there: %v", err, s.has("x"))
	}
	if err := os.Mkdir(filepath.Join(s.dir, stagePrefix+"killed"), 0o700); err != nil { // what kill -9 leaves
		t.Fatal(err)
	}
	if err := s.build("x", put("whole")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"x"}, content(t, s)); diff != "" {
		t.Errorf("store mismatch (-want +got):\n%s", diff)
	}
	if info, err := os.Stat(filepath.Join(s.dir, "x")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// TestStageIsItsOwners: a stage stays while its owner works in it, also without the lock.
func TestStageIsItsOwners(t *testing.T) {
	s := testStore(t)
	st, err := s.stage()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(s.dir, stagePrefix+"link")); err != nil { // what a redirect that is killed leaves
		t.Fatal(err)
	}
	if err := s.build("x", put("x")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{filepath.Base(st.dir), "x"}, content(t, s)); diff != "" {
		t.Errorf("store while another makes something (-want +got):\n%s", diff)
	}
	st.held.Close() // as its process does that is killed
	if err := s.build("y", put("y")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"x", "y"}, content(t, s)); diff != "" {
		t.Errorf("store afterwards (-want +got):\n%s", diff)
	}
}

// TestImagesAreTheirOwners: no other user reads images, also of an earlier version.
func TestImagesAreTheirOwners(t *testing.T) {
	state := t.TempDir()
	for _, before := range []string{"", imagesDir} {
		if before != "" {
			if err := os.Chmod(filepath.Join(state, before), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		s, err := openStore(filepath.Join(state, imagesDir), io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != 0o700 {
			t.Errorf("images are in a directory of mode %o", got)
		}
	}
}

func TestBuildNamesAFullDisk(t *testing.T) {
	err := testStore(t).build("x", func(string) error { return fmt.Errorf("write: %w", syscall.ENOSPC) })
	if wrenn.CodeOf(err) != wrenn.Exhausted {
		t.Errorf("build() = %v", err)
	}
}

func TestLockKeepsOthersOut(t *testing.T) {
	s := testStore(t)
	held, err := s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupt := errors.New("interrupt")
	waiting := make(chan string, 1)
	other := &store{dir: s.dir, out: writerFunc(func(line string) { waiting <- line })}
	done := make(chan error, 1)
	go func() {
		_, err := other.lock(ctx)
		done <- err
	}()
	if line := <-waiting; !strings.Contains(line, "waiting") {
		t.Errorf("it said %q", line)
	}
	cancel(interrupt)
	if err := <-done; !errors.Is(err, interrupt) {
		t.Errorf("lock() while it is held = %v", err)
	}
	go func() {
		free, err := other.lock(t.Context())
		if err == nil {
			free.Close()
		}
		done <- err
	}()
	<-waiting
	held.Close()
	if err := <-done; err != nil {
		t.Errorf("lock() after it was given back = %v", err)
	}
}

type writerFunc func(string)

func (f writerFunc) Write(p []byte) (int, error) {
	f(string(p))
	return len(p), nil
}

func TestPruneKeepsWhatIsUsed(t *testing.T) {
	s := testStore(t)
	names := []string{"guest-1", "guest-2", "guest-3", "guest-4", "guest-5", "guest-6", "base-1", "base-2", "base-3", "image-a", "image-b", "mine-0"}
	for i, name := range names {
		dir := filepath.Join(s.dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		day := time.Date(2026, 1, 1+i, 0, 0, 0, 0, time.UTC)
		if err := os.Chtimes(dir, day, day); err != nil {
			t.Fatal(err)
		}
	}
	s.touch("guest-1", "base-1")
	if err := os.Symlink("image-b", filepath.Join(s.dir, "named")); err != nil {
		t.Fatal(err)
	}
	if err := s.prune(); err != nil {
		t.Fatal(err)
	}
	want := []string{"base-1", "base-3", "guest-1", "guest-4", "guest-5", "guest-6", "image-b", "mine-0", "named"}
	if diff := cmp.Diff(want, content(t, s)); diff != "" {
		t.Errorf("store mismatch (-want +got):\n%s", diff)
	}
}

func TestRedirectReplacesInOneStep(t *testing.T) {
	s := testStore(t)
	for _, target := range []string{"image-a", "image-b"} {
		if err := s.build(target, put(target)); err != nil {
			t.Fatal(err)
		}
		if err := s.redirect("mine", target); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(s.path("mine", "f")); err != nil || string(got) != target {
			t.Errorf("mine = %q, %v", got, err)
		}
	}
	if diff := cmp.Diff([]string{"image-b", "mine"}, content(t, s)); diff != "" {
		t.Errorf("store mismatch (-want +got):\n%s", diff)
	}
}

func TestNeedSpace(t *testing.T) {
	if err := needSpace(t.TempDir(), 1); err != nil {
		t.Error(err)
	}
	if err := needSpace(t.TempDir(), 1<<60); wrenn.CodeOf(err) != wrenn.Exhausted {
		t.Errorf("needSpace() = %v", err)
	}
}

// TestDir: a directory that the user names is the directory of images itself, but for
// one that has other things, as those of earlier versions have.
func TestDir(t *testing.T) {
	state, fresh, used, earlier := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	missing := filepath.Join(state, "missing")
	if err := os.Mkdir(filepath.Join(earlier, imagesDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{lockName, "base-1"} {
		if err := os.WriteFile(filepath.Join(used, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for dir, want := range map[string]string{
		"": filepath.Join(state, imagesDir), missing: missing, fresh: fresh, used: used, earlier: filepath.Join(earlier, imagesDir),
	} {
		if got := (Config{StateDir: state, Dir: dir}).dir(); got != want {
			t.Errorf("dir() of %q = %q, want %q", dir, got, want)
		}
	}
}
