//go:build root

package storage

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/loop"
	"wrenn.dev/internal/testkit"
)

func imageSize(t *testing.T, s *Store) int64 {
	t.Helper()
	info, err := os.Stat(s.image)
	if err != nil {
		t.Fatal(err)
	}
	if n := allocated(t, s); n < info.Size() {
		t.Errorf("of %d bytes of the image %d are allocated", info.Size(), n)
	}
	return info.Size()
}

// allocated returns how many bytes of the host's disk the image takes.
func allocated(t *testing.T, s *Store) int64 {
	t.Helper()
	info, err := os.Stat(s.image)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// take writes a file of the given size into the store, or until it is full.
func take(t *testing.T, s *Store, name string, size int64) error {
	t.Helper()
	f, err := os.Create(filepath.Join(s.Dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = io.CopyN(f, endless{}, size)
	return errors.Join(err, f.Sync())
}

// endless is a reader of data that no file system stores as a hole.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func free(t *testing.T, s *Store) int64 {
	t.Helper()
	n, err := freeBytes(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestStoreGrows(t *testing.T) {
	dir := withoutReflink(t, "1500m")
	s := openSmall(t, dir)
	if err := s.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := imageSize(t, s); got != smallSizes.start {
		t.Fatalf("an empty store grew to %d bytes", got)
	}
	if err := take(t, s, "guest", free(t, s)-smallSizes.mark/2); err != nil {
		t.Fatal(err)
	}
	before, err := s.Space()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := imageSize(t, s), smallSizes.start+smallSizes.step; got != want {
		t.Errorf("the image has %d bytes, want %d", got, want)
	}
	if free(t, s) < smallSizes.mark {
		t.Errorf("%d bytes are free, less than the mark", free(t, s))
	}
	after, err := s.Space()
	if err != nil {
		t.Fatal(err)
	}
	// XFS uses some of the space itself: growth adds no more than Space reported before.
	if lost := before.Free - after.Free; lost < 0 || lost > smallSizes.step/8 {
		t.Errorf("%d bytes were free before it grew and %d after", before.Free, after.Free)
	}
	const want = 400 << 20
	if err := s.Ensure(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if free(t, s) < want {
		t.Errorf("%d bytes are free, want %d", free(t, s), want)
	}
	size := imageSize(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if again := openSmall(t, dir); imageSize(t, again) != size || free(t, again) < want {
		t.Errorf("after it was opened again: %d bytes, of which %d are free", imageSize(t, again), free(t, again))
	}
}

func TestStoreGrowsNoFurtherThanTheHostAllows(t *testing.T) {
	s := openSmall(t, withoutReflink(t, "850m"))
	for _, want := range []int64{2 << 30, 700 << 20} { // the first never fits, the second needs the host's reserve
		if err := s.Ensure(t.Context(), want); wrenn.CodeOf(err) != wrenn.Exhausted {
			t.Errorf("Ensure(%d MiB) = %v, want Exhausted", want>>20, err)
		}
		if got := imageSize(t, s); got != smallSizes.start {
			t.Errorf("Ensure(%d MiB) left an image of %d bytes", want>>20, got)
		}
	}
	space, err := s.Space()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Ensure(t.Context(), space.Free*7/8); err != nil {
		t.Errorf("Ensure of most of %d free bytes: %v", space.Free, err)
	}
	if host, err := freeBytes(filepath.Dir(s.image)); err != nil || host < smallSizes.reserve {
		t.Errorf("the host has %d bytes left, %v", host, err)
	}
}

// TestStoreSurvivesAnInterruptedGrowth stops a growth after each step, as a kill would.
func TestStoreSurvivesAnInterruptedGrowth(t *testing.T) {
	s := openSmall(t, withoutReflink(t, "1500m"))
	for name, step := range map[string]func(image *os.File) error{
		"longer file":   func(*os.File) error { return nil },
		"longer device": loop.Resize,
	} {
		t.Run(name, func(t *testing.T) {
			image, err := os.OpenFile(s.image, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer image.Close()
			if err := errors.Join(allocate(t.Context(), image, imageSize(t, s), smallSizes.group), step(image)); err != nil {
				t.Fatal(err)
			}
			want := free(t, s) + smallSizes.group
			if err := s.Ensure(t.Context(), want); err != nil {
				t.Fatal(err)
			}
			if free(t, s) < want {
				t.Errorf("%d bytes are free, want %d", free(t, s), want)
			}
		})
	}
}

// TestFullStore fills a store that cannot grow to the last byte: operations that
// need space fail cleanly, and existing files stay.
func TestFullStore(t *testing.T) {
	s := openSmall(t, withoutReflink(t, "640m"))
	kept := importText(t, s, "kept", "an image")
	rootfs := filepath.Join(t.TempDir(), "rootfs")
	if err := os.WriteFile(rootfs, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := take(t, s, "guest", 1<<40); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the store = %v", err)
	}
	if err := s.Tend(t.Context()); wrenn.CodeOf(err) != wrenn.Exhausted {
		t.Errorf("Tend() = %v, want Exhausted", err)
	}
	if _, err := s.Import(t.Context(), rootfs, "new"); wrenn.CodeOf(err) != wrenn.Exhausted {
		t.Errorf("Import() = %v, want Exhausted", err)
	}
	clone := filepath.Join(s.Dir, "clone")
	if _, err := Clone(t.Context(), clone, rootfs, 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Clone() = %v, want ENOSPC", err)
	}
	if _, err := os.Stat(clone); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a clone is left (%v)", err)
	}
	if names := imagesOf(t, s); len(names) != 1 {
		t.Errorf("the failed Import left %q", names)
	}
	wantText(t, kept, "an image")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := openSmall(t, filepath.Dir(s.image)) // a full store is not damaged
	if err := os.Remove(filepath.Join(again.Dir, "guest")); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Import(t.Context(), rootfs, "new"); err != nil {
		t.Errorf("Import into a store that has space again: %v", err)
	}
}

// TestTendRefillsAfterFstrim: a preallocated image must not become sparse.
func TestTendRefillsAfterFstrim(t *testing.T) {
	s := openSmall(t, withoutReflink(t, "1g"))
	if out, err := exec.CommandContext(t.Context(), "fstrim", s.Dir).CombinedOutput(); err != nil {
		t.Skipf("fstrim: %v: %s", err, out)
	}
	t.Logf("fstrim left %d of %d MiB", allocated(t, s)>>20, smallSizes.start>>20)
	// XFS discards by itself some time after fstrim has returned.
	testkit.WaitUntil(t, "the image is fully allocated", func() bool {
		testkit.Must(t, s.Tend(t.Context()))
		return allocated(t, s) >= smallSizes.start
	})
}
