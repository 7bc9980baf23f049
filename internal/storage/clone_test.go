package storage

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// sparseFile writes a file of 64 MiB with data at its start, in its middle and at its end.
func sparseFile(t *testing.T) (path string, size int64) {
	t.Helper()
	path, size = filepath.Join(t.TempDir(), "src"), 64<<20
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, 100_000)
	for _, off := range []int64{0, 31<<20 + 7, size - int64(len(data))} {
		rand.Read(data)
		if _, err := f.WriteAt(data, off); err != nil {
			t.Fatal(err)
		}
	}
	return path, size
}

func blocks(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestCloneIsEqualAndSparse(t *testing.T) {
	src, size := sparseFile(t)
	dst := filepath.Join(t.TempDir(), "dst")
	method, err := Clone(t.Context(), dst, src, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := os.ReadFile(src)
	got, _ := os.ReadFile(dst)
	if !bytes.Equal(want, got) {
		t.Errorf("%s: the clone differs", method)
	}
	if used := blocks(t, dst); used > size/8 {
		t.Errorf("%s: the clone takes %d bytes of disk, the source has 300000 bytes of data", method, used)
	}
	info, _ := os.Stat(dst)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v", info.Mode())
	}
}

func TestCloneNeverOverwrites(t *testing.T) {
	src, _ := sparseFile(t)
	if _, err := Clone(t.Context(), src, src, 0o600); !errors.Is(err, os.ErrExist) {
		t.Errorf("Clone over a file = %v, want ErrExist", err)
	}
}

func TestCopyDataStopsWithItsContext(t *testing.T) {
	src, _ := sparseFile(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	in, err := os.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), "dst"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := copyData(ctx, out, in); !errors.Is(err, context.Canceled) {
		t.Errorf("copyData() = %v, want Canceled", err)
	}
}
