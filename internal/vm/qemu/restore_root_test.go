//go:build root

package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm"
)

// A restored machine has the lock on its disk that a booted one has, its VMM
// complains of nothing, and its console is the guest's alone.
func TestRestoredMachineIsQuietAndLocksItsDisk(t *testing.T) {
	d := testDriver(t)
	booted, disk := startIdle(t, d, "")
	wantLocked(t, disk)
	testkit.Must(t, booted.Pause(t.Context()))
	snapshot := t.TempDir()
	testkit.Must(t, booted.Snapshot(t.Context(), snapshot))
	testkit.Must(t, booted.Stop(t.Context()))

	restored, disk := startIdle(t, d, snapshot)
	wantLocked(t, disk)
	if log, console := restored.proc.Log(), restored.Console(); len(log) > 0 || console != "" {
		t.Errorf("the VMM of a restored machine logged %q, its console says %q", log, console)
	}
}

// A guest that was restored sees the processor that it saw before, and nothing that the
// host's, its kernel or its QEMU has gained since.
func TestRestoredGuestKeepsItsProcessor(t *testing.T) {
	d := testDriver(t)
	booted, _ := startIdle(t, d, "")
	testkit.Must(t, booted.Pause(t.Context()))
	snapshot := t.TempDir()
	testkit.Must(t, booted.Snapshot(t.Context(), snapshot))
	var man manifest
	path := filepath.Join(snapshot, manifestName)
	testkit.Must(t, vm.ReadManifest(path, &man))
	want := "-cpu\x00max\x00"
	if d.kvm {
		gained := man.Features[len(man.Features)-1] // as if the snapshot's host did not have it
		man.Features = man.Features[:len(man.Features)-1]
		want = "-cpu\x00host," + hidden + "," + gained + "=off\x00"
		testkit.Must(t, os.Remove(path))
		testkit.Must(t, vm.WriteManifest(path, man))
	}
	restored, _ := startIdle(t, d, snapshot)
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", restored.ref.PID))
	testkit.Must(t, err)
	if !strings.Contains(string(line), want) {
		t.Errorf("the VMM of the restored guest was started with %q, want %q", line, want)
	}
}

// startIdle starts a machine whose guest does nothing, or restores it, and
// returns the path of its disk as well.
func startIdle(tb testing.TB, d *Driver, snapshot string) (*machine, string) {
	tb.Helper()
	dir, err := os.MkdirTemp("", "vm") //nolint:usetesting // t.TempDir's names are too long for a machine
	testkit.Must(tb, err)
	tb.Cleanup(func() { os.RemoveAll(dir) })
	disk, kernel := filepath.Join(tb.TempDir(), "disk"), filepath.Join(tb.TempDir(), "kernel")
	testkit.Must(tb, os.WriteFile(disk, make([]byte, 1<<20), 0o600))
	testkit.Must(tb, os.WriteFile(kernel, idleKernel(), 0o600))
	spec := vm.Spec{ID: filepath.Base(dir), Dir: dir, VCPUs: 1, MemoryMiB: 64, UID: 64_321, GID: 64_321, Kernel: vm.Kernel{Image: kernel}, Disks: []vm.Disk{{Path: disk}}}
	var m vm.Machine
	if snapshot == "" {
		m, err = d.Start(tb.Context(), spec)
	} else {
		m, err = d.Restore(tb.Context(), spec, snapshot)
	}
	testkit.Must(tb, err)
	tb.Cleanup(func() { testkit.Must(tb, m.Stop(context.WithoutCancel(tb.Context()))) })
	return m.(*machine), disk
}

// wantLocked fails unless another process may not write to a disk: QEMU then has
// a lock on the byte RAW_LOCK_SHARED_BASE + BLK_PERM_WRITE, see its block/file-posix.c.
func wantLocked(t *testing.T, disk string) {
	t.Helper()
	const unsharedWrite = 200 + 1
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	testkit.Must(t, err)
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: unsharedWrite, Len: 1}
	testkit.Must(t, unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock))
	if lock.Type == unix.F_UNLCK {
		t.Error("the machine has no lock on its disk")
	}
}

// idleKernel is an ELF file that QEMU starts by the PVH protocol, like a vmlinux:
// it halts.
func idleKernel() []byte {
	const (
		load    = 0x100000 // where it is in the guest's memory
		headers = 64 + 2*56
		entry   = 18 // XEN_ELFNOTE_PHYS32_ENTRY
	)
	code := []byte{0xfa, 0xf4, 0xeb, 0xfc} // cli; hlt; jmp back to hlt
	var note bytes.Buffer
	for _, part := range []any{uint32(4), uint32(8), uint32(entry), []byte("Xen\x00"), uint64(load + headers)} {
		_ = binary.Write(&note, binary.LittleEndian, part) // a buffer takes all
	}
	var file bytes.Buffer
	size := uint64(headers + len(code))
	for _, part := range []any{
		[]byte("\x7fELF\x02\x01\x01"), make([]byte, 9), // 64 bits, little-endian
		uint16(2), uint16(62), uint32(1), uint64(load + headers), uint64(64), uint64(0), // executable, x86-64, entry, program headers
		uint32(0), uint16(64), uint16(56), uint16(2), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(5), uint64(0), uint64(load), uint64(load), size, size, uint64(0x1000), // PT_LOAD
		uint32(4), uint32(4), size, uint64(0), uint64(0), uint64(note.Len()), uint64(note.Len()), uint64(4), // PT_NOTE
		code, note.Bytes(),
	} {
		_ = binary.Write(&file, binary.LittleEndian, part)
	}
	return file.Bytes()
}

// BenchmarkIdle measures what it costs to launch a VMM, to restore a machine in it
// and to stop it, with a guest that does nothing.
func BenchmarkIdle(b *testing.B) {
	d := testDriver(b)
	m, _ := startIdle(b, d, "")
	testkit.Must(b, m.Pause(b.Context()))
	snapshot := b.TempDir()
	testkit.Must(b, m.Snapshot(b.Context(), snapshot))
	for _, from := range []string{"", snapshot} {
		b.Run(map[bool]string{true: "start", false: "restore"}[from == ""], func(b *testing.B) {
			for b.Loop() {
				m, _ := startIdle(b, d, from)
				testkit.Must(b, m.Stop(b.Context()))
			}
		})
	}
}
