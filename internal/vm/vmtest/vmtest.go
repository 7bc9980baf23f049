// Package vmtest is the conformance suite of vm.Driver: the contract as tests. A
// driver's own tests fill in a Harness and call Run.
package vmtest

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/vm"
)

// Harness is a driver and what its machines need.
type Harness struct {
	// Driver returns the driver under test.
	Driver func(t *testing.T) vm.Driver
	// Failing returns a driver whose Start and Restore fail after the named step.
	Failing func(t *testing.T, step string) vm.Driver
	// StartSteps and RestoreSteps are the names that Failing knows.
	StartSteps, RestoreSteps []string
	// Place makes a place in a network for one machine, and removes it when t
	// ends. Places have the same devices and addresses, so that a snapshot
	// can be restored in any.
	Place func(t *testing.T) Place
	// Guest talks to the guest in a place; Envd is the one for real guests.
	Guest func(t *testing.T, p Place) Guest
	// Elsewhere starts a machine by another process, or restores it if a
	// snapshot is named, and kills that process before it returns. The function
	// Elsewhere does it for drivers of real processes.
	Elsewhere func(t *testing.T, spec vm.Spec, snapshot string) vm.Ref
	// Kill ends a VMM by SIGKILL from outside; the function Kill does it for
	// real processes.
	Kill func(t *testing.T, ref vm.Ref)
	// FillConsole prints for the guest until the console is almost full, where
	// each byte would cost a guest a millisecond; the function FillConsole does
	// it for processes of package launch. May be nil.
	FillConsole func(t *testing.T, ref vm.Ref)
	// Leftovers names what is left of a machine outside its directory, besides
	// processes and mounts that name it, which the suite finds itself. May be nil.
	Leftovers func(t *testing.T, spec vm.Spec) []string
	// Quiet promises that the VMM logs nothing unless something is wrong.
	Quiet bool

	// Kernel and RootFS are what machines boot; RootFS is cloned, never
	// written. Without RootFS the disk is an empty file.
	Kernel vm.Kernel
	RootFS string
	// VCPUs and MemoryMiB are the shape of every machine.
	VCPUs, MemoryMiB int
	// UID is the first of 32 user ids to run VMMs as; zero for a driver
	// without real processes, whose isolation is not checked.
	UID uint32
}

// Place is where a machine runs, and how to reach it.
type Place struct {
	NIC vm.NIC
	// Dial reaches the guest from inside the place.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Guest is what the suite asks of a guest. All of it may fail while the machine
// is paused or gone.
type Guest interface {
	// WaitReady returns when the guest answers, or early when gone returns.
	WaitReady(ctx context.Context, gone func(context.Context) error) error
	// Fill makes a memory-backed file of a few MiB hold nothing but the byte b.
	Fill(ctx context.Context, name string, b byte) error
	// Filled reports whether the file still holds nothing but b.
	Filled(ctx context.Context, name string, b byte) (bool, error)
	// WriteDisk keeps a text on the disk, safely; ReadDisk returns it.
	WriteDisk(ctx context.Context, text string) error
	ReadDisk(ctx context.Context) (string, error)
	// GrowDisk grows the file system on the disk to size bytes.
	GrowDisk(ctx context.Context, size int64) error
	// StartCounter starts a process that counts; Counter returns its count.
	StartCounter(ctx context.Context) error
	Counter(ctx context.Context) (int, error)
	// BusyTimer fails unless a timer of the guest fires while its CPU is busy.
	BusyTimer(ctx context.Context) error
	// PrintMuch prints n bytes on the console and returns when all are out.
	PrintMuch(ctx context.Context, n int) error
	// Flood starts to print on the console without end.
	Flood(ctx context.Context) error
	// PowerOff and Panic end the guest a moment after they returned.
	PowerOff(ctx context.Context) error
	Panic(ctx context.Context) error
}

// Run runs the suite. Its tests share one booted machine's snapshot, because
// booting is slow under emulation; to run one of them, run Life too.
func Run(t *testing.T, h Harness) {
	t.Helper()
	s := &suite{Harness: h}
	s.scratch = t.TempDir()
	if h.RootFS != "" {
		s.scratch = openStore(t, s.scratch)
		s.RootFS = intoStore(t, h.RootFS, s.scratch)
	}
	t.Run("BadSpecsAreInvalid", s.badSpecs)
	t.Run("StartFailuresLeaveNothing", s.startFailures)
	t.Run("Life", s.life) // makes the snapshot that the others restore
	if s.base.dir == "" {
		t.Fatal("no snapshot: the rest of the suite needs one")
	}
	t.Run("SnapshotIsRefused", s.snapshotRefused)
	t.Run("RestoreFailuresLeaveNothing", s.restoreFailures)
	t.Run("RestoreRefusesAnotherShape", s.otherShape)
	t.Run("RestoreRefusesDamage", s.damagedSnapshot)
	t.Run("RestoreIntoAnotherSlot", s.restoreElsewhere)
	t.Run("TenRestoresAtOnce", s.tenRestores)
	t.Run("RestoredIsNew", s.restoredIsNew)
	t.Run("Chain", s.chain)
	t.Run("ExclusiveChain", s.exclusiveChain)
	t.Run("PreparedSnapshots", s.preparedSnapshots)
	if h.RootFS != "" { // a fake has no disk to fill
		t.Run("SnapshotOnAFullDisk", s.fullDisk)
		t.Run("DiskRate", s.diskRate)
	}
	t.Run("PowerOff", s.powerOff)
	t.Run("Panic", s.panics)
	t.Run("Killed", s.killed)
	t.Run("HostileConsole", s.hostileConsole)
	t.Run("ConsoleWithoutAgent", s.consoleWithoutAgent)
	t.Run("Adopt", s.adopt)
	t.Run("AdoptARestoredMachine", s.adoptRestored)
	t.Run("AdoptTheDead", s.adoptDead)
	t.Run("AdoptAnother", s.adoptAnother)
}

// openStore makes a directory where clones of disks are cheap, if they can be.
func openStore(t *testing.T, dir string) string {
	t.Helper()
	store, err := storage.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Log(store.Note)
	return store.Dir
}

// intoStore copies an image to where clones of it are cheap.
func intoStore(t *testing.T, image, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "rootfs")
	if _, err := storage.Clone(t.Context(), path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
