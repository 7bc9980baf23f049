package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"wrenn.dev"

	"golang.org/x/sync/errgroup"

	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/image"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/qemu"
)

const (
	memoryMiB = 256
	forks     = 10
)

// lab has everything that machines need: a driver, slots, a store and a guest to boot.
type lab struct {
	driver vm.Driver
	slots  *network.Pool
	store  *storage.Store
	guest  image.Guest
	bare   image.Guest // the same kernel, with bareagent as init

	mu   sync.Mutex // guards next
	next int
	undo rollback.Stack
}

// newLab prepares a lab; the caller closes it.
func newLab(ctx context.Context, b *bench) (*lab, error) {
	l := &lab{}
	if err := l.open(ctx, b); err != nil {
		return nil, errors.Join(err, l.close(ctx))
	}
	return l, nil
}

func (l *lab) close(ctx context.Context) error { return l.undo.Run(ctx) }

func (l *lab) open(ctx context.Context, b *bench) (err error) {
	if l.guest, err = image.Prepare(ctx, image.Config{StateDir: "/var/lib/wrenn", Out: os.Stderr, Envd: "bin/envd", Stage0: "bin/stage0"}); err != nil {
		return err
	}
	if l.bare, err = bareGuest(ctx, b.dir, l.guest); err != nil {
		return err
	}
	if l.store, err = storage.Open(ctx, filepath.Join(b.dir, "s")); err != nil {
		return err
	}
	l.undo.Add(func(context.Context) error { return l.store.Close() })
	return l.openDriver(ctx, b, forks)
}

// openDriver opens the driver and a pool with some slots.
func (l *lab) openDriver(ctx context.Context, b *bench, ready int) error {
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return err
	}
	if l.driver, err = qemu.New(ctx, qemu.Config{Path: path}); err != nil {
		return err
	}
	if l.slots, err = openSlots(ctx, b, ready); err != nil {
		return err
	}
	l.undo.Add(l.slots.Close)
	return nil
}

// bareGuest makes a root file system with only bareagent.
func bareGuest(ctx context.Context, dir string, guest image.Guest) (image.Guest, error) {
	root := filepath.Join(dir, "bareroot")
	for _, sub := range []string{"proc", "sys", "dev", "run", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, sub), 0o755); err != nil {
			return guest, err
		}
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(root, "bareagent"), "./bench/bareagent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return guest, fmt.Errorf("build bareagent: %w: %s", err, out)
	}
	bare := guest
	bare.RootFS = filepath.Join(dir, "bare.ext4")
	if out, err := exec.CommandContext(ctx, "mke2fs", "-q", "-t", "ext4", "-d", root, bare.RootFS, "64M").CombinedOutput(); err != nil {
		return guest, fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	bare.Args = nil
	for _, arg := range guest.Args {
		if !strings.HasPrefix(arg, "init=") {
			bare.Args = append(bare.Args, arg)
		}
	}
	bare.Args = append(bare.Args, "init=/bareagent")
	return bare, nil
}

// box is a machine that answered.
type box struct {
	machine vm.Machine
	client  *envdclient.Client
	disk    string
	took    sample // until it answered; see untilReady
	undo    rollback.Stack
}

func (x *box) close(ctx context.Context) error { return x.undo.Run(ctx) }

// launch starts a machine on a clone of disk; start is the driver's Start or Restore.
func (l *lab) launch(ctx context.Context, disk string, memory int, start func(vm.Spec) (vm.Machine, error)) (_ *box, err error) {
	x := &box{}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.close(ctx))
		}
	}()
	id := l.nextID()
	dir := filepath.Join(l.store.Dir, id)
	run := filepath.Join(dir, "run")
	if err := os.MkdirAll(run, 0o711); err != nil {
		return nil, err
	}
	x.undo.Add(func(context.Context) error { return os.RemoveAll(dir) })
	x.disk = filepath.Join(dir, "disk")
	if _, err := storage.Clone(ctx, x.disk, disk, 0o600); err != nil {
		return nil, err
	}
	slot, err := l.slots.Acquire(ctx, id)
	if err != nil {
		return nil, err
	}
	x.undo.Add(slot.Release)
	x.client = envdclient.New(envdclient.Config{Dial: slot.DialContext, Address: network.EnvdAddress})
	x.undo.AddFunc(x.client.Close)
	spec := vm.Spec{
		ID: id, Dir: run, VCPUs: 1, MemoryMiB: memory,
		Disks: []vm.Disk{{Path: x.disk}},
		Net:   vm.NIC{Namespace: slot.Namespace(), TAP: slot.TAP(), MAC: slot.MAC()},
	}
	wall, err := timed(func() (err error) {
		if x.machine, err = start(spec); err != nil {
			return err
		}
		x.undo.Add(x.machine.Stop)
		return x.client.WaitReady(ctx, x.machine.Wait)
	})
	if err != nil {
		return nil, err
	}
	cpu, err := cpuSeconds(x.machine.Ref().PID)
	x.took = sample{wall, cpu}
	return x, err
}

func (l *lab) nextID() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	return fmt.Sprintf("b%d", l.next)
}

func (l *lab) boot(ctx context.Context, guest image.Guest, memory int) (*box, error) {
	return l.launch(ctx, guest.RootFS, memory, func(spec vm.Spec) (vm.Machine, error) {
		spec.Kernel = vm.Kernel{Image: guest.Kernel, Initrd: guest.Initrd, Args: guest.Args}
		return l.driver.Start(ctx, spec)
	})
}

// snapshot is the snapshot of a machine that answered.
type snapshot struct {
	dir    string
	memory int
}

// freeze boots a guest, calls warm to warm it up, and takes a snapshot.
func (l *lab) freeze(ctx context.Context, guest image.Guest, memory int, warm func(context.Context, *box) error) (_ snapshot, err error) {
	s := snapshot{dir: filepath.Join(l.store.Dir, "snap-"+l.nextID()), memory: memory}
	x, err := l.boot(ctx, guest, memory)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, x.close(ctx)) }()
	if err := warm(ctx, x); err != nil {
		return s, err
	}
	if err := x.machine.Pause(ctx); err != nil {
		return s, err
	}
	if err := os.MkdirAll(s.machine(), 0o711); err != nil {
		return s, err
	}
	l.undo.Add(func(context.Context) error { return os.RemoveAll(s.dir) })
	if _, err := storage.Clone(ctx, s.disk(), x.disk, 0o600); err != nil {
		return s, err
	}
	return s, x.machine.Snapshot(ctx, s.machine())
}

// The names are those of the host agent's snapshots.
func (s snapshot) disk() string    { return filepath.Join(s.dir, "root.ext4") }
func (s snapshot) machine() string { return filepath.Join(s.dir, "machine") }

func (l *lab) thaw(ctx context.Context, s snapshot) (*box, error) {
	return l.launch(ctx, s.disk(), s.memory, func(spec vm.Spec) (vm.Machine, error) {
		return l.driver.Restore(ctx, spec, s.machine())
	})
}

// once starts a machine, destroys it, and returns how long it took to answer.
func once(make func(context.Context) (*box, error)) func(context.Context) (sample, error) {
	return func(ctx context.Context) (sample, error) {
		x, err := make(ctx)
		if err != nil {
			return nil, err
		}
		return x.took, x.close(ctx)
	}
}

// untilReady formats what launch measured from the driver's start to the agent's
// first answer: the time that passed and the VMM's CPU time, which is the same on a
// busy machine as on an idle one.
func untilReady(what string, figures []comparison, limit string) []row {
	if len(figures) != 2 {
		return nil // the measurement failed
	}
	wall, cpu := figures[0], figures[1]
	return []row{
		{what, ms(wall.ours), ms(wall.bare), wall.ratio, limit},
		{"  the VMM's CPU time of it", ms(cpu.ours), ms(cpu.bare), cpu.ratio, ""},
	}
}

// cpuSeconds adds up the CPU time of the threads of a process, from
// /proc/PID/task/TID/schedstat (Documentation/scheduler/sched-stats.rst).
func cpuSeconds(pid int) (float64, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for _, thread := range threads {
		data, err := os.ReadFile(thread)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // the thread has ended
		}
		if err != nil {
			return 0, err
		}
		var ns float64
		if _, err := fmt.Sscan(string(data), &ns); err != nil {
			return 0, err
		}
		sum += ns / 1e9
	}
	return sum, nil
}

// warmAgain repeats the request that a restored guest gets first.
func warmAgain(ctx context.Context, x *box) error { return x.client.WaitReady(ctx, x.machine.Wait) }

// warmExec runs a command, as a template's build does.
func warmExec(ctx context.Context, x *box) error {
	if _, err := x.client.Exec(ctx, wrenn.ExecCommand{Cmd: "true"}); err != nil {
		return err
	}
	return warmAgain(ctx, x)
}

func coldBoot(ctx context.Context, b *bench) (_ []row, err error) {
	l, err := newLab(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close(ctx)) }()
	figures, err := pairs(ctx, b.rounds,
		once(func(ctx context.Context) (*box, error) { return l.boot(ctx, l.guest, memoryMiB) }),
		once(func(ctx context.Context) (*box, error) { return l.boot(ctx, l.bare, memoryMiB) }))
	return untilReady("cold boot; bare: a 20-line agent as init", figures, "<= 1.15"), err
}

func restore(ctx context.Context, b *bench) (_ []row, err error) {
	l, err := newLab(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close(ctx)) }()
	full, err := l.freeze(ctx, l.guest, memoryMiB, warmExec)
	if err != nil {
		return nil, err
	}
	small, err := l.freeze(ctx, l.bare, memoryMiB, warmAgain)
	if err != nil {
		return nil, err
	}
	figures, err := pairs(ctx, 3*b.rounds,
		once(func(ctx context.Context) (*box, error) { return l.thaw(ctx, full) }),
		once(func(ctx context.Context) (*box, error) { return l.thaw(ctx, small) }))
	return untilReady("restore; bare: a 20-line agent", figures, "<= 1.15"), err
}

func restoreByMemory(ctx context.Context, b *bench) (_ []row, err error) {
	l, err := newLab(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close(ctx)) }()
	const large = 2048
	big, err := l.freeze(ctx, l.guest, large, warmExec)
	if err != nil {
		return nil, err
	}
	small, err := l.freeze(ctx, l.guest, memoryMiB, warmExec)
	if err != nil {
		return nil, err
	}
	figures, err := pairs(ctx, 3*b.rounds,
		once(func(ctx context.Context) (*box, error) { return l.thaw(ctx, big) }),
		once(func(ctx context.Context) (*box, error) { return l.thaw(ctx, small) }))
	return untilReady(fmt.Sprintf("restore with %d MiB; bare: with %d MiB", large, memoryMiB), figures, "0.85 to 1.15"), err
}

// thawAll restores machines concurrently and runs a command in each. When it fails,
// into has the machines that were restored, and nil for the others.
func (l *lab) thawAll(ctx context.Context, s snapshot, into []*box) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range into {
		g.Go(func() (err error) {
			if into[i], err = l.thaw(ctx, s); err != nil {
				return err
			}
			_, err = into[i].client.Exec(ctx, wrenn.ExecCommand{Cmd: "true"})
			return err
		})
	}
	return g.Wait()
}

// tenAtOnce restores ten machines from one snapshot and runs a command in each.
func tenAtOnce(ctx context.Context, b *bench) (_ []row, err error) {
	l, err := newLab(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close(ctx)) }()
	s, err := l.freeze(ctx, l.guest, memoryMiB, warmExec)
	if err != nil {
		return nil, err
	}
	boxes := make([]*box, forks)
	took, err := timed(func() error { return l.thawAll(ctx, s, boxes) })
	defer func() {
		for _, x := range boxes {
			if x != nil {
				err = errors.Join(err, x.close(ctx))
			}
		}
	}()
	if err != nil {
		return nil, err
	}
	var private []float64
	for _, x := range boxes {
		mib, err := privateMiB(x.machine.Ref().PID)
		if err != nil {
			return nil, err
		}
		private = append(private, mib)
	}
	return []row{
		{what: fmt.Sprintf("%d restores at once, a command done in each", forks), ours: ms(took)},
		{what: "private memory of each of them, median", ours: fmt.Sprintf("%.0f MiB", median(private))},
	}, nil
}
