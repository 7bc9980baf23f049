package qemu

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/vm"
)

func TestParseVersion(t *testing.T) {
	for out, want := range map[string]version{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright": {7, 2},
		"QEMU emulator version 8.2.2 (Debian 1:8.2.2+ds-0ubuntu1)\n":             {8, 2},
		"QEMU emulator version 10.0.2 (Debian)":                                  {10, 0},
		"qemu-img version 7.2.22":                                                {},
		"":                                                                       {},
	} {
		if got, err := parseVersion(out); got != want || (err == nil) != (want != version{}) {
			t.Errorf("parseVersion(%q) = %v, %v", out, got, err)
		}
	}
	if !(version{7, 2}).before(version{10, 0}) || (version{8, 2}).before(version{8, 2}) || (version{9, 0}).before(version{8, 2}) {
		t.Error("versions are out of order")
	}
}

func TestParseTSC(t *testing.T) {
	for info, want := range map[string]int{
		"model name\t: x\nbogomips\t: 5199.99\nflags\t: y\nbogomips\t: 1.00\n": 2_599_995,
		"bogomips\t: 4600.00\n":  2_300_000,
		"BogoMIPS\t: 48.00\n":    0,
		"bogomips\t: 0.00\n":     0,
		"bogomips\t: fast\n":     0,
		"no such line at all":    0,
		"bogomips\t: 1e9\n":      0,
		"xbogomips\t: 4600.00\n": 0,
	} {
		if got, err := parseTSC([]byte(info)); got != want || (err == nil) != (want != 0) {
			t.Errorf("parseTSC(%q) = %d, %v; want %d", info, got, err, want)
		}
	}
}

var testSpec = vm.Spec{
	ID: "i0", Dir: "/run/x", VCPUs: 2, MemoryMiB: 256,
	Disks: []vm.Disk{{Path: "root.ext4"}, {Path: "data", ReadOnly: true}},
	Net:   vm.NIC{TAP: "tap0", MAC: "02:FC:00:00:00:05"},
}

func TestHardwareByVersion(t *testing.T) {
	old := (&Driver{version: version{7, 2}}).hardware(testSpec)
	if !slices.ContainsFunc(old, func(s string) bool { return strings.Contains(s, "x-option-roms=off") }) {
		t.Errorf("QEMU 7.2 loads option ROMs: %q", old)
	}
	recent := (&Driver{version: version{10, 0}}).hardware(testSpec)
	if slices.ContainsFunc(recent, func(s string) bool { return strings.Contains(s, "option-roms") }) {
		t.Errorf("QEMU 10 does not boot with %q", recent)
	}
	for _, want := range []string{"virtio-net-device,netdev=net0,mac=02:fc:00:00:00:05", "virtio-blk-device,drive=disk0", "256M", "2"} {
		if !slices.Contains(recent, want) {
			t.Errorf("%q lacks %q", recent, want)
		}
	}
}

func TestMachinesKeepSoMuchCode(t *testing.T) {
	qemu := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(qemu, []byte("#!/bin/sh\necho QEMU emulator version 10.0.2\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for mib, want := range map[int]string{0: "tb-size=96", MinCodeMiB: "tb-size=16", MaxCodeMiB: "tb-size=1024", MinCodeMiB - 1: "", MaxCodeMiB + 1: "", -1: ""} {
		d, err := New(t.Context(), Config{Path: qemu, CodeMiB: mib})
		switch {
		case want == "" && wrenn.CodeOf(err) != wrenn.Invalid:
			t.Errorf("New with %d MiB = %v, want Invalid", mib, err)
		case want != "" && err != nil:
			t.Errorf("New with %d MiB: %v", mib, err)
		case want != "" && !slices.Contains(d.host("i0"), "tcg,thread=multi,"+want):
			t.Errorf("%d MiB: %q lacks %s", mib, d.host("i0"), want)
		}
	}
}

func TestCommandLineLeavesItsArgumentsAlone(t *testing.T) {
	args := make([]string, 1, 8)
	args[0] = "root=/dev/vda"
	line := (&Driver{tscKHz: 2_600_000}).commandLine(args)
	if !strings.HasPrefix(line, "root=/dev/vda console=ttyS0 ") || !strings.Contains(line, " tsc_early_khz=2600000 ") {
		t.Errorf("commandLine() = %q", line)
	}
	if args[:2][1] != "" {
		t.Error("the caller's array was written to")
	}
	// Each passes every boot test and breaks guests: docs/decisions/machines.md.
	for _, never := range []string{"noapictimer", "nolapic", "acpi=off"} {
		if strings.Contains(line, never) {
			t.Errorf("%s is on the command line", never)
		}
	}
}

// With KVM the guest has the host's processor and KVM's clock, and the emulator's
// options are left out. All else is the same.
func TestKVMsCommandLine(t *testing.T) {
	emulated, kvm := &Driver{version: version{7, 2}, codeMiB: 96, tscKHz: 2_600_000}, &Driver{version: version{7, 2}, kvm: true, tscKHz: 2_600_000}
	line := strings.Join(append(kvm.hardware(testSpec), kvm.host("i0")...), " ")
	for want, ok := range map[string]bool{"-cpu host,pmu=off,vmx=off,svm=off ": true, "-accel kvm,kernel-irqchip=split": true, "-sandbox on,": true, "tcg": false, "tb-size": false, "-cpu max": false} {
		if strings.Contains(line, want) != ok {
			t.Errorf("%q contains %q: want %t", line, want, ok)
		}
	}
	guest := kvm.commandLine([]string{"root=/dev/vda"})
	for want, ok := range map[string]bool{"root=/dev/vda ": true, "clocksource=kvm-clock": true, "reboot=t": true, "panic=-1": true, "tsc": false, "noreplace-smp": false} {
		if strings.Contains(guest, want) != ok {
			t.Errorf("%q contains %q: want %t", guest, want, ok)
		}
	}
	others := func(d *Driver) []string {
		return slices.DeleteFunc(d.hardware(testSpec), func(s string) bool { return slices.Contains(d.processorArgs(nil), s) })
	}
	if !slices.Equal(others(emulated), others(kvm)) {
		t.Errorf("the devices differ: %q and %q", others(emulated), others(kvm))
	}
	if emulated.OverheadMiB() <= kvm.OverheadMiB() {
		t.Error("KVM keeps translated code")
	}
}

const hostModel = `{"return": {"model": {"name": "base", "props": {"sse2": true, "family": 23, "aes": true, "avx2": false, "vendor": "AuthenticAMD"}}}}`

func TestParseFeatures(t *testing.T) {
	messages := `{"QMP": {"version": {}}}` + "\n" + `{"return": {}}` + "\n" + hostModel + "\nnot JSON\n"
	if got, err := parseFeatures([]byte(messages)); err != nil || !slices.Equal(got, []string{"aes", "sse2"}) {
		t.Errorf("parseFeatures() = %q, %v", got, err)
	}
	for _, bad := range []string{"", "not JSON", `{"return": {}}`, `{"error": {"class": "GenericError", "desc": "CPU definition 'host' requires KVM"}}`} {
		if got, err := parseFeatures([]byte(bad)); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
			t.Errorf("parseFeatures(%q) = %q, %v; want FailedPrecondition", bad, got, err)
		}
	}
}

// A guest continues with the features that it has seen: others of the host are turned
// off, and it is refused where one is missing.
func TestFeaturesOfAProcessor(t *testing.T) {
	d := &Driver{version: version{7, 2}, kvm: true, tscKHz: 2_600_000, processor: "p", features: []string{"aes", "avx2", "sse2"}}
	man := d.manifest(testSpec)
	man.Features = []string{"aes", "sse2"}
	if err := man.fits(d.manifest(testSpec)); err != nil {
		t.Error(err)
	}
	a := &assembly{d: d, spec: testSpec, snap: &snapshot{features: man.Features}}
	if args := d.hardware(testSpec, a.lacks()...); !slices.Contains(args, "host,"+hidden+",avx2=off") {
		t.Errorf("a restored guest would see another processor: %q", args)
	}
	var kept manifest
	if err := json.Unmarshal([]byte(a.private()[refManifest]), &kept); err != nil || !slices.Equal(kept.Features, man.Features) {
		t.Errorf("its own snapshots have the features %q, %v", kept.Features, err)
	}
	if booted := (&assembly{d: d, spec: testSpec}).lacks(); len(booted) > 0 {
		t.Errorf("a guest that boots lacks %q", booted)
	}
	man.Features = append(man.Features, "avx512f")
	if err := man.fits(d.manifest(testSpec)); wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "avx512f") {
		t.Errorf("fits() = %v, want FailedPrecondition that names the feature", err)
	}
}

func TestDriversAreTwo(t *testing.T) {
	qemu := filepath.Join(t.TempDir(), "qemu")
	script := "#!/bin/sh\ncase $1 in -machine) echo '" + hostModel + "';; *) echo QEMU emulator version 10.0.2;; esac\n"
	if err := os.WriteFile(qemu, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, kvm := range map[string]bool{Name: false, NameKVM: true} {
		d, err := New(t.Context(), Config{Path: qemu, KVM: kvm})
		if err != nil {
			t.Fatal(err)
		}
		p := d.Platform()
		if d.Name() != name || p.Driver != name || p.Version != "10.0" || (p.Processor != "") != kvm || slices.Contains(d.features, "aes") != kvm {
			t.Errorf("KVM %t: %s on %+v", kvm, d.Name(), p)
		}
		if slices.Contains(d.root.Nodes, kvmDevice) != kvm {
			t.Errorf("%s: its VMMs have the devices %q", name, d.root.Nodes)
		}
		if _, err := d.Adopt(t.Context(), vm.Ref{Driver: Name + NameKVM}); wrenn.CodeOf(err) != wrenn.Invalid {
			t.Errorf("%s adopts another driver's machine: %v", name, err)
		}
	}
}

// A machine that has ended is gone, also when something that it left cannot be removed.
func TestAdoptTheDeadThatLeftSomething(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, socketName, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := (&Driver{}).Adopt(t.Context(), vm.Ref{Driver: Name, Dir: dir, PID: os.Getpid(), BootID: "another boot"})
	if wrenn.CodeOf(err) != wrenn.NotFound || !strings.Contains(err.Error(), socketName) {
		t.Errorf("Adopt() = %v, want NotFound that names what is left", err)
	}
}

func TestManifestFits(t *testing.T) {
	d := &Driver{version: version{7, 2}, tscKHz: 2_600_000}
	good := d.manifest(testSpec)
	good.Kernel = "k1"
	if err := good.fits(d.manifest(testSpec)); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*manifest){
		"format":       func(m *manifest) { m.Format++ },
		"QEMU version": func(m *manifest) { m.QEMU = "10.0" },
		"vCPUs":        func(m *manifest) { m.VCPUs++ },
		"memory":       func(m *manifest) { m.MemoryMiB *= 2 },
		"disks":        func(m *manifest) { m.Disks = []string{"rw", "rw"} },
		"MAC":          func(m *manifest) { m.MAC = "02:fc:00:00:00:06" },
		"hardware":     func(m *manifest) { m.Hardware = append(slices.Clone(m.Hardware), "-device", "x") },
		"clock":        func(m *manifest) { m.TSCKHz = 2_602_000 },
		"kernel":       func(m *manifest) { m.Kernel = "k2" },
		"driver":       func(m *manifest) { m.Driver = NameKVM },
		"processor":    func(m *manifest) { m.Processor = "AuthenticAMD 23 1 2" },
	} {
		other := good
		change(&other)
		err := other.fits(good)
		if wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: fits() = %v, want FailedPrecondition that names it", name, err)
		}
	}
	older := good
	older.Driver = "" // of an agent that had one driver of QEMU
	if err := older.fits(good); err != nil {
		t.Errorf("an older agent's snapshot: %v", err)
	}
	kvm := (&Driver{version: version{7, 2}, kvm: true, tscKHz: 2_600_000}).manifest(testSpec)
	if err := older.fits(kvm); wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "qemu, not qemu-kvm") {
		t.Errorf("an emulated machine on KVM: fits() = %v, want FailedPrecondition that names both", err)
	}
	calibrated := good
	calibrated.TSCKHz += 500 // another boot of the same host
	if err := calibrated.fits(good); err != nil {
		t.Errorf("a clock that is 200 ppm off: %v", err)
	}
}

func TestOpenSnapshotLooksAtItsFiles(t *testing.T) {
	d := &Driver{version: version{7, 2}, tscKHz: 2_600_000}
	dir := t.TempDir()
	man := d.manifest(testSpec)
	private := filepath.Join(dir, privateName)
	write := func(path, content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(private, stateName), "1234567")
	var err error
	if man.State, err = vm.SumFile(filepath.Join(private, stateName)); err != nil {
		t.Fatal(err)
	}
	if err := vm.WriteManifest(filepath.Join(dir, manifestName), man); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(private, memoryName), "")
	if err := os.Truncate(filepath.Join(private, memoryName), man.memorySize()); err != nil {
		t.Fatal(err)
	}
	snap, err := d.openSnapshot(dir, testSpec)
	if err != nil {
		t.Fatal(err)
	}
	snap.close()
	for _, c := range []struct{ name, file, content string }{
		{"long state", filepath.Join(private, stateName), "12345678"},
		{"another state", filepath.Join(private, stateName), "1234568"},
		{"short memory", filepath.Join(private, memoryName), "x"},
		{"no manifest", filepath.Join(dir, manifestName), ""},
		{"a manifest without its sum", filepath.Join(dir, manifestName), encode(man) + "\n"},
	} {
		aside := c.file + ".aside"
		if err := os.Rename(c.file, aside); err != nil {
			t.Fatal(err)
		}
		write(c.file, c.content)
		_, err := d.openSnapshot(dir, testSpec)
		if wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), filepath.Base(c.file)) {
			t.Errorf("%s: openSnapshot() = %v, want FailedPrecondition that names the file", c.name, err)
		}
		if err := os.Rename(aside, c.file); err != nil {
			t.Fatal(err)
		}
	}
	snap, err = d.openSnapshot(dir, testSpec)
	if err != nil {
		t.Fatal(err)
	}
	snap.close()
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(encode((&Driver{}).manifest(testSpec))))
	f.Add([]byte(`{"tsc_khz": -9223372036854775808}`))
	d := &Driver{version: version{7, 2}, tscKHz: 2_600_000}
	f.Fuzz(func(t *testing.T, data []byte) {
		var man manifest
		if json.Unmarshal(data, &man) != nil {
			return
		}
		if man.fits(d.manifest(testSpec)) == nil && man.MemoryMiB != testSpec.MemoryMiB {
			t.Errorf("%s fits", data)
		}
	})
}

func TestNewNeedsQEMU(t *testing.T) {
	for _, path := range []string{filepath.Join(t.TempDir(), "none"), "/bin/true"} {
		if _, err := New(t.Context(), Config{Path: path}); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
			t.Errorf("New(%s) = %v, want FailedPrecondition", path, err)
		}
	}
}

func TestThrottling(t *testing.T) {
	for want, rate := range map[string]vm.DiskRate{
		"": {},
		",throttling.bps-total=5,throttling.bps-total-max=5":                                                     {BytesPerSecond: 5},
		",throttling.bps-total=5,throttling.bps-total-max=5,throttling.iops-total=7,throttling.iops-total-max=7": {BytesPerSecond: 5, OperationsPerSecond: 7},
	} {
		if got := throttling(rate); got != want {
			t.Errorf("%+v: %q, want %q", rate, got, want)
		}
	}
}
