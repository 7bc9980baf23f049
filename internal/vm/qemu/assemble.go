package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/vm"
)

// socketName is the name of the control socket in vm.Spec.Dir.
const socketName = "qmp"

// memoryFD is the VMM's descriptor of the machine's memory, the first that is passed.
const memoryFD = 3

// assembly makes a machine.
type assembly struct {
	d    *Driver
	spec vm.Spec
	snap *snapshot // nil for a machine that boots

	args    []string
	files   []*os.File // passed to the VMM, from descriptor 3 on; closed here in the end
	stateFD int        // the VMM's descriptor of the device state
	image   *lease     // the memory that restored machines share, if it is a copy
	mapped  fileID     // the file that a restored machine maps privately
	newer   *os.File   // has the pages that differ from mapped; nil if none do
	memory  fileKey    // the file that the VMM maps
	cgroup  string     // directory of the VMM's cgroup; "" for none
	machine *machine
}

func (a *assembly) steps() []rollback.Step {
	steps := []rollback.Step{
		{Name: "directory", Do: func(context.Context) error { return vm.CheckEmpty(a.spec.Dir) }},
		{Name: "memory", Do: a.giveMemory, Undo: a.releaseMemory},
		{Name: "disks", Do: a.giveDisks},
		{Name: "network", Do: a.giveNetwork},
		{Name: "socket", Do: a.giveSocket, Undo: func(context.Context) error { return removeSocket(a.spec.Dir) }},
	}
	steps = append(steps, rollback.Step{Name: "cgroup", Do: a.makeCgroup, Undo: a.removeCgroup})
	vmm := rollback.Step{Name: "vmm", Do: a.launch, Undo: a.stop}
	connect := rollback.Step{Name: "connect", Do: a.connect}
	if a.snap == nil {
		return append(steps, rollback.Step{Name: "kernel", Do: a.giveKernel}, vmm, connect)
	}
	return append(steps, rollback.Step{Name: "state", Do: a.giveState}, vmm, connect,
		rollback.Step{Name: "changes", Do: a.fillIn},
		rollback.Step{Name: "load", Do: a.load},
		rollback.Step{Name: "resume", Do: a.resume})
}

// assemble makes a machine. If it fails it leaves nothing.
func (d *Driver) assemble(ctx context.Context, spec vm.Spec, snap *snapshot) (vm.Machine, error) {
	a := &assembly{d: d, spec: spec, snap: snap}
	defer a.close()
	if err := d.runner.Run(ctx, a.steps()...); err != nil {
		return nil, fmt.Errorf("machine %s: %w", spec.ID, err)
	}
	return a.machine, nil
}

// pass adds a file to those of the VMM and returns the VMM's descriptor of it.
func (a *assembly) pass(f *os.File) int {
	a.files = append(a.files, f)
	return memoryFD + len(a.files) - 1
}

func (a *assembly) closeFiles() {
	for _, f := range a.files {
		f.Close()
	}
	a.files = nil
}

// close closes the files of this process, whether the machine was made or not.
func (a *assembly) close() {
	a.closeFiles()
	if a.newer != nil {
		a.newer.Close()
	}
}

// reopen returns the name by which the VMM opens a file that was passed to it, where
// QEMU needs a name. It needs no access to the directories of the file.
func reopen(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func (a *assembly) giveMemory(context.Context) error {
	object := fmt.Sprintf("memory-backend-file,id=mem0,size=%dM,mem-path=%s", a.spec.MemoryMiB, reopen(memoryFD))
	if a.snap == nil {
		f, err := newMemory("memory", int64(a.spec.MemoryMiB)<<20)
		if err != nil {
			return err
		}
		a.args = append(a.args, "-object", object+",share=on")
		return errors.Join(a.passMemory(f), keepSize(f))
	}
	object += ",share=off"
	memory, err := a.chooseMemory()
	if err != nil {
		return err
	}
	if !a.d.version.before(romOff) {
		a.args = append(a.args, "-object", object+",readonly=on,rom=off")
		return a.passMemory(memory)
	}
	defer memory.Close()
	img, err := a.d.images.acquire(memory)
	if err != nil {
		return err
	}
	a.image = img
	f, err := img.dup()
	if err != nil {
		return err
	}
	a.args = append(a.args, "-object", object)
	return a.passMemory(f)
}

// passMemory passes the file that the VMM maps, and records which it is.
func (a *assembly) passMemory(f *os.File) (err error) {
	a.pass(f)
	a.memory, err = keyOf(f)
	return err
}

func (a *assembly) releaseMemory(context.Context) error {
	if a.image != nil {
		a.image.release()
	}
	return nil
}

// chooseMemory returns the memory file that a restored machine maps. The caller closes
// it. For an exclusive machine that is the base of the snapshot's changes, if it still
// exists.
func (a *assembly) chooseMemory() (*os.File, error) {
	memory := a.snap.memory
	a.snap.memory = nil
	if a.spec.Exclusive && a.snap.changed != nil {
		if older, err := a.snap.base.open(int64(a.spec.MemoryMiB) << 20); err == nil {
			memory, a.newer = older, memory
		}
	}
	var err error
	if a.mapped, err = idOf(memory); err != nil {
		memory.Close()
		return nil, err
	}
	return memory, nil
}

// fillIn writes the changed pages into the machine's memory before the guest runs.
func (a *assembly) fillIn(ctx context.Context) error {
	if a.newer == nil {
		return nil
	}
	return a.machine.fillIn(ctx, a.newer, a.snap.changed, int64(a.spec.MemoryMiB)<<20)
}

// writableDisk has the options of a disk that the guest writes to.
//
// QEMU would stop the machine when the host's disk is full (werror). A guest that
// gets the error can report it.
//
// A guest's flushes end in the host's page cache (cache=unsafe). They would serve a
// power cut, which ends the machine, and its disk is worth nothing without it. A
// snapshot is to survive a power cut, and its owner flushes it.
//
// By default QEMU opens a disk for reading first, and for writing when a device of
// the guest needs that (auto-read-only). Of a descriptor that it was passed, the
// locks of the first open then stay behind for as long as the VMM runs, and QEMU's
// own check takes them for another process that writes: a restored machine ran
// without the lock on its disk, and QEMU complained of it.
const writableDisk = ",werror=report,cache=unsafe,auto-read-only=off"

// giveDisks passes each disk as an open descriptor.
func (a *assembly) giveDisks(context.Context) error {
	for i, disk := range a.spec.Disks {
		flag, options := os.O_RDWR, writableDisk
		if disk.ReadOnly {
			flag, options = os.O_RDONLY, ",readonly=on"
		}
		f, err := os.OpenFile(disk.Path, flag, 0)
		if err != nil {
			return fmt.Errorf("disk %d: %w", i, err)
		}
		a.args = append(a.args,
			"-add-fd", fmt.Sprintf("fd=%d,set=%d", a.pass(f), i),
			"-drive", fmt.Sprintf("id=disk%d,file=/dev/fdset/%d,format=raw,if=none%s%s", i, i, options, throttling(disk.Rate)))
	}
	return nil
}

// throttling returns the options of a drive that bound its rate. What a guest may do at
// once is what it may do in a second, as with Firecracker: by default QEMU allows a tenth.
func throttling(rate vm.DiskRate) (options string) {
	for _, limit := range []struct {
		name      string
		perSecond int64
	}{{"bps", rate.BytesPerSecond}, {"iops", rate.OperationsPerSecond}} {
		if limit.perSecond > 0 {
			options += fmt.Sprintf(",throttling.%[1]s-total=%[2]d,throttling.%[1]s-total-max=%[2]d", limit.name, limit.perSecond)
		}
	}
	return options
}

func (a *assembly) giveNetwork(context.Context) error {
	if a.spec.Net.TAP == "" {
		return nil
	}
	var tap *os.File
	open := func() (err error) {
		tap, err = openTAP(a.spec.Net.TAP)
		return err
	}
	var err error
	if a.spec.Net.Namespace == "" {
		err = open()
	} else {
		err = netns.Do(a.spec.Net.Namespace, open)
	}
	if err != nil {
		return err
	}
	a.args = append(a.args, "-netdev", fmt.Sprintf("tap,id=net0,fd=%d", a.pass(tap)))
	return nil
}

// giveSocket makes the control socket. Only this user may use it, and it exists before
// the VMM starts.
func (a *assembly) giveSocket(context.Context) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(a.spec.Dir, socketName), Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	defer func() { _ = l.Close() }() // the VMM has its descriptor
	if err := os.Chmod(l.Addr().String(), 0o600); err != nil {
		return err
	}
	f, err := l.File()
	if err != nil {
		return err
	}
	a.args = append(a.args,
		"-chardev", fmt.Sprintf("socket,id=qmp0,fd=%d,server=on,wait=off", a.pass(f)),
		"-mon", "chardev=qmp0,mode=control")
	return nil
}

func (a *assembly) giveKernel(ctx context.Context) error {
	kernel, err := a.giveReadable(ctx, a.spec.Kernel.Image)
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	a.args = append(a.args, "-kernel", kernel, "-append", a.d.commandLine(a.spec.Kernel.Args))
	if a.spec.Kernel.Initrd == "" {
		return nil
	}
	initrd, err := a.giveReadable(ctx, a.spec.Kernel.Initrd)
	if err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	a.args = append(a.args, "-initrd", initrd)
	return nil
}

// giveReadable passes a file that QEMU opens by name, as another user: if not every
// user may read it, it passes a copy.
func (a *assembly) giveReadable(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	info, err := f.Stat()
	if err != nil || info.Mode().Perm()&0o004 != 0 || a.spec.UID == 0 {
		return reopen(a.pass(f)), err
	}
	defer f.Close()
	c, err := newMemory("boot", info.Size())
	if err != nil {
		return "", err
	}
	name := reopen(a.pass(c))
	return name, copySparse(ctx, c, f, info.Size())
}

func (a *assembly) giveState(context.Context) error {
	a.stateFD = a.pass(a.snap.state)
	a.snap.state = nil
	a.args = append(a.args, "-incoming", "defer")
	return nil
}

func (a *assembly) launch(context.Context) error {
	limits, err := limits(a.spec)
	if err != nil {
		return err
	}
	cgroup, err := a.openCgroup()
	if err != nil {
		return err
	}
	if cgroup != nil {
		defer cgroup.Close()
	}
	proc, err := launch.Start(launch.Command{
		Path:      a.d.path,
		Args:      slices.Concat(a.d.hardware(a.spec, a.lacks()...), a.d.host(a.spec.ID), a.args),
		Dir:       "/",
		Files:     a.files,
		Namespace: a.spec.Net.Namespace,
		UID:       a.spec.UID,
		GID:       a.spec.GID,
		Root:      a.d.root,
		Limits:    limits,
		Cgroup:    cgroup,
		// QEMU asks for huge pages, which cost each machine 3 MiB that it does not use.
		SmallPages: true,
	})
	a.closeFiles() // above all the socket: while it is open here, that of a dead VMM would accept connections
	if err != nil {
		return err
	}
	id := proc.Identity()
	ref := vm.Ref{
		Driver: a.d.Name(), ID: a.spec.ID, Dir: a.spec.Dir,
		PID: id.PID, StartTime: id.StartTime, BootID: id.BootID,
		Private: a.private(),
	}
	a.machine = newMachine(ref, proc, a.image)
	return nil
}

// lacks returns the features of the host's processor that the guest of a snapshot has
// not seen: it goes on without them.
func (a *assembly) lacks() []string {
	if a.snap == nil {
		return nil
	}
	return without(a.d.features, a.snap.features)
}

// stop reverts launch.
func (a *assembly) stop(ctx context.Context) error {
	if a.machine == nil {
		return nil
	}
	return a.machine.Stop(ctx)
}

// private returns what Snapshot needs to know of the machine, also after Adopt.
func (a *assembly) private() map[string]string {
	man := a.d.manifest(a.spec)
	if a.snap == nil {
		return map[string]string{refManifest: encode(man), refMemory: encode(a.memory), refCgroup: a.cgroup}
	}
	man.Kernel, man.Features = a.snap.kernel, a.snap.features
	return map[string]string{
		refManifest: encode(man), refMemory: encode(a.memory), refCgroup: a.cgroup,
		refBase: a.snap.dir, refMapped: encode(a.mapped),
	}
}

func (a *assembly) connect(ctx context.Context) error { return a.machine.connect(ctx) }

func (a *assembly) load(ctx context.Context) error {
	if a.image != nil {
		if err := a.image.wait(ctx); err != nil {
			return err
		}
	}
	return a.machine.load(ctx, a.stateFD)
}

func (a *assembly) resume(ctx context.Context) error { return a.machine.Resume(ctx) }

// openTAP opens the TAP device of the given name in the caller's network namespace,
// see the kernel's Documentation/networking/tuntap.rst.
func openTAP(name string) (*os.File, error) {
	if _, err := net.InterfaceByName(name); err != nil { // TUNSETIFF would make one
		return nil, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the machine's network device does not exist", Err: err}
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		_ = unix.Close(fd) // the first error is the one that counts
		return nil, err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("attach to %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// removeSocket removes the control socket in a machine's directory. Twice is allowed.
func removeSocket(dir string) error {
	err := os.Remove(filepath.Join(dir, socketName))
	if os.IsNotExist(err) {
		return nil
	}
	return err
}
