package filelock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestOpenLocksUntilTheFileIsClosed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	f := open(t, path)
	if _, err := Open(path); !errors.Is(err, ErrLocked) {
		t.Errorf("second Open() = %v", err)
	}
	f.Close()
	open(t, path)
}

func TestTryLockLocksDirectories(t *testing.T) {
	var dirs [2]*os.File
	path := t.TempDir()
	for i := range dirs {
		dir, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		dirs[i] = dir
	}
	if err := TryLock(dirs[0]); err != nil {
		t.Error(err)
	}
	if err := TryLock(dirs[1]); !errors.Is(err, ErrLocked) {
		t.Errorf("TryLock() = %v", err)
	}
}

func TestLockWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	held := open(t, path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	told := 0
	if err := Lock(t.Context(), f, func() { told++; held.Close() }); err != nil || told != 1 {
		t.Errorf("Lock() = %v, told %d times", err, told)
	}
}

func TestLockEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	open(t, path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cause := errors.New("cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	if err := Lock(ctx, f, func() { cancel(cause) }); !errors.Is(err, cause) {
		t.Errorf("Lock() = %v", err)
	}
}
