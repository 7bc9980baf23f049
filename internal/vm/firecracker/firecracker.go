// Package firecracker runs machines on Firecracker: in its jailer, each as its own
// user, or, for development, as the caller's user.
package firecracker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/vm"
)

const driverName = "firecracker"

// Config configures a Driver. Fields without a default are required.
type Config struct {
	// Program is the file of firecracker, 1.12 or newer; its name must contain
	// "firecracker", or the jailer refuses it.
	Program string
	// Jailer is the file of the jailer of the same version; without it only
	// machines with the UID zero can be started.
	Jailer string
	Log    *slog.Logger
}

// Driver starts machines. It is a vm.Driver.
type Driver struct {
	program, jailer string
	limits          bool // the host's cgroups can limit jails
	version         Version
	can             capabilities
	runner          rollback.Runner // runs the steps of Start and Restore
}

var _ interface {
	vm.Driver
	vm.Overhead
} = (*Driver)(nil)

// ownMemoryMiB is more than Firecracker itself takes: its own bound is 5 MiB besides
// what emulates devices, see its SPECIFICATION.md.
const ownMemoryMiB = 16

// OverheadMiB implements vm.Overhead.
func (d *Driver) OverheadMiB() int { return ownMemoryMiB }

// New returns a driver, after asking Firecracker for its version. It removes the
// cgroups that killed agents left. FailedPrecondition if Firecracker does not run or
// is too old.
func New(ctx context.Context, cfg Config) (*Driver, error) {
	program, err := filepath.Abs(cfg.Program)
	if err != nil {
		return nil, err
	}
	version, err := ProgramVersion(ctx, program)
	if err != nil {
		return nil, err
	}
	if version.Compare(minVersion) < 0 {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "Firecracker %s is too old: configure %s or newer", version, minVersion)
	}
	d := &Driver{program: program, jailer: cfg.Jailer,
		limits: launch.CgroupsLimit(), version: version, can: version.capabilities()}
	if cfg.Jailer != "" && !d.limits {
		cfg.Log.LogAttrs(ctx, slog.LevelWarn, "no cgroup2 hierarchy with memory, pids and cpu controllers; machines run without limits")
	}
	if d.limits {
		if err := launch.SweepCgroups(); err != nil {
			cfg.Log.LogAttrs(ctx, slog.LevelWarn, "cannot remove cgroups of ended machines", slog.Any("err", err))
		}
	}
	return d, nil
}

// Name is "firecracker".
func (d *Driver) Name() string { return driverName }

// Platform implements vm.Driver. Guests see the processor.
func (d *Driver) Platform() wrenn.Platform {
	return wrenn.Platform{Driver: driverName, Version: d.version.String(), Processor: vm.HostProcessor()}
}

// Version returns Firecracker's version.
func (d *Driver) Version() Version { return d.version }

// bootArgs go before the caller's, which override them. The machine has no PCI bus.
// It ends by a reset of the keyboard controller, the only way that Firecracker
// notices. kvm-clock is right again after a restore.
var bootArgs = []string{"console=ttyS0", "quiet", "panic=-1", "reboot=k", "pci=off", "clocksource=kvm-clock",
	"i8042.noaux", "i8042.nomux", "i8042.dumbkbd"}

// Start implements vm.Driver.
func (d *Driver) Start(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
	m, err := d.plan(spec, true)
	if err != nil {
		return nil, err
	}
	m.kernel = spec.Kernel.Digest
	files := []file{{name: nameKernel, path: spec.Kernel.Image, readOnly: true}}
	if spec.Kernel.Initrd != "" {
		files = append(files, file{name: nameInitrd, path: spec.Kernel.Initrd, readOnly: true})
	}
	steps := m.prepare(spec, files)
	for _, c := range configuration(spec) {
		steps = append(steps, rollback.Step{Name: c.step, Do: func(ctx context.Context) error { return m.api.put(ctx, c.path, c.body) }})
	}
	return d.run(ctx, m, append(steps, rollback.Step{Name: "start", Do: m.api.start}))
}

// Restore implements vm.Driver.
func (d *Driver) Restore(ctx context.Context, spec vm.Spec, snapshot string) (vm.Machine, error) {
	m, err := d.restore(ctx, spec, snapshot, d.can.clockRealtime)
	if d.can.clockRealtime && clockMissing(err) {
		return d.restore(ctx, spec, snapshot, false) // the guest's agent gets the time anyway
	}
	return m, err
}

// clockMissing reports whether Firecracker refused a state because it lacks the time
// at which it was taken. KVM tells Firecracker the time only where the host's clock
// was its processors' time-stamp counter (KVM_CLOCK_REALTIME in the kernel's
// Documentation/virt/kvm/api.rst). A VMM that refused a snapshot cannot load another,
// so the caller needs a new one.
func clockMissing(err error) bool {
	fault, ok := errors.AsType[*Fault](err)
	return ok && strings.Contains(fault.Message, "clock_realtime requested")
}

func (d *Driver) restore(ctx context.Context, spec vm.Spec, snapshot string, clock bool) (vm.Machine, error) {
	m, err := d.plan(spec, false)
	if err != nil {
		return nil, err
	}
	if snapshot, err = filepath.Abs(snapshot); err != nil { // the machine's Ref contains it
		return nil, err
	}
	made, err := d.checkSnapshot(m.shape, spec.Kernel.Digest, snapshot)
	if err != nil {
		return nil, err
	}
	m.kernel = made.Kernel
	if d.can.diffs {
		m.tracks = snapshot
	}
	steps := m.prepare(spec, []file{
		{name: nameState, path: filepath.Join(snapshot, stateFile), readOnly: true},
		{name: nameMemory, path: filepath.Join(snapshot, memoryFile), readOnly: true},
	})
	load := loadCall(capabilities{clockRealtime: clock, diffs: d.can.diffs}, made.Machine.TAP, spec.Net.TAP)
	return d.run(ctx, m, append(steps,
		rollback.Step{Name: "load", Do: func(ctx context.Context) error { return m.api.load(ctx, load) }},
		rollback.Step{Name: "rates", Do: func(ctx context.Context) error { return m.setRates(ctx, spec.Disks, made.Machine.Limited) }},
		rollback.Step{Name: "lineage", Do: func(context.Context) error { m.memory.begin(m.tracks); return nil }}))
}

// loadCall returns the call that loads a snapshot of a machine whose TAP was was, and
// is now, with all that the VMM is capable of.
func loadCall(can capabilities, was, now string) snapshotLoad {
	load := snapshotLoad{
		State: nameState, Memory: memoryBackend{"File", nameMemory}, Resume: true,
		ClockRealtime: can.clockRealtime, TrackDirty: can.diffs,
	}
	if now != was {
		load.Networks = []networkOverride{{nic, now}}
	}
	return load
}

// plan checks a spec and returns its machine, of which nothing exists yet.
func (d *Driver) plan(spec vm.Spec, boots bool) (*machine, error) {
	if err := spec.Check(boots); err != nil {
		return nil, err
	}
	if spec.UID != 0 && d.jailer == "" {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "machines that run as other users need Firecracker's jailer: configure its path")
	}
	if err := vm.CheckEmpty(spec.Dir); err != nil {
		return nil, err
	}
	var err error
	if spec.Dir, err = filepath.Abs(spec.Dir); err != nil {
		return nil, err
	}
	shape, err := shapeOf(spec)
	if err != nil {
		return nil, err
	}
	return d.newMachine(spec.ID, shape, d.newJail(spec)), nil
}

// run makes m by the steps. The Undo of the first, m.Stop, removes what any of them
// leaves.
func (d *Driver) run(ctx context.Context, m *machine, steps []rollback.Step) (vm.Machine, error) {
	for i, step := range steps {
		steps[i].Do = func(ctx context.Context) error {
			if err := step.Do(ctx); err != nil {
				return m.explain(ctx, err) // before Stop, after which it would look killed
			}
			return nil
		}
	}
	if err := d.runner.Run(ctx, steps...); err != nil {
		return nil, fmt.Errorf("machine %s: %w", m.id, err)
	}
	return m, nil
}

// prepare returns the steps after which the machine has a VMM that listens, in a jail
// with the files and the spec's disks.
func (m *machine) prepare(spec vm.Spec, files []file) []rollback.Step {
	for i, disk := range spec.Disks {
		files = append(files, file{name: diskName(i), path: disk.Path, readOnly: disk.ReadOnly})
	}
	return []rollback.Step{
		{Name: "directory", Undo: m.Stop, Do: func(context.Context) error { return os.MkdirAll(m.jail.root, 0o700) }},
		{Name: "files", Do: func(context.Context) error { return m.jail.populate(files) }},
		{Name: "launch", Do: func(context.Context) (err error) {
			m.process, err = m.driver.launch(m.jail, spec, files)
			return err
		}},
		{Name: "connect", Do: m.awaitAPI},
	}
}

type configCall struct {
	step, path string
	body       any
}

// configuration returns the calls that configure a new VMM before its start.
func configuration(spec vm.Spec) []configCall {
	boot := bootSource{Kernel: nameKernel, Args: strings.Join(slices.Concat(bootArgs, spec.Kernel.Args), " ")}
	if spec.Kernel.Initrd != "" {
		boot.Initrd = nameInitrd
	}
	calls := []configCall{
		{"machine", "/machine-config", machineConfig{VCPUs: spec.VCPUs, MemoryMiB: spec.MemoryMiB}},
		{"boot source", "/boot-source", boot},
	}
	for i, disk := range spec.Disks {
		name := diskName(i) // no root device: Firecracker would add its own root=
		calls = append(calls, configCall{"disks", "/drives/" + name, drive{ID: name, Path: name, ReadOnly: disk.ReadOnly, Rate: limiter(disk.Rate)}})
	}
	if spec.Net.TAP != "" {
		calls = append(calls, configCall{"network", "/network-interfaces/" + nic, networkInterface{ID: nic, TAP: spec.Net.TAP, MAC: spec.Net.MAC}})
	}
	return append(calls, configCall{"entropy", "/entropy", struct{}{}})
}

// limiter returns what bounds a disk of a new machine; nil for no bound.
func limiter(rate vm.DiskRate) *rateLimiter {
	if rate == (vm.DiskRate{}) {
		return nil
	}
	r := &rateLimiter{}
	if rate.BytesPerSecond > 0 {
		r.Bytes = eachSecond(rate.BytesPerSecond)
	}
	if rate.OperationsPerSecond > 0 {
		r.Operations = eachSecond(rate.OperationsPerSecond)
	}
	return r
}

// eachSecond returns a bucket that is full again after a second.
func eachSecond(n int64) *tokenBucket { return &tokenBucket{Size: n, RefillMs: 1000} }

// setRates bounds the disks of a restored machine, whose state has the bounds of the
// snapshot's. Where neither has any it does nothing.
func (m *machine) setRates(ctx context.Context, disks []vm.Disk, before bool) error {
	if !before && !m.shape.Limited {
		return nil
	}
	for i, disk := range disks {
		rate := &rateLimiter{Bytes: eachSecond(disk.Rate.BytesPerSecond), Operations: eachSecond(disk.Rate.OperationsPerSecond)}
		if err := m.api.updateDrive(ctx, driveUpdate{ID: diskName(i), Rate: rate}); err != nil {
			return err
		}
	}
	return nil
}

// nic is the id of the only network interface.
const nic = "eth0"

// The API's socket exists before Firecracker listens, and appears late in a jail: it
// is tried until a deadline. A start takes 0.1 s under emulation.
const (
	connectLimit = 30 * time.Second
	connectPause = 2 * time.Millisecond
)

// awaitAPI returns when the API listens, or with an error as soon as the VMM dies.
func (m *machine) awaitAPI(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, connectLimit, errors.New("firecracker's API did not listen in time"))
	defer cancel()
	for {
		conn, err := m.jail.dial(ctx)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-m.process.Done():
			return err // explained by the caller
		case <-ctx.Done():
			return fmt.Errorf("connect to firecracker (%w): %w", context.Cause(ctx), err)
		case <-time.After(connectPause):
		}
	}
}

// Adopt implements vm.Driver.
func (d *Driver) Adopt(ctx context.Context, ref vm.Ref) (vm.Machine, error) {
	m, err := d.recall(ref)
	if err != nil {
		return nil, err
	}
	m.process, err = launch.Adopt(launch.Identity{PID: ref.PID, StartTime: ref.StartTime, BootID: ref.BootID})
	if errors.Is(err, os.ErrProcessDone) {
		return nil, &wrenn.Error{Code: wrenn.NotFound, Message: "the machine has ended", Err: errors.Join(err, m.jail.clear(ctx))}
	}
	if err != nil {
		return nil, err
	}
	if !m.jail.wasSnapshotted() {
		m.memory.begin(m.tracks)
	}
	return m, nil
}
