// Package qemu has two drivers of machines: QEMU with KVM, and QEMU's software
// emulation (TCG), for hosts without a usable KVM. Its machines are microvm boards
// with the same disks, network and guest as Firecracker's.
//
// A VMM gets everything as open file descriptors: memory, disks, the TAP, the control
// socket. So it runs as a user that may open nothing by name, in a root file system
// with QEMU's own files alone, and no other user gets access to what it needs. What a
// VMM has in its hands is checked each time: a guest may have taken it over.
package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"

	"wrenn.dev"
	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/vm"
)

// The names of the drivers. Neither restores the snapshots of the other, nor adopts
// its machines.
const (
	Name    = "qemu"     // software emulation
	NameKVM = "qemu-kvm" // with KVM
)

// Config says which QEMU to use.
type Config struct {
	// Path is qemu-system-x86_64.
	Path string
	// KVM makes it the driver NameKVM: guests run on the host's processor.
	KVM bool
	// CodeMiB is how much translated code an emulated machine keeps, MinCodeMiB to MaxCodeMiB;
	// 0 is DefaultCodeMiB. When it is full QEMU discards all of it and starts again.
	// It may differ between a machine and those restored from it.
	CodeMiB int
}

// The limits of Config.CodeMiB; docs/decisions/machines.md has what they cost and save.
const (
	// MinCodeMiB is just enough for what a restored machine runs until it answers.
	// With half of it a restore takes three times as long.
	MinCodeMiB = 16
	// DefaultCodeMiB is more than the 72 MiB that a boot translates.
	DefaultCodeMiB = 96
	MaxCodeMiB     = 1024 // half of what QEMU accepts, and more than a compiler fills
)

// Driver makes machines. It is safe for concurrent use.
type Driver struct {
	path    string
	kvm     bool
	codeMiB int // 0 with KVM, which translates no code
	version version
	// processor is the host's, if guests see it: with KVM.
	processor string
	features  []string // see hostFeatures
	tscKHz    int
	images    *images
	root      *launch.Root    // what VMMs see of the host's files
	cgroups   bool            // the host has cgroups that limit
	runner    rollback.Runner // runs the steps of Start and Restore
}

var _ interface {
	vm.Driver
	vm.Overhead
} = (*Driver)(nil)

// New returns a driver, after asking QEMU for its version. FailedPrecondition if QEMU
// does not run or is too old; Invalid if cfg is wrong.
func New(ctx context.Context, cfg Config) (*Driver, error) {
	code := cmp.Or(cfg.CodeMiB, DefaultCodeMiB)
	if code < MinCodeMiB || code > MaxCodeMiB {
		return nil, wrenn.Errorf(wrenn.Invalid, "a machine cannot keep %d MiB of translated code: use %d to %d", code, MinCodeMiB, MaxCodeMiB)
	}
	path, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return nil, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "QEMU does not run", Err: fmt.Errorf("%s --version: %w", path, err)}
	}
	v, err := parseVersion(string(out))
	if err != nil {
		return nil, err
	}
	if v.before(oldest) {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "QEMU %s is too old: %s or newer is needed", v, oldest)
	}
	khz, err := hostTSC()
	if err != nil {
		return nil, err
	}
	root, err := rootOf(ctx, path)
	if err != nil {
		return nil, err
	}
	d := &Driver{path: root.ReadOnly[0], codeMiB: code, version: v, tscKHz: khz, images: newImages(), root: root, cgroups: launch.CgroupsLimit()}
	if cfg.KVM {
		if err := d.useKVM(ctx); err != nil {
			return nil, err
		}
	}
	if d.cgroups {
		if err := launch.SweepCgroups(); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// useKVM makes it the driver with KVM.
func (d *Driver) useKVM(ctx context.Context) (err error) {
	d.kvm, d.codeMiB, d.processor = true, 0, vm.HostProcessor()
	d.root.Nodes = append(d.root.Nodes, kvmDevice)
	d.features, err = hostFeatures(ctx, d.path)
	return err
}

// Name is "qemu" or "qemu-kvm".
func (d *Driver) Name() string {
	if d.kvm {
		return NameKVM
	}
	return Name
}

// Platform implements vm.Driver. Under emulation the processor is QEMU's.
func (d *Driver) Platform() wrenn.Platform {
	return wrenn.Platform{Driver: d.Name(), Version: d.version.String(), Processor: d.processor}
}

// Start boots a new machine; see vm.Driver.
func (d *Driver) Start(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
	if err := spec.Check(true); err != nil {
		return nil, err
	}
	return d.assemble(ctx, spec, nil)
}

// Restore makes a machine from a snapshot; see vm.Driver.
func (d *Driver) Restore(ctx context.Context, spec vm.Spec, dir string) (vm.Machine, error) {
	if err := spec.Check(false); err != nil {
		return nil, err
	}
	snap, err := d.openSnapshot(dir, spec)
	if err != nil {
		return nil, err
	}
	defer snap.close()
	return d.assemble(ctx, spec, snap)
}

// Adopt takes over a machine of another process; see vm.Driver.
func (d *Driver) Adopt(ctx context.Context, ref vm.Ref) (vm.Machine, error) {
	if ref.Driver != d.Name() {
		return nil, wrenn.Errorf(wrenn.Invalid, "a machine of driver %q, not of %s", ref.Driver, d.Name())
	}
	proc, err := launch.Adopt(launch.Identity{PID: ref.PID, StartTime: ref.StartTime, BootID: ref.BootID})
	if errors.Is(err, os.ErrProcessDone) {
		return nil, dead(ctx, ref, err)
	}
	if err != nil {
		return nil, err
	}
	m := newMachine(ref, proc, nil)
	err = m.connect(ctx)
	if exit, ok := errors.AsType[*vm.ExitError](err); ok { // it has just ended
		return nil, dead(ctx, ref, exit)
	}
	if err != nil {
		return nil, fmt.Errorf("adopt machine %s: %w", ref.ID, err)
	}
	return m, nil
}

// dead removes what a machine that has ended left, and returns NotFound. What cannot be
// removed is no reason to keep the sandbox: a cgroup that is left is removed when a
// driver starts.
func dead(ctx context.Context, ref vm.Ref, why error) error {
	left := errors.Join(removeSocket(ref.Dir), launch.RemoveCgroup(ctx, ref.Private[refCgroup]))
	return &wrenn.Error{Code: wrenn.NotFound, Message: "the machine has ended", Err: errors.Join(why, left)}
}

// version is QEMU's, without the suffixes of distributions.
type version struct{ major, minor int }

var (
	oldest     = version{7, 2} // Debian 12's; the oldest that was tested
	romOff     = version{8, 2} // memory-backend-file: readonly=on,rom=off, and with it memory from a file that QEMU cannot write
	noOptRoms  = version{10, 0}
	versionPat = regexp.MustCompile(`QEMU emulator version (\d{1,4})\.(\d{1,4})`)
)

func parseVersion(out string) (version, error) {
	m := versionPat.FindStringSubmatch(out)
	if m == nil {
		return version{}, wrenn.Errorf(wrenn.FailedPrecondition, "no version in the output of QEMU: %.80q", out)
	}
	major, _ := strconv.Atoi(m[1]) // at most four digits
	minor, _ := strconv.Atoi(m[2])
	return version{major, minor}, nil
}

func (v version) before(o version) bool {
	return v.major < o.major || v.major == o.major && v.minor < o.minor
}

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

var bogomips = regexp.MustCompile(`(?m)^bogomips\s*:\s*(\d{1,6}\.\d+)$`)

// hostTSC returns the rate of the host's time stamp counter in kHz, which the emulated
// machine has too. The kernel computes bogomips from it: loops per jiffy times
// HZ / 500000, and a loop of its delay is one tick of the counter.
func hostTSC() (int, error) {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return 0, err
	}
	return parseTSC(info)
}

func parseTSC(cpuinfo []byte) (int, error) {
	m := bogomips.FindSubmatch(cpuinfo)
	if m == nil {
		return 0, wrenn.Errorf(wrenn.FailedPrecondition, "no rate of this host's clock in /proc/cpuinfo (bogomips)")
	}
	mips, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil || mips < 1 {
		return 0, wrenn.Errorf(wrenn.FailedPrecondition, "invalid rate of this host's clock: bogomips %.20q", m[1])
	}
	return int(mips*500 + 0.5), nil
}
