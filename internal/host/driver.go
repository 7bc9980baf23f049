package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/firecracker"
	"wrenn.dev/internal/vm/firecracker/release"
	"wrenn.dev/internal/vm/probe"
	"wrenn.dev/internal/vm/qemu"
)

// The choices of DriverConfig.Name.
const (
	Auto        = "auto"
	QEMU        = "qemu"     // by software emulation
	QEMUKVM     = "qemu-kvm" // with KVM
	Firecracker = "firecracker"
)

const (
	kvmDevice = "/dev/kvm"
	// firecrackerName is the default of DriverConfig.Firecracker.
	firecrackerName = "firecracker"
	// pvmModule exists when /dev/kvm is PVM, which runs only kernels built for it.
	pvmModule = "/sys/module/kvm_pvm"
)

// DriverConfig says which VMM to use. With the zero value the host tries what works.
type DriverConfig struct {
	Name        string // Auto, Firecracker, QEMUKVM or QEMU; "" is Auto
	QEMU        string // path or name of qemu-system-x86_64
	QEMUCodeMiB int    // see qemu.Config.CodeMiB
	Firecracker string // path or name of firecracker; if its default name is not installed, see NoDownload
	Jailer      string // path or name of jailer
	// Unjailed allows Firecracker without its jailer: then VMMs run as root.
	Unjailed bool
	// NoDownload forbids to download the pinned release of Firecracker, with its jailer.
	NoDownload bool
}

// chooseDriver picks the first that boots the guest's kernel, of Firecracker, QEMU with
// KVM and QEMU's emulation, and prints why.
func (h *Host) chooseDriver(ctx context.Context) error {
	c, err := h.pickDriver(ctx)
	if err != nil {
		return err
	}
	h.Driver = c.Driver
	h.say("driver", c.Name()+": "+c.why)
	for _, other := range c.others {
		h.say("", other)
	}
	if !launch.CgroupsLimit() {
		h.say("", "machines are not limited by cgroups: this machine has no cgroup2 hierarchy at "+launch.CgroupRoot+" with the controllers memory, pids and cpu")
	}
	return h.checkJail()
}

// checkJail returns FailedPrecondition if VMMs would run as root and the configuration
// does not allow it. A guest that leaves its machine would own the host.
func (h *Host) checkJail() error {
	if h.firstUID() != 0 {
		return nil
	}
	if !h.cfg.Driver.Unjailed {
		return wrenn.Errorf(wrenn.FailedPrecondition, "Firecracker's jailer is not installed, and without it machines run as root: install it (%s); "+
			"or, on a machine where that is no danger, set driver.unjailed = true or start wrenn up with --unjailed", setting("jailer"))
	}
	h.say("", "machines run as root: the jailer is not installed ("+setting("jailer")+"), and the configuration allows it (unjailed)")
	return nil
}

// setting returns how to give the path of name: both programs that assemble a host
// print the advice, and one has no flags for it.
func setting(name string) string {
	return fmt.Sprintf("set driver.%[1]s in host-agent.toml, or start wrenn up with --%[1]s", name)
}

// attempt is a driver to try, and its name for people.
type attempt struct {
	name, title string
	try         func(context.Context) (vm.Driver, probe.Verdict, error)
}

// choice is the driver that is used.
type choice struct {
	vm.Driver
	why    string
	others []string // why better ones are not used
}

// pickDriver returns the driver that is configured, or the first that works.
func (h *Host) pickDriver(ctx context.Context) (c choice, err error) {
	if h.cfg.Driver.Name == QEMU {
		c.why = "configured"
		c.Driver, err = h.qemu(ctx, false)
		return c, err
	}
	if err := openKVM(); err != nil {
		return h.emulate(ctx, "KVM does not work here: "+err.Error())
	}
	return h.firstOf(ctx, h.attempts())
}

// firstOf returns the first driver that works, or emulation.
func (h *Host) firstOf(ctx context.Context, attempts []attempt) (choice, error) {
	var whyNot []string
	for _, a := range attempts {
		driver, verdict, err := a.try(ctx)
		if err != nil {
			return choice{}, fmt.Errorf("probe of %s: %w", a.title, err)
		}
		if verdict.Works {
			return choice{Driver: driver, why: verdict.Reason, others: whyNot}, nil
		}
		whyNot = append(whyNot, a.title+" does not work here: "+verdict.Reason)
	}
	return h.emulate(ctx, whyNot...)
}

// emulate returns the choice of emulation, or FailedPrecondition if another driver is
// configured.
func (h *Host) emulate(ctx context.Context, whyNot ...string) (choice, error) {
	if name := h.cfg.Driver.Name; name == Firecracker || name == QEMUKVM {
		return choice{}, wrenn.Errorf(wrenn.FailedPrecondition, "%s", strings.Join(whyNot, "; "))
	}
	driver, err := h.qemu(ctx, false)
	return choice{Driver: driver, why: "software emulation", others: whyNot}, err
}

// attempts returns the drivers to try before emulation, the best first.
func (h *Host) attempts() []attempt {
	all := []attempt{{Firecracker, "Firecracker", h.tryFirecracker}, {QEMUKVM, "QEMU with KVM", h.tryQEMU}}
	for _, a := range all {
		if a.name == h.cfg.Driver.Name {
			return []attempt{a}
		}
	}
	return all
}

// qemu returns the driver of QEMU, by emulation or with KVM.
func (h *Host) qemu(ctx context.Context, kvm bool) (vm.Driver, error) {
	path, err := exec.LookPath(h.cfg.Driver.QEMU)
	if err != nil {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "%s is missing: apt-get install qemu-system-x86", h.cfg.Driver.QEMU)
	}
	return qemu.New(ctx, qemu.Config{Path: path, KVM: kvm, CodeMiB: h.cfg.Driver.QEMUCodeMiB})
}

// not is the verdict on a driver that cannot be tried.
func not(format string, args ...any) (vm.Driver, probe.Verdict, error) {
	return nil, probe.Verdict{Reason: fmt.Sprintf(format, args...)}, nil
}

// openKVM returns the error of opening KVM's device.
func openKVM() error {
	kvm, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%s cannot be used (%w)", kvmDevice, errors.Unwrap(err))
	}
	return kvm.Close()
}

// tryFirecracker checks what Firecracker needs, cheapest first, and finally boots
// the guest's kernel on it.
func (h *Host) tryFirecracker(ctx context.Context) (vm.Driver, probe.Verdict, error) {
	path, err := h.findFirecracker(ctx)
	if err != nil {
		return not("%v", err)
	}
	driver, err := firecracker.New(ctx, firecracker.Config{Program: path, Jailer: h.jailer(), Log: h.cfg.Log})
	if err != nil {
		return not("%v", err)
	}
	return h.boots(ctx, driver)
}

// tryQEMU does the same for QEMU with KVM.
func (h *Host) tryQEMU(ctx context.Context) (vm.Driver, probe.Verdict, error) {
	if h.onlyPVM() {
		return not("%s", pvmHint)
	}
	driver, err := h.qemu(ctx, true)
	if err != nil {
		return not("%v", err)
	}
	return h.boots(ctx, driver)
}

// pvmHint says what to do where KVM runs only kernels that were made for it.
var pvmHint = kvmDevice + " is PVM, which needs a kernel built for it: " + setting("kernel")

// onlyPVM reports whether no stock kernel boots on the host's KVM, and the guests'
// kernel is one.
func (h *Host) onlyPVM() bool {
	_, err := os.Stat(pvmModule)
	return err == nil && h.cfg.Image.Kernel == ""
}

// boots boots the guest's kernel with a driver that uses KVM.
func (h *Host) boots(ctx context.Context, driver vm.Driver) (vm.Driver, probe.Verdict, error) {
	verdict, err := probe.Probe{
		Memory: filepath.Join(h.cfg.StateDir, "probe.json"), Dir: h.cfg.RunDir,
	}.Boots(ctx, driver, driver.Platform().Version, h.guest.Kernel)
	if err != nil {
		return nil, verdict, err
	}
	if _, err := os.Stat(pvmModule); err == nil && !verdict.Works {
		verdict.Reason = strings.TrimSpace(verdict.Reason) + " (" + pvmHint + ")"
	}
	return driver, verdict, nil
}

// findFirecracker returns the path of Firecracker. If neither it nor its jailer are
// named or installed, both are those of the pinned release in the state directory,
// which are downloaded unless the configuration forbids it.
func (h *Host) findFirecracker(ctx context.Context) (string, error) {
	d := &h.cfg.Driver
	path, err := exec.LookPath(d.Firecracker)
	if err == nil {
		return path, nil
	}
	if d.Firecracker != firecrackerName {
		return "", fmt.Errorf("%s is not there", d.Firecracker)
	}
	dir := release.Dir(h.cfg.StateDir)
	firecracker, jailer, err := release.Find(dir)
	if err != nil && (d.NoDownload || h.onlyPVM()) {
		return "", wrenn.Errorf(wrenn.FailedPrecondition, "it is not installed (%s, or put it and its jailer of %s into %s)", setting("firecracker"), release.Version, dir)
	}
	if err != nil {
		h.say("", "Firecracker is not installed: downloading "+release.Version+" into "+dir)
		firecracker, jailer, err = release.Fetcher{}.Fetch(ctx, dir)
	}
	if err != nil {
		return "", fmt.Errorf("%w; or %s", err, setting("firecracker"))
	}
	d.Firecracker, d.Jailer = firecracker, jailer
	return firecracker, nil
}

// jailer returns the path of Firecracker's jailer, "" if it is not installed: then
// the machines run as the agent's own user, see checkJail.
func (h *Host) jailer() string {
	path, err := exec.LookPath(h.cfg.Driver.Jailer)
	if err != nil {
		return ""
	}
	return path
}

// firstUID returns the first of the user ids that machines run as, 0 for the
// agent's own.
func (h *Host) firstUID() uint32 {
	if h.Driver.Name() == Firecracker && h.jailer() == "" {
		return 0
	}
	return h.cfg.Network.FirstUser(machineUIDs)
}
