// Package host assembles what a host agent works with on this machine: the
// state directory and its lock, the store, the guest image, the driver that
// works here, network slots, and the sandbox manager over all of them.
package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"wrenn.dev"
	"wrenn.dev/internal/filelock"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/host/template"
	"wrenn.dev/internal/image"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/volume"
)

// machineUIDs is the first of the user ids that machines run as, one each, on all agents
// of a machine: see network.Config.FirstUser. It lies above what distributions, subuid
// ranges and systemd-nspawn hand out, see https://systemd.io/UIDS-GIDS/.
const machineUIDs = 2_000_000_000

// emulatedPool is how many machines are made ahead under emulation, where a
// restore takes some 200 ms and a machine of the warm pool a fraction of it. With
// hardware support a restore is as fast.
const emulatedPool = 2

const (
	// bootsPerCPU is how many machines may boot at a time for each CPU, with hardware
	// support, and restoresPerBoot how many may be restored for each that may boot.
	bootsPerCPU     = 4
	restoresPerBoot = 2
	// keptSizes is how many sizes besides the default have a snapshot at a time. One
	// takes as much of the disk as a fresh guest has used of its memory.
	keptSizes = 4
)

// Config describes the host. StateDir, RunDir, Out and Log are needed.
type Config struct {
	StateDir string       // images, disks, snapshots and journals, which must survive a reboot
	RunDir   string       // sockets and consoles, which need not; a short path, see vm.Spec.Dir
	Image    image.Config // its StateDir is by default the one above; its Out is Out
	Driver   DriverConfig
	Network  network.Config // its FirstUID and Log are filled in here
	Out      io.Writer      // gets progress and choices, for people
	Log      *slog.Logger
	Trace    func(ctx context.Context, id wrenn.SandboxID, step string, took time.Duration) // see sandbox.Config
	Adopt    bool                                                                           // sandboxes of an earlier agent, instead of removing them
	Limits   sandbox.Limits                                                                 // its OverheadMiB is the driver's
	Pool     *int                                                                           // see sandbox.Config; nil is emulatedPool under emulation, and else none
	Hook     rollback.Hook                                                                  // see sandbox.Config
	Objects  objects.Store                                                                  // see sandbox.Config
	// Registries are those from which images for templates may come.
	Registries template.Registries
	// Allowed are the images of this host from which teams may build; nil is all.
	Allowed template.Images
}

// Host is an assembled host. Close it.
type Host struct {
	Manager   *sandbox.Manager
	Templates *template.Builder
	Volumes   *volume.Store
	Driver    vm.Driver

	cfg   Config
	store *storage.Store
	guest sandbox.Guest
	slots *network.Pool
	undo  rollback.Stack
}

// Open assembles the host. What an earlier agent left behind is adopted or removed.
func Open(ctx context.Context, cfg Config) (*Host, error) {
	if os.Geteuid() != 0 {
		return nil, wrenn.Errorf(wrenn.PermissionDenied, "this needs root, for network namespaces and mounts: run it with sudo")
	}
	h := &Host{cfg: cfg}
	for _, step := range []func(context.Context) error{
		h.lock, h.openStore, h.prepareGuest, h.chooseDriver, h.openSlots, h.openManager, h.openTemplates,
	} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, h.Close(ctx))
		}
	}
	return h, nil
}

// Close releases slots, mounts and the lock, in that order. Sandboxes that still
// run keep what they need, and the next Open adopts them. Twice is allowed.
func (h *Host) Close(ctx context.Context) error { return h.undo.Run(ctx) }

// Store returns the store of disks and snapshots.
func (h *Host) Store() *storage.Store { return h.store }

// Warm prepares the base template for sandboxes of this size, see sandbox.Manager.Warm.
func (h *Host) Warm(ctx context.Context, size wrenn.Size) error {
	began := time.Now()
	if !h.Manager.Warmed(size) {
		h.say("template", "base is booted once, so that sandboxes start from its memory")
	}
	if err := h.Manager.Warm(ctx, size); err != nil {
		return err
	}
	how := fmt.Sprintf("base is ready for sandboxes with %d vCPUs and %d MiB", size.VCPUs, size.MemoryMiB)
	if took := time.Since(began); took > time.Second {
		how += fmt.Sprintf(" (%.1fs)", took.Seconds())
	}
	h.say("template", how)
	return nil
}

// Run runs the manager and watches the disk's free space until ctx ends.
func (h *Host) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return h.Manager.Run(ctx) })
	g.Go(func() error { h.tendStore(ctx); return nil })
	return g.Wait()
}

// tendEvery is how often the store is checked: what guests write between two
// checks must fit into the space that it keeps free.
const tendEvery = 5 * time.Second

// tendStore keeps the store from running full, and logs it once when it cannot.
func (h *Host) tendStore(ctx context.Context) {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for failed := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := h.store.Tend(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failed {
			h.cfg.Log.LogAttrs(ctx, slog.LevelError, "the disk of this host is nearly full: guests will not be able to write", slog.Any("err", err))
		}
		failed = err != nil
	}
}

// lock makes sure that only one agent uses the directories.
func (h *Host) lock(context.Context) error {
	for _, dir := range []string{h.cfg.StateDir, h.cfg.RunDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil { // x: machines run as other users
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	f, err := filelock.Open(filepath.Join(h.cfg.StateDir, "lock"))
	if errors.Is(err, filelock.ErrLocked) {
		return wrenn.Errorf(wrenn.FailedPrecondition, "another host agent uses %s: stop it, or give this one another state directory", h.cfg.StateDir)
	}
	if err != nil {
		return err
	}
	h.undo.Add(func(context.Context) error { return f.Close() })
	return nil
}

func (h *Host) openStore(ctx context.Context) (err error) {
	if h.store, err = storage.Open(ctx, h.cfg.StateDir); err != nil {
		return err
	}
	h.undo.Add(func(context.Context) error {
		if h.Manager != nil && h.Manager.Live() > 0 {
			return nil // their disks are on it; the next Open finds it mounted
		}
		return h.store.Close()
	})
	h.say("disks", h.store.Note)
	if err := h.store.Tend(ctx); err != nil {
		h.say("", "the disk is nearly full: "+err.Error())
	}
	return nil
}

// prepareGuest makes kernel and root file system, unless they exist, and imports
// the root file system into the store, where it can be cloned.
func (h *Host) prepareGuest(ctx context.Context) error {
	h.cfg.Image.StateDir = cmp.Or(h.cfg.Image.StateDir, h.cfg.StateDir)
	h.cfg.Image.Out = h.cfg.Out
	guest, err := image.Prepare(ctx, h.cfg.Image)
	if err != nil {
		return fmt.Errorf("guest image: %w", err)
	}
	rootfs, err := h.store.Import(ctx, guest.RootFS, guest.Digest)
	if err != nil {
		return fmt.Errorf("guest image: %w", err)
	}
	kernel, err := vm.SumFile(guest.Kernel)
	if err != nil {
		return fmt.Errorf("guest kernel: %w", err)
	}
	h.guest = sandbox.Guest{Name: guest.Digest, RootFS: rootfs, Kernel: vm.Kernel{
		Image: guest.Kernel, Initrd: guest.Initrd, Args: guest.Args, Digest: "sha256:" + kernel.SHA256,
	}}
	h.say("guest", guest.Note)
	return nil
}

func (h *Host) openSlots(ctx context.Context) (err error) {
	h.cfg.Network.FirstUID, h.cfg.Network.Log = h.firstUID(), h.cfg.Log
	if h.slots, err = network.Open(ctx, h.cfg.Network); err != nil {
		return err
	}
	h.undo.Add(h.slots.Close)
	return nil
}

// openManager also sweeps: first the sandboxes that have a journal, then the
// slots that no journal names and in which nothing lives.
func (h *Host) openManager(ctx context.Context) (err error) {
	if d, ok := h.Driver.(vm.Overhead); ok {
		h.cfg.Limits.OverheadMiB = d.OverheadMiB()
	}
	if h.Volumes, err = volume.Open(filepath.Join(h.store.Dir, "volumes")); err != nil {
		return err
	}
	h.Manager, err = sandbox.Open(ctx, sandbox.Config{
		StateDir: h.store.Dir, RunDir: h.cfg.RunDir, FirstUID: h.firstUID(),
		Driver: h.Driver, Slots: h.slots, Guest: h.guest, Store: h.store, Volumes: h.Volumes,
		Adopt: h.cfg.Adopt, Limits: h.cfg.Limits, Hook: h.cfg.Hook, Pool: h.pool(),
		Boots: h.bootsAtOnce(), Restores: restoresPerBoot * h.bootsAtOnce(), Sizes: keptSizes,
		Log: h.cfg.Log, Trace: h.cfg.Trace, Objects: h.cfg.Objects,
		FreezeTimeout: h.patience(10 * time.Second), SilentAfter: h.patience(9 * time.Second),
	})
	if err != nil {
		return err
	}
	h.undo.AddFunc(h.Manager.Close)
	// Disks and snapshots are clones. The only image in use is the guest's own, which is imported.
	if err := h.store.Collect(); err != nil {
		h.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "cannot remove unused images", slog.Any("err", err))
	}
	return h.slots.Sweep(ctx)
}

// bootsAtOnce returns how many machines may boot at a time. Under emulation each keeps
// a CPU busy for some ten seconds, with hardware support for less than one.
func (h *Host) bootsAtOnce() int {
	if h.isEmulated() {
		return runtime.GOMAXPROCS(0)
	}
	return bootsPerCPU * runtime.GOMAXPROCS(0)
}

// isEmulated reports whether guests run by software emulation; with KVM, QEMU's driver
// has another name.
func (h *Host) isEmulated() bool { return h.Driver.Name() == QEMU }

// emulationFactor is how many times longer an emulated guest may take to answer. It
// is a choice, not a measurement: a late alarm is better than a false one.
const emulationFactor = 3

// patience returns how long a guest may take for what takes d at most on hardware.
func (h *Host) patience(d time.Duration) time.Duration {
	if h.isEmulated() {
		return emulationFactor * d
	}
	return d
}

// pool returns how many machines are made ahead.
func (h *Host) pool() int {
	switch {
	case h.cfg.Pool != nil:
		return *h.cfg.Pool
	case h.isEmulated():
		return emulatedPool
	default:
		return 0
	}
}

// openTemplates also removes the images that builds of a dead agent left.
func (h *Host) openTemplates(ctx context.Context) (err error) {
	images := h.cfg.Image
	images.Name = "" // of the base guest
	h.Templates, err = template.New(template.Config{
		Manager: h.Manager, Store: h.store, Images: images, Kernel: h.guest.Kernel, Registries: h.cfg.Registries, Allowed: h.cfg.Allowed, Closed: h.cfg.Network.Closed, Log: h.cfg.Log,
	})
	if err != nil {
		return err
	}
	if err := h.Templates.Sweep(ctx); err != nil {
		h.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "cannot remove images of earlier builds", slog.Any("err", err))
	}
	return nil
}

// say prints a line about how the host was set up.
func (h *Host) say(what, how string) { fmt.Fprintf(h.cfg.Out, "%-8s %s\n", what, how) }
