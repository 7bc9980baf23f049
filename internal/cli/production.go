package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// production are the checks of a host whose tenants are hostile, as Firecracker's
// production guide has them: https://github.com/firecracker-microvm/firecracker/blob/main/docs/prod-host-setup.md.
type production struct {
	root  string // of the files that are read; "/"
	state string // the directory of sandboxes
	kvm   finding
	// synchronized reports whether the kernel's clock follows a time server.
	synchronized func() (bool, error)
}

// checks returns the checks in the order of the answer.
func (p *production) checks() []machineCheck {
	return []machineCheck{
		{"boundary", p.boundary}, {"swap", p.swap}, {"ksm", p.ksm}, {"smt", p.smt}, {"mitigations", p.mitigations}, {"microcode", p.microcode},
		{"cgroup", p.cgroup}, {"connections", p.connections}, {"time", p.time}, {"disk quota", p.quota},
	}
}

// text returns the content of a file below the root, without spaces around it.
func (p *production) text(path string) (string, error) {
	data, err := os.ReadFile(filepath.Join(p.root, path))
	return strings.TrimSpace(string(data)), err
}

func (p *production) boundary(context.Context) finding {
	if p.kvm.Verdict != fine {
		return finding{
			Verdict: problem, Found: "guests run by software emulation (TCG), which QEMU's developers do not call a security boundary",
			Do: "use a machine with KVM for tenants that you do not trust",
		}
	}
	return finding{Verdict: fine, Found: "guests run on KVM"}
}

func (p *production) swap(context.Context) finding {
	text, err := p.text("proc/swaps")
	lines := strings.Split(text, "\n")
	switch {
	case err != nil:
		return finding{Verdict: advice, Found: "it is not known whether there is swap: " + err.Error()}
	case len(lines) > 1:
		device, _, _ := strings.Cut(lines[1], " ")
		return finding{Verdict: problem, Found: "memory of guests may be written to " + device, Do: "swapoff -a, and remove swap from /etc/fstab"}
	}
	return finding{Verdict: fine, Found: "there is no swap"}
}

func (p *production) ksm(context.Context) finding {
	if run, err := p.text("sys/kernel/mm/ksm/run"); err == nil && run != "0" {
		return finding{
			Verdict: problem, Found: "the kernel merges equal pages of memory (KSM), so a guest can find out what others have in memory",
			Do: "echo 2 > /sys/kernel/mm/ksm/run, and disable ksmtuned",
		}
	}
	return finding{Verdict: fine, Found: "the kernel merges no pages of memory"}
}

func (p *production) smt(context.Context) finding {
	switch active, err := p.text("sys/devices/system/cpu/smt/active"); {
	case err != nil:
		return finding{Verdict: advice, Found: "it is not known if two guests can share a core (SMT)"}
	case active != "0":
		return finding{
			Verdict: problem, Found: "two guests can run on one core at a time (SMT), and see each other's use of its caches",
			Do: "start the kernel with nosmt, or echo off > /sys/devices/system/cpu/smt/control",
		}
	}
	return finding{Verdict: fine, Found: "each core runs one thread"}
}

func (p *production) mitigations(context.Context) finding {
	const dir = "sys/devices/system/cpu/vulnerabilities"
	if line, _ := p.text("proc/cmdline"); slices.Contains(strings.Fields(line), "mitigations=off") {
		return finding{Verdict: problem, Found: "the kernel was started with mitigations=off", Do: "remove it from the kernel's command line"}
	}
	entries, err := os.ReadDir(filepath.Join(p.root, dir))
	if err != nil {
		return finding{Verdict: advice, Found: "the kernel does not list the processor's vulnerabilities"}
	}
	var open []string
	for _, e := range entries {
		if text, err := p.text(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(text, "Vulnerable") {
			open = append(open, e.Name())
		}
	}
	if len(open) > 0 {
		return finding{
			Verdict: problem, Found: "the processor is vulnerable: " + strings.Join(open, ", "),
			Do: "update the kernel and the microcode; /" + dir + " has the details",
		}
	}
	return finding{Verdict: fine, Found: fmt.Sprintf("%d vulnerabilities are mitigated or absent", len(entries))}
}

func (p *production) microcode(context.Context) finding {
	text, err := p.text("proc/cpuinfo")
	if err != nil {
		return finding{Verdict: advice, Found: "the revision of the microcode is not known: " + err.Error()}
	}
	for line := range strings.Lines(text) {
		if name, revision, found := strings.Cut(line, ":"); found && strings.TrimSpace(name) == "microcode" {
			return finding{
				Verdict: advice, Found: "the microcode has revision " + strings.TrimSpace(revision),
				Do: "keep it current: packages intel-microcode or amd64-microcode; in a virtual machine its provider does",
			}
		}
	}
	return finding{Verdict: advice, Found: "the kernel does not show the microcode's revision", Do: "in a virtual machine its provider keeps it current"}
}

func (p *production) cgroup(context.Context) finding {
	text, err := p.text("sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		return finding{Verdict: problem, Found: "there is no cgroup2 hierarchy, so no limit of a guest's memory, tasks and CPU holds", Do: "start the kernel with systemd.unified_cgroup_hierarchy=1"}
	}
	var missing []string
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(strings.Fields(text), c) {
			missing = append(missing, c)
		}
	}
	if len(missing) > 0 {
		return finding{Verdict: problem, Found: "cgroup2 lacks the controllers " + strings.Join(missing, ", "), Do: "enable them in the kernel, and do not use them by cgroup1"}
	}
	return finding{Verdict: fine, Found: "cgroup2 has " + text}
}

// smallTable is a connection table that the shares of some hundred guests fill.
const smallTable = 262_144

func (p *production) connections(context.Context) finding {
	text, err := p.text("proc/sys/net/netfilter/nf_conntrack_max")
	size, parseErr := strconv.Atoi(text)
	switch {
	case err != nil || parseErr != nil:
		return finding{Verdict: advice, Found: "the connection table is not in use yet; the agent sets its size when it starts"}
	case size < smallTable:
		return finding{
			Verdict: advice, Found: fmt.Sprintf("the connection table of all guests has %d entries", size),
			Do: fmt.Sprintf("with many guests: sysctl net.netfilter.nf_conntrack_max=%d", smallTable),
		}
	}
	return finding{Verdict: fine, Found: fmt.Sprintf("the connection table of all guests has %d entries", size)}
}

func (p *production) time(context.Context) finding {
	switch ok, err := p.synchronized(); {
	case err != nil:
		return finding{Verdict: advice, Found: "it is not known whether the clock follows a time server: " + err.Error()}
	case !ok:
		return finding{Verdict: problem, Found: "the clock follows no time server, and guests follow it", Do: "apt-get install chrony"}
	}
	return finding{Verdict: fine, Found: "the clock follows a time server"}
}

// clockSynchronized asks the kernel, see adjtimex(2).
func clockSynchronized() (bool, error) {
	const unsynchronized = 0x40 // STA_UNSYNC
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return false, err
	}
	return t.Status&unsynchronized == 0, nil
}

func (p *production) quota(context.Context) finding {
	var state, root unix.Stat_t
	dir := existing(p.state)
	if err := unix.Stat(dir, &state); err != nil {
		return finding{Verdict: problem, Found: dir + ": " + err.Error()}
	}
	if err := unix.Stat(p.root, &root); err == nil && state.Dev == root.Dev {
		return finding{
			Verdict: advice, Found: dir + " is on the file system of the host's own programs: what sandboxes write can fill it for both",
			Do: "give it a file system, and set a limit of all disks for the host agent",
		}
	}
	return finding{Verdict: fine, Found: dir + " has its own file system"}
}
