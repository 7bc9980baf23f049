// Package vm is the contract between the host agent and a virtual machine
// monitor (VMM). The drivers are vm/qemu and vm/firecracker; vm/vmtest holds
// the conformance suite that each of them, and the in-memory fake, passes.
//
// A driver starts VMM processes and controls them. It owns neither disks nor
// network slots: its caller makes them first and removes them last.
package vm

import (
	"context"
	"fmt"
	"strings"
	"time"

	"wrenn.dev"
)

// Driver makes machines on one kind of VMM. Its methods are safe for
// concurrent use.
type Driver interface {
	// Name is "firecracker", "qemu-kvm", "qemu" or "fake".
	Name() string

	// Start boots a new machine and returns when its vCPUs run; the guest's
	// agent answers later. If Start fails it leaves nothing: no process, no
	// socket, no mount, no file in spec.Dir; if the VMM died, the error is an
	// *ExitError. ctx bounds Start alone, not the machine. The error is that of
	// Spec.Check, or FailedPrecondition if spec.Dir is not an empty directory.
	Start(ctx context.Context, spec Spec) (Machine, error)

	// Restore makes a new, running machine from a snapshot that Snapshot wrote
	// to the directory snapshot, and is otherwise like Start. Any number of
	// machines may be restored from one snapshot, also at the same time. None of
	// them changes it, and it must stay until the last of them has ended. Of
	// spec.Kernel only the Digest is used. spec.Disks are copies of the disks as
	// they were at the snapshot.
	//
	// The error is FailedPrecondition if spec has another shape than the
	// snapshot's machine (vCPUs, memory, number of disks, MAC), if this VMM or
	// this processor cannot load the snapshot, or if it is damaged. Restore checks
	// only the size of the memory: its content is too much to read each time. The
	// package that stores snapshots checks that.
	Restore(ctx context.Context, spec Spec, snapshot string) (Machine, error)

	// Adopt takes over a machine that another process, which has ended, started
	// or restored. NotFound if that machine no longer runs; then Adopt has removed
	// what it left in ref.Dir.
	Adopt(ctx context.Context, ref Ref) (Machine, error)

	// Platform is what the snapshots of the driver's machines depend on.
	Platform() wrenn.Platform
}

// Machine is one running VMM. Its methods are safe for concurrent use, and
// return FailedPrecondition with an *ExitError as its cause once the VMM has ended,
// except Stop and Wait.
type Machine interface {
	// Ref is what Adopt needs. It never changes; a journal may keep it as JSON.
	Ref() Ref

	// Pause stops the vCPUs. Pausing a paused machine is no error.
	Pause(ctx context.Context) error

	// Resume lets the vCPUs run again. Resuming a running machine is no error.
	Resume(ctx context.Context) error

	// Snapshot writes memory and device state into the existing, empty
	// directory dir, or one that PrepareSnapshot prepared. The machine must be
	// paused (FailedPrecondition otherwise, and dir does not change) and still is
	// afterwards; it can be resumed. The caller copies the disks between Pause and
	// Resume. If Snapshot fails dir is empty again and the machine is as before; on
	// a full disk the error is an ENOSPC. A write that has begun may outlive ctx
	// where it cannot be canceled; Stop ends it.
	//
	// Every snapshot is complete: it needs no earlier one, also if the machine was
	// itself restored. The files in dir are not yet safe from a power cut.
	Snapshot(ctx context.Context, dir string) error

	// ResizeDisk tells the guest the new size, in bytes, of a disk whose file its
	// caller has made larger, to Disk.MaxBytes at most. disk is the index in Spec.Disks;
	// the file must have the path that it had when the machine was started.
	// The guest sees the size a moment later; its file system is as before. Twice is
	// allowed.
	ResizeDisk(ctx context.Context, disk int, size int64) error

	// Stop kills the VMM at once, without asking the guest. It returns when the
	// process has ended and what the driver made in Spec.Dir is removed. Twice is
	// allowed, and so is a Stop after the VMM died by itself.
	Stop(ctx context.Context) error

	// Wait returns when the VMM has ended: nil if Stop ended it or the guest
	// powered off, an *ExitError otherwise. It returns ctx's cause if ctx ends first.
	Wait(ctx context.Context) error
}

// SnapshotPreparer is a Machine that can do a part of a snapshot's work while the
// guest still runs. All our drivers' machines can.
type SnapshotPreparer interface {
	// PrepareSnapshot begins a snapshot in the existing, empty directory dir. The
	// machine may run. A Snapshot into dir completes it; if none follows, the
	// caller removes what is in dir. Another snapshot of the machine makes the
	// preparation useless: Snapshot knows that and does the work again. If
	// PrepareSnapshot fails dir is empty again.
	PrepareSnapshot(ctx context.Context, dir string) error
}

// Overhead is a Driver that knows what its machines cost. All our drivers do.
type Overhead interface {
	// OverheadMiB is the memory of the host that a VMM takes besides its guest's.
	OverheadMiB() int
}

// ConsoleReader is a Machine whose guest's console can be read. That of all our
// drivers' machines can.
type ConsoleReader interface {
	// Console returns the end of what the guest printed on its console, bounded,
	// without what the VMM itself printed. The guest chooses the content. It may be
	// called after the VMM has ended.
	Console() string
	// ConsoleParts returns the same in parts, oldest first.
	ConsoleParts() []ConsolePart
}

// ConsolePart is a part of what a guest printed.
type ConsolePart struct {
	// Until is when all of it had been printed, to about a second; zero for the newest.
	Until time.Time
	Text  string
}

// Spec describes a machine to make.
type Spec struct {
	// ID names the machine in jails, cgroups and logs: 1 to 40 of [a-z0-9-].
	ID string
	// Dir is an existing, empty directory for sockets, the console and the
	// like; at most 60 bytes long, because a Unix socket's path ends at 107.
	Dir string
	// VCPUs is 1 to 32; MemoryMiB is 64 or more, and even.
	VCPUs     int
	MemoryMiB int
	Kernel    Kernel
	// Disks appear in the guest as /dev/vda, /dev/vdb, …, raw images each. They
	// may be renamed once the machine runs.
	Disks []Disk
	Net   NIC
	// UID and GID are the user and the group that the VMM runs as; zero is the
	// caller's own, for development. The driver gives them the access that they
	// need to the files named here, and to no others.
	UID, GID uint32
	// Exclusive tells Restore that no other machine is expected to use the
	// snapshot's memory file while this one runs. It is a hint, which changes what
	// memory costs and nothing that a guest sees; another machine may be restored
	// all the same. QEMU then maps an older memory file that more machines share,
	// see docs/machines.md. Firecracker maps the same file with the hint and without.
	Exclusive bool
}

// Kernel is what a new machine boots.
type Kernel struct {
	// Image is an uncompressed ELF (vmlinux).
	Image string
	// Initrd is a cpio archive; empty for none.
	Initrd string
	// Args is the command line, one argument each; the driver appends what its
	// VMM needs (the console, clocks, how to reboot).
	Args []string
	// Digest identifies the content of Image. A snapshot records it, and a Restore
	// with a Digest accepts no snapshot with another one. May be empty.
	Digest string
}

// Disk is a raw disk image.
type Disk struct {
	Path     string
	ReadOnly bool
	// MaxBytes is how large the file may become, see ResizeDisk; it may always be as
	// large as it is at the start. A VMM cannot make it larger.
	MaxBytes int64
	// Rate bounds what the guest reads and writes. It is the machine's own: a machine that
	// is restored has that of its Spec, whatever the snapshot's had.
	Rate DiskRate
}

// DiskRate bounds the reads and writes of a disk, taken together. Zero is no bound. The
// guest waits for what exceeds it; about as much as in a second may come at once.
type DiskRate struct {
	BytesPerSecond      int64
	OperationsPerSecond int64
}

// NIC is the machine's one network interface, eth0 in the guest.
type NIC struct {
	// Namespace is the path of the network namespace that the VMM runs in;
	// empty is the caller's own.
	Namespace string
	// TAP is the name of an existing, persistent TAP device in Namespace;
	// empty for a machine without a network.
	TAP string
	// MAC is the guest's address, like 02:fc:00:00:00:05.
	MAC string
}

// Ref identifies a machine across restarts of the host agent.
type Ref struct {
	Driver string `json:"driver"`
	ID     string `json:"id"`
	Dir    string `json:"dir"`
	PID    int    `json:"pid"`
	// StartTime is field 22 of /proc/PID/stat (clock ticks since boot): with
	// BootID it tells the process from a later one with the same PID.
	StartTime uint64 `json:"start_time"`
	BootID    string `json:"boot_id"`
	// Private is the driver's own (a jail's path, the memory's size); opaque to others.
	Private map[string]string `json:"private,omitempty"`
}

// ExitError describes the end of a VMM.
type ExitError struct {
	Driver string
	// Reason is "exit status 1", "signal: killed", "guest panicked", …
	Reason string
	// Panicked is true when the guest's kernel panicked.
	Panicked bool
	// Console is the end of the guest's console, whose content the guest chooses.
	Console string
	// Log is the end of the VMM's own messages.
	Log string
}

func (e *ExitError) Error() string {
	msg := fmt.Sprintf("%s ended: %s", e.Driver, e.Reason)
	if log := strings.TrimSpace(e.Log); log != "" {
		msg += "; its log:\n" + log
	}
	if console := strings.TrimSpace(e.Console); console != "" {
		msg += "; last lines of the console:\n" + console
	}
	return msg
}
