package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"wrenn"
	"wrenn/internal/launch"
	"wrenn/internal/vm"
	"wrenn/internal/vm/firecracker"
	"wrenn/internal/vm/firecracker/release"
	"wrenn/internal/vm/probe"
	"wrenn/internal/vm/qemu"
)

// The choices of DriverConfig.Name.
const (
	Auto        = "auto"
	QEMU        = "qemu"
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
	Name        string // Auto, QEMU or Firecracker; "" is Auto
	QEMU        string // path or name of qemu-system-x86_64
	QEMUCodeMiB int    // see qemu.Config.CodeMiB
	Firecracker string // path or name of firecracker; if its default name is not installed, see NoDownload
	Jailer      string // path or name of jailer
	// Unjailed allows Firecracker without its jailer: then VMMs run as root.
	Unjailed bool
	// NoDownload forbids to download the pinned release of Firecracker, with its jailer.
	NoDownload bool
}

// chooseDriver picks Firecracker if it boots the guest's kernel, else QEMU, and
// prints why.
func (h *Host) chooseDriver(ctx context.Context) error {
	driver, reason, err := h.pickDriver(ctx)
	if err != nil {
		return err
	}
	h.Driver = driver
	h.say("driver", driver.Name()+": "+reason)
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

func (h *Host) pickDriver(ctx context.Context) (vm.Driver, string, error) {
	if h.cfg.Driver.Name == QEMU {
		driver, err := h.qemu(ctx)
		return driver, "configured", err
	}
	driver, verdict, err := h.tryFirecracker(ctx)
	switch {
	case err != nil:
		return nil, "", err
	case verdict.Works:
		return driver, verdict.Reason, nil
	case h.cfg.Driver.Name == Firecracker:
		return nil, "", wrenn.Errorf(wrenn.FailedPrecondition, "Firecracker does not work here: %s", verdict.Reason)
	}
	emulated, err := h.qemu(ctx)
	return emulated, "software emulation, because " + verdict.Reason, err
}

func (h *Host) qemu(ctx context.Context) (vm.Driver, error) {
	path, err := exec.LookPath(h.cfg.Driver.QEMU)
	if err != nil {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "%s is missing: apt-get install qemu-system-x86", h.cfg.Driver.QEMU)
	}
	return qemu.New(ctx, qemu.Config{Path: path, CodeMiB: h.cfg.Driver.QEMUCodeMiB})
}

// tryFirecracker checks what Firecracker needs, cheapest first, and finally boots
// the guest's kernel on it.
func (h *Host) tryFirecracker(ctx context.Context) (vm.Driver, probe.Verdict, error) {
	no := func(format string, args ...any) (vm.Driver, probe.Verdict, error) {
		return nil, probe.Verdict{Reason: fmt.Sprintf(format, args...)}, nil
	}
	kvm, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	if err != nil {
		return no("%s cannot be used (%v)", kvmDevice, errors.Unwrap(err))
	}
	kvm.Close()
	path, err := h.findFirecracker(ctx)
	if err != nil {
		return no("%v", err)
	}
	driver, err := firecracker.New(ctx, firecracker.Config{Program: path, Jailer: h.jailer(), Log: h.cfg.Log})
	if err != nil {
		return no("%v", err)
	}
	verdict, err := probe.Probe{
		Memory: filepath.Join(h.cfg.StateDir, "probe.json"), Dir: h.cfg.RunDir,
	}.Boots(ctx, driver, driver.Version().String(), h.guest.Kernel)
	if err != nil {
		return nil, verdict, fmt.Errorf("probe of Firecracker: %w", err)
	}
	if _, err := os.Stat(pvmModule); err == nil && !verdict.Works {
		verdict.Reason = strings.TrimSpace(verdict.Reason) + " (" + kvmDevice + " is PVM, which needs a kernel built for it: " + setting("kernel") + ")"
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
	_, pvm := os.Stat(pvmModule)
	if err != nil && (d.NoDownload || pvm == nil && h.cfg.Image.Kernel == "") { // a stock kernel does not boot on PVM
		return "", wrenn.Errorf(wrenn.FailedPrecondition, "Firecracker is not installed (%s, or put it and its jailer of %s into %s)", setting("firecracker"), release.Version, dir)
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
