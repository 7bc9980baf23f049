//go:build root

package extents

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/testkit"
)

const mib = 1 << 20

// write writes n MiB at a position of the file, which it makes if necessary.
func write(t *testing.T, path string, at, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	testkit.Must(t, err)
	data := make([]byte, n*mib)
	for i := range data {
		data[i] = byte(i%251) + 1
	}
	_, err = f.WriteAt(data, int64(at)*mib)
	testkit.Must(t, errors.Join(err, f.Sync(), f.Close()))
}

// clone makes a file that shares all blocks with src.
func clone(t *testing.T, dst, src string) {
	t.Helper()
	in, err := os.Open(src)
	testkit.Must(t, err)
	out, err := os.Create(dst)
	testkit.Must(t, err)
	testkit.Must(t, errors.Join(unix.IoctlFileClone(int(out.Fd()), int(in.Fd())), out.Sync(), out.Close(), in.Close()))
}

func extentsOf(t *testing.T, path string) *Set {
	t.Helper()
	s := &Set{}
	testkit.Must(t, s.Add(t.Context(), path, 10000))
	return s
}

// freeBytes returns how much space the file system has.
func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	testkit.Must(t, unix.Statfs(dir, &st))
	return int64(st.Bfree) * st.Bsize
}

// A removal frees what a file owns, and files that share blocks take them once.
func TestOwnIsWhatARemovalFrees(t *testing.T) {
	dir := testkit.XFS(t)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, a, 0, 8)
	write(t, a, 16, 4) // after a hole
	if s := extentsOf(t, a); s.Own() != 12*mib || Total(s) != 12*mib {
		t.Errorf("a file that is alone owns %d of %d bytes, want 12 MiB of 12 MiB", s.Own(), Total(s))
	}
	clone(t, b, a)
	if s := extentsOf(t, b); s.Own() != 0 || Total(s) != 12*mib {
		t.Errorf("a new clone owns %d of %d bytes, want none of 12 MiB", s.Own(), Total(s))
	}
	write(t, b, 2, 3) // its own now, and those of a are a's alone
	first, second := extentsOf(t, a), extentsOf(t, b)
	if first.Own() != 3*mib || second.Own() != 3*mib {
		t.Errorf("they own %d and %d bytes, want 3 MiB each", first.Own(), second.Own())
	}
	if n := Total(first, second); n != 15*mib {
		t.Errorf("together they take %d bytes, want 15 MiB", n)
	}
	before := freeBytes(t, dir)
	testkit.Must(t, os.Remove(b))
	d, err := os.Open(dir)
	testkit.Must(t, err)
	testkit.Must(t, errors.Join(unix.Syncfs(int(d.Fd())), d.Close()))
	testkit.WaitUntil(t, "the removal has freed 3 MiB", func() bool {
		freed := freeBytes(t, dir) - before
		return freed >= 3*mib-64<<10 && freed <= 3*mib+64<<10 // blocks of the file system's own move, too
	})
}

func TestAddRefuses(t *testing.T) {
	dir := testkit.XFS(t)
	scattered := filepath.Join(dir, "scattered")
	for i := range 5 {
		write(t, scattered, 2*i, 1)
	}
	if err := new(Set).Add(t.Context(), scattered, 4); !errors.Is(err, ErrTooMany) {
		t.Errorf("Add() of 5 pieces, of 4 allowed = %v, want ErrTooMany", err)
	}
	if s := extentsOf(t, scattered); s.Len() != 5 {
		t.Errorf("it has %d pieces, want 5", s.Len())
	}
	if err := new(Set).Add(t.Context(), filepath.Join(dir, "none"), 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Add() of no file = %v", err)
	}
	if err := new(Set).Add(t.Context(), "/proc/self/status", 1); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Add() where no file system tells = %v, want ErrUnsupported", err)
	}
}

// More pieces than one answer of the kernel has.
func TestManyPieces(t *testing.T) {
	dir := testkit.XFS(t)
	path := filepath.Join(dir, "many")
	f, err := os.Create(path)
	testkit.Must(t, err)
	const pieces = 3*batchSize + 7
	for i := range int64(pieces) {
		if _, err := f.WriteAt([]byte{1}, 2*i*4096); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Must(t, errors.Join(f.Sync(), f.Close()))
	var st unix.Stat_t
	testkit.Must(t, unix.Stat(path, &st))
	if s := extentsOf(t, path); s.Len() < pieces || s.Own() > st.Blocks*512 || s.Own() < st.Blocks*512-64<<10 { // the file system may have filled holes ahead, and needs some blocks for its own records
		t.Errorf("%d pieces with %d bytes, want %d or more with %d", s.Len(), s.Own(), pieces, st.Blocks*512)
	}
}
