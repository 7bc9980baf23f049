//go:build nested

package nested

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev/e2e/nested/l1"
	"wrenn.dev/internal/testkit"
)

const qemuTests = "/qemu.test"

// TestQEMU runs this machine's QEMU in L1, with KVM. The whole suite runs without KVM
// outside; what is left for here depends on where the guest's processor, its clock and
// its interrupt controllers are.
func TestQEMU(t *testing.T) {
	runInL1(t, amdWithoutXSAVE, func(root, _ string) l1.Plan {
		env := append(putGuest(t, root), "WRENN_CI=1", "WRENN_TEST_KVM=1", "WRENN_TEST_QEMU="+putQEMU(t, root))
		putTests(t, root, map[string]string{qemuTests: "wrenn.dev/internal/vm/qemu", hostTests: "wrenn.dev/e2e"})
		return l1.Plan{Programs: programs([]run{
			{"kvm", qemuTests, []string{"-test.run=" + withKVM}},
			{"host", hostTests, []string{"-test.run=" + hostWithKVM}},
		}, env)}
	})
}

// The host's test restores sandboxes, whose clocks must be right.
const (
	hostWithKVM = "^TestSnapshotAndRestore$"
	withKVM     = "^(TestVMMIsConfined|TestRestored.*)$|^TestConformance$/^(Life|RestoreIntoAnotherSlot|ExclusiveChain|Panic|Killed|AdoptARestoredMachine)$"
)

// putQEMU puts this machine's QEMU below root, with the libraries and the firmware that
// it needs, and returns its path.
func putQEMU(t *testing.T, root string) string {
	t.Helper()
	program, err := exec.LookPath("qemu-system-x86_64")
	testkit.Must(t, err)
	put(t, root, program, program, 0o755)
	for field := range strings.FieldsSeq(output(t, "", "ldd", program)) { // NAME => PATH (ADDRESS), or PATH (ADDRESS)
		if filepath.IsAbs(field) {
			put(t, root, field, field, 0o755)
		}
	}
	for line := range strings.Lines(output(t, "", program, "-L", "help")) {
		firmware, err := filepath.Glob(filepath.Join(strings.TrimSpace(line), "*.bin"))
		testkit.Must(t, err)
		for _, file := range firmware {
			put(t, root, file, file, 0o644)
		}
	}
	return program
}
