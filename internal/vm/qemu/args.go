package qemu

import (
	"fmt"
	"slices"
	"strings"

	"wrenn/internal/vm"
)

// hardware is the part of the command line that makes the machine. A
// snapshot's device state fits exactly this hardware, so snapshots record it.
//
// What is here and what is not was found by measurement, see docs/machines.md:
// the interval timer (pit) and the real-time clock (rtc) are needed to boot,
// the old interrupt controller (pic) must not be there on QEMU 10.
func (d *Driver) hardware(spec vm.Spec) []string {
	board := "microvm,acpi=on,pit=on,pic=off,rtc=on,isa-serial=on,memory-backend=mem0"
	if d.version.before(noOptRoms) {
		board += ",x-option-roms=off" // 7 ms less; newer ones do not boot with it
	}
	args := []string{
		"-M", board,
		"-cpu", "max",
		"-smp", fmt.Sprint(spec.VCPUs),
		"-m", fmt.Sprintf("%dM", spec.MemoryMiB),
		"-device", "virtio-rng-device",
	}
	for i := range spec.Disks {
		args = append(args, "-device", fmt.Sprintf("virtio-blk-device,drive=disk%d", i))
	}
	if spec.Net.TAP != "" {
		args = append(args, "-device", "virtio-net-device,netdev=net0,mac="+strings.ToLower(spec.Net.MAC))
	}
	return args
}

// host is the part that says how this process does it; it may differ between
// a machine and those that are restored from it.
func (d *Driver) host(id string) []string {
	return []string{
		"-name", id,
		"-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", d.codeMiB),
		"-nodefaults", "-no-user-config", "-display", "none",
		"-no-reboot",       // a guest that reboots ends
		"-serial", "stdio", // the console of package launch
		// QEMU would refuse device state of its two kinds of saving alike
		// without it; what it checked is in our manifest.
		"-global", "migration.send-configuration=off",
		// Nor has its form that QEMU describes itself in the device state that we
		// have it save: it would complain of that at each restore.
		"-machine", "suppress-vmdesc=on",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	}
}

// commandLine is what the guest's kernel gets beside the caller's arguments.
func (d *Driver) commandLine(args []string) string {
	return strings.Join(append(slices.Clip(args),
		"console=ttyS0", "quiet",
		"panic=-1", // reboot at once, which ends the VMM
		"reboot=t", // by a triple fault: the firmware, where the kernel would jump else, is not there after a restore
		// Under emulation the kernel cannot measure the clock reliably: without
		// it one boot in six hung.
		fmt.Sprintf("tsc_early_khz=%d", d.tscKHz),
		// Nor can it tell that its clock is a good one: what it compares it with
		// under emulation are its own ticks, of which a busy host loses some. Then it
		// fell back to them: a clock that is wrong, in steps of 4 ms, and that wakes the
		// machine 250 times a second, which is five times the CPU time of an idle one.
		"tsc=reliable",
		"nowatchdog",          // it wakes idle machines, and takes a busy host for a lockup
		"noreplace-smp",       // patching code costs emulated CPUs 70 ms
		"random.trust_cpu=on", // or the first read of /dev/urandom waits
	), " ")
}
