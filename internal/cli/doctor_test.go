package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm/probe"
)

// TestDriversOfDoctor: where KVM works the verdicts on Firecracker, QEMU with KVM and,
// for hostile tenants, on the jailer follow what is installed and what the agent found
// when it booted guests.
func TestDriversOfDoctor(t *testing.T) {
	good, bad := probe.Verdict{Works: true, Reason: "the guest kernel booted"}, probe.Verdict{Reason: "the guest kernel printed nothing"}
	kvm := finding{Verdict: fine, Found: "/dev/kvm opens"}
	for name, test := range map[string]struct {
		kvm                           finding
		programs                      []string
		verdicts                      map[string]probe.Verdict
		firecracker, qemu, production string // verdicts
		found                         string // in that of QEMU
	}{
		"no KVM":                       {finding{Verdict: advice, Found: "/dev/kvm is missing"}, []string{"firecracker", "jailer", "qemu-system-x86_64"}, map[string]probe.Verdict{"qemu-kvm 7.2 kernel-1 boot-1": good}, advice, advice, problem, "/dev/kvm is missing"},
		"nothing is installed":         {kvm, nil, nil, fine, advice, problem, "does not run"},
		"Firecracker works":            {kvm, []string{"firecracker", "jailer", "qemu-system-x86_64"}, map[string]probe.Verdict{"firecracker 1.12.1 kernel-1 boot-1": good}, fine, fine, fine, "tried if"},
		"no jailer":                    {kvm, []string{"firecracker", "qemu-system-x86_64"}, map[string]probe.Verdict{"qemu-kvm 7.2 kernel-1 boot-1": good}, advice, fine, problem, "a guest booted"},
		"Firecracker is not installed": {kvm, []string{"qemu-system-x86_64"}, map[string]probe.Verdict{"qemu-kvm 7.2 kernel-1 boot-1": good}, fine, fine, advice, "a guest booted with it: QEMU 7"},
		"Firecracker does not work":    {kvm, []string{"firecracker", "jailer", "qemu-system-x86_64"}, map[string]probe.Verdict{"firecracker 1.12.1 kernel-1 boot-1": bad, "qemu-kvm 7.2 kernel-1 boot-1": good}, advice, fine, advice, "a guest booted"},
		"neither works":                {kvm, []string{"firecracker", "jailer", "qemu-system-x86_64"}, map[string]probe.Verdict{"firecracker 1.12.1 kernel-1 boot-1": bad, "qemu-kvm 7.2 kernel-1 boot-1": bad}, advice, advice, problem, "printed nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			c := &doctorCommand{State: t.TempDir()}
			path := t.TempDir()
			t.Setenv("PATH", path)
			for _, program := range test.programs {
				testkit.Must(t, os.WriteFile(filepath.Join(path, program), []byte("#!/bin/sh\necho QEMU 7\n"), 0o755))
			}
			data, err := json.Marshal(test.verdicts)
			testkit.Must(t, err)
			testkit.Must(t, os.WriteFile(filepath.Join(c.State, "probe.json"), data, 0o600))
			if f := c.firstChoice(test.kvm); f.Verdict != test.firecracker {
				t.Errorf("Firecracker: %+v, want %s", f, test.firecracker)
			}
			if f := c.secondChoice(t.Context(), test.kvm); f.Verdict != test.qemu || !strings.Contains(f.Found, test.found) {
				t.Errorf("QEMU with KVM: %+v, want %s and %q", f, test.qemu, test.found)
			}
			if f := c.confined(test.kvm); f.Verdict != test.production || f.Verdict != fine && f.Do == "" {
				t.Errorf("for hostile tenants: %+v, want %s", f, test.production)
			}
		})
	}
}
