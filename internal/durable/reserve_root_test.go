//go:build root

package durable

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/testkit"
)

func TestReserve(t *testing.T) {
	dir := t.TempDir()
	testkit.Must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	record, reserve := filepath.Join(dir, "record"), NewReserve(filepath.Join(dir, "reserve"))
	write := func(data string) error { return reserve.WriteFile(record, []byte(data), 0o640) }
	want := func(data string) {
		t.Helper()
		got, err := os.ReadFile(record)
		if err != nil || string(got) != data {
			t.Errorf("the record is %.20q, %v; want %q", got, err, data)
		}
	}
	testkit.Must(t, reserve.Fill())
	testkit.Must(t, reserve.Fill()) // twice is allowed
	testkit.Must(t, write("there is space"))
	fillUp(t, filepath.Join(dir, "filler"))
	if err := WriteFile(record, []byte("x"), 0o640); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("WriteFile() on a full disk = %v", err)
	}
	if err := write(string(make([]byte, reserveSize+1))); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("more than is reserved: %v", err)
	}
	want("there is space")
	testkit.Must(t, write("there is none"))
	want("there is none")
	if info, err := os.Stat(record); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	testkit.Must(t, os.Remove(filepath.Join(dir, "filler")))
	testkit.Must(t, reserve.Fill())
	testkit.Must(t, os.Remove(filepath.Join(dir, "reserve")))
	fillUp(t, filepath.Join(dir, "filler"))
	if err := write("nothing is reserved"); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("without a reserve: %v", err)
	}
	if err := reserve.Fill(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Fill() on a full disk = %v", err)
	}
	want("there is none")
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left are %v, %v; want the record and the filler", entries, err)
	}
}

func fillUp(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}
