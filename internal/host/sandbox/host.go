package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/cmutex"
	"wrenn.dev/internal/durable"
	"wrenn.dev/internal/host/sandbox/console"
	"wrenn.dev/internal/host/sandbox/instance"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/snapshot"
	"wrenn.dev/internal/snapshot/archive"
	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/volume"
	"wrenn.dev/internal/wake"
)

// Guest is what new sandboxes boot: files that never change.
type Guest struct {
	Name   string // differs when the files do; needed by Warm alone
	RootFS string // a raw ext4 image; each sandbox gets a clone
	Kernel vm.Kernel
}

// Config says where sandboxes live and what they are made of. All fields
// without a default are needed.
type Config struct {
	StateDir string // disks, snapshots and journals
	RunDir   string // sockets and consoles; short, see vm.Spec.Dir
	Driver   vm.Driver
	Slots    *network.Pool
	Guest    Guest
	// FirstUID is the first of the user ids that machines run as, one each; 0
	// runs them as the agent's own user.
	FirstUID uint32
	// Store is what StateDir is on; by default a plain directory.
	Store *storage.Store
	// Volumes are what sandboxes mount; nil when there are none.
	Volumes *volume.Store
	// ReadyTimeout bounds the wait for the guest's agent; default 60 s: under
	// emulation on a busy machine a cold boot was seen to take 10.
	ReadyTimeout time.Duration
	// FreezeTimeout bounds how long a guest may take to stop its processes for a
	// snapshot, and to let them run again, whatever it answers meanwhile; default 10 s.
	// 4 s for each GiB of its memory come on top, for what it has to write.
	FreezeTimeout time.Duration
	// SilentAfter is how long a guest's agent may send nothing, while it is probed,
	// until it counts as unresponsive; default 9 s. A third of it is what one answer
	// may take.
	SilentAfter time.Duration
	Log         *slog.Logger
	// Trace, if set, gets the duration of each step of a sandbox.
	Trace func(ctx context.Context, id wrenn.SandboxID, step string, took time.Duration)
	// Adopt takes over the sandboxes of an earlier agent; otherwise Open
	// destroys them.
	Adopt bool
	// Limits bound what Create, Restore and Ensure make; zero is unlimited.
	Limits Limits
	// Pool is how many machines Run makes ahead of demand from the snapshot of
	// each size that Warm was called for. Ensure claims them. 0 is none.
	Pool int
	// Boots and Restores are how many machines may boot, and be restored, at a time;
	// the others wait. 0 is unlimited. With more than the CPUs can finish, all would
	// exceed ReadyTimeout.
	Boots, Restores int
	// Sizes is how many snapshots are kept of sizes that are asked for often, besides
	// those of Warm; 0 is none.
	Sizes int
	// MetricsEvery is the time between two samples of a sandbox; default wrenn.MetricsEvery.
	MetricsEvery time.Duration
	// CPUTime returns the CPU time that a machine's process has used; default usage.CPUTime.
	CPUTime func(pid int) (time.Duration, error)
	// Objects is where paused sandboxes are stored, for other hosts; nil has them on this
	// host alone.
	Objects objects.Store
	// Hook, if set, is called at each point where an agent that dies must leave a
	// state that the next one can work with.
	Hook rollback.Hook
}

// host is what the sandboxes of a manager have in common.
type host struct {
	cfg       Config
	instances instance.Host
	snapshots *snapshot.Store
	consoles  console.Store
	reserve   *durable.Reserve // for journal entries by which space is freed
	registry  registry
	news      news
	pool      warmPool
	garbage   garbage
	uploads   uploads
	rounds    *rounds
	archive   *archive.Archive
	fetching  cmutex.Mutex // one Fetch at a time
	measuring cmutex.Mutex // one MeasureCheckpoints at a time
	templates templateFetches
	boots     turns
	restores  turns
	sizes     sizes

	versions atomic.Uint64
	wake     wake.Chan // Run has something to do
	watchers sync.WaitGroup
}

// open opens what is in the state directory.
func (h *host) open(cfg Config) (err error) {
	h.cfg = cfg
	for _, dir := range []string{h.sandboxesDir(), h.machinesDir()} {
		if err := os.MkdirAll(dir, 0o711); err != nil { // x: machines run as other users
			return fmt.Errorf("state directory: %w", err)
		}
	}
	h.wake = wake.New()
	h.consoles = console.Store{Dir: filepath.Join(cfg.StateDir, "consoles")}
	h.reserve = durable.NewReserve(filepath.Join(cfg.StateDir, "reserve"))
	h.instances = instance.Host{
		Driver: cfg.Driver, Slots: cfg.Slots, Dir: h.machinesDir(), FirstUID: cfg.FirstUID, ReadyTimeout: cfg.ReadyTimeout,
		FreezeTimeout: cfg.FreezeTimeout, DiskRate: cfg.Limits.DiskRate, Log: cfg.Log,
		Volumes: cfg.Volumes,
	}
	h.registry = registry{limits: cfg.Limits, store: cfg.Store, sandboxes: map[wrenn.SandboxID]*Sandbox{}}
	h.pool = newWarmPool(h)
	h.garbage = garbage{host: h}
	h.boots.places, h.restores.places = cfg.Boots, cfg.Restores
	h.sizes = newSizes(cfg.Sizes)
	if h.rounds, err = openRounds(cfg.StateDir); err != nil {
		return err
	}
	h.snapshots, err = snapshot.Open(filepath.Join(cfg.StateDir, "snapshots"), h.reserve, cfg.Log)
	h.uploads = newUploads()
	h.archive = &archive.Archive{Objects: cfg.Objects, Snapshots: h.snapshots}
	return err
}

func (h *host) sandboxesDir() string { return filepath.Join(h.cfg.StateDir, "sandboxes") }
func (h *host) machinesDir() string  { return filepath.Join(h.cfg.RunDir, "vm") }

func (h *host) newVersion() uint64 { return h.versions.Add(1) }

// notify has Run and the warm pool look for what there is to do.
func (h *host) notify() {
	h.pool.wake.Notify()
	h.wake.Notify()
}

// logError logs a failure that the caller cannot return.
func (h *host) logError(ctx context.Context, level slog.Level, message string, err error, attrs ...slog.Attr) {
	//nolint:sloglint // every caller's message is a constant
	h.cfg.Log.LogAttrs(ctx, level, message, append(attrs, slog.Any("err", err))...)
}

// News returns a channel that is woken when a sandbox has ended, was paused or
// resumed, stopped answering or answers again, without a call that asked for it.
// What the sandboxes are then is in Inventory. Call stop once.
func (h *host) News() (woken wake.Chan, stop func()) { return h.news.subscribe() }

// Get returns the sandbox with that id, in any status. NotFound when there is none.
func (h *host) Get(id wrenn.SandboxID) (*Sandbox, error) { return h.registry.get(id) }

// Console returns the end of what the kernel, the init and the agent of a
// sandbox printed, bounded; the guest chose what is in it. The console of a
// sandbox that failed or stopped without a Destroy, or whose launch failed, is
// kept for a while. Only what was printed after since counts, to about a second; of a console that is
// kept this is all or nothing. More reports whether more may come. NotFound when none is known.
func (h *host) Console(id wrenn.SandboxID, since time.Time) (text string, more bool, err error) {
	s, err := h.registry.get(id)
	if err == nil {
		more = !s.Info().Status.ended()
		if text, ok := s.console.Since(since); ok {
			return text, more, nil
		}
	}
	kept, when, readErr := h.consoles.Read(id)
	switch {
	case readErr == nil && since.After(when):
		return "", more, nil
	case readErr == nil:
		return kept, more, nil
	case !errors.Is(readErr, fs.ErrNotExist):
		return "", false, readErr
	case err != nil:
		return "", false, wrenn.Errorf(wrenn.NotFound, "no console of sandbox %s is kept: the sandbox was destroyed, or ended long ago", id)
	}
	return "", more, nil
}
