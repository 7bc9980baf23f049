package qemu

import (
	"fmt"
	"slices"
	"strings"

	"wrenn/internal/vm"
)

// hardware returns the part of the command line that defines the machine. The device
// state of a snapshot fits exactly this hardware, so snapshots record it.
//
// The options were found by measurement, see docs/decisions/machines.md: a boot needs the
// interval timer (pit) and the real-time clock (rtc), and fails on QEMU 10 with the old
// interrupt controller (pic).
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

// host returns the part of the command line that is about this process. It may differ
// between a machine and those that are restored from it.
func (d *Driver) host(id string) []string {
	return []string{
		"-name", id,
		"-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", d.codeMiB),
		"-nodefaults", "-no-user-config", "-display", "none",
		"-no-reboot",       // a guest that reboots ends
		"-serial", "stdio", // the console of package launch
		// QEMU has two kinds of saving device state. It would refuse that of the one
		// that we use, because a section is missing; our manifest has what it checks.
		"-global", "migration.send-configuration=off",
		// That kind has no description of the state either. QEMU would look for it and
		// complain at each restore.
		"-machine", "suppress-vmdesc=on",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	}
}

// commandLine returns the arguments of the guest's kernel: the caller's and ours.
func (d *Driver) commandLine(args []string) string {
	return strings.Join(append(slices.Clip(args),
		"console=ttyS0", "quiet",
		"panic=-1", // reboot immediately, which ends the VMM
		"reboot=t", // by a triple fault: else the kernel jumps into the firmware, which no longer exists after a restore
		// Under emulation the kernel cannot measure the clock reliably: without this
		// one boot in six hung.
		fmt.Sprintf("tsc_early_khz=%d", d.tscKHz),
		// Nor can it check the clock: under emulation it compares it with its own ticks,
		// of which a busy host loses some. Then it used the ticks as its clock, which is
		// wrong, has steps of 4 ms and wakes the machine 250 times a second: five times
		// the CPU time of an idle machine.
		"tsc=reliable",
		"nowatchdog",          // it wakes idle machines, and reports a lockup on a busy host
		"noreplace-smp",       // patching code costs emulated CPUs 70 ms
		"random.trust_cpu=on", // or the first read of /dev/urandom waits
	), " ")
}
