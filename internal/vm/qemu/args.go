package qemu

import (
	"fmt"
	"slices"
	"strings"

	"wrenn.dev/internal/vm"
)

// hardware returns the part of the command line that defines the machine. The device
// state of a snapshot fits exactly this hardware, so snapshots record it. With KVM the
// processor lacks the named features of the host's.
//
// The options were found by measurement, see docs/decisions/machines.md: a boot needs the
// interval timer (pit) and the real-time clock (rtc), and fails on QEMU 10 with the old
// interrupt controller (pic).
func (d *Driver) hardware(spec vm.Spec, lacks ...string) []string {
	board := "microvm,acpi=on,pit=on,pic=off,rtc=on,isa-serial=on,memory-backend=mem0"
	if d.version.before(noOptRoms) {
		board += ",x-option-roms=off" // 7 ms less; newer ones do not boot with it
	}
	args := append([]string{"-M", board}, d.processorArgs(lacks)...)
	args = append(args,
		"-smp", fmt.Sprint(spec.VCPUs),
		"-m", fmt.Sprintf("%dM", spec.MemoryMiB),
		"-device", "virtio-rng-device",
	)
	for i := range spec.Disks {
		args = append(args, "-device", fmt.Sprintf("virtio-blk-device,drive=disk%d", i))
	}
	if spec.Net.TAP != "" {
		args = append(args, "-device", "virtio-net-device,netdev=net0,mac="+strings.ToLower(spec.Net.MAC))
	}
	return args
}

// processorArgs returns the part of hardware that defines the processor. With KVM the
// guest has what KVM offers of the host's, except what a snapshot could not restore,
// such as the promise that the time stamp counter never stops; and KVM has the local
// interrupt controllers only: the others are QEMU's, as under emulation.
func (d *Driver) processorArgs(lacks []string) []string {
	if d.kvm {
		cpu := []string{"host", hidden}
		for _, feature := range lacks {
			cpu = append(cpu, feature+"=off")
		}
		return []string{"-cpu", strings.Join(cpu, ","), "-accel", "kvm,kernel-irqchip=split"}
	}
	return []string{"-cpu", "max"}
}

// host returns the part of the command line that is about this process. It may differ
// between a machine and those that are restored from it.
func (d *Driver) host(id string) []string {
	args := []string{"-name", id}
	if !d.kvm {
		args = append(args, "-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", d.codeMiB))
	}
	return append(args,
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
	)
}

// commandLine returns the arguments of the guest's kernel: the caller's and ours.
func (d *Driver) commandLine(args []string) string {
	return strings.Join(slices.Concat(args, []string{
		"console=ttyS0", "quiet",
		"panic=-1",            // reboot immediately, which ends the VMM
		"reboot=t",            // by a triple fault: else the kernel jumps into the firmware, which no longer exists after a restore
		"nowatchdog",          // it wakes idle machines, and reports a lockup on a busy host
		"random.trust_cpu=on", // or the first read of /dev/urandom waits
	}, d.clockArgs()), " ")
}

// clockArgs returns the arguments that the guest's kernel needs for right clocks.
func (d *Driver) clockArgs() []string {
	if d.kvm {
		return []string{"clocksource=kvm-clock"} // right also where the host's time stamp counter has another rate than that of the snapshot
	}
	return []string{
		// Under emulation the kernel cannot measure the clock reliably: without this
		// one boot in six hung.
		fmt.Sprintf("tsc_early_khz=%d", d.tscKHz),
		// Nor can it check the clock: under emulation it compares it with its own ticks,
		// of which a busy host loses some. Then it used the ticks as its clock, which is
		// wrong, has steps of 4 ms and wakes the machine 250 times a second: five times
		// the CPU time of an idle machine.
		"tsc=reliable",
		"noreplace-smp", // patching code costs emulated CPUs 70 ms
	}
}
