package cli

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/testkit"
)

// TestProduction: what a host of hostile tenants must not have is a problem, each by itself.
func TestProduction(t *testing.T) {
	good := map[string]string{
		"proc/swaps": "Filename Type Size\n", "proc/cmdline": "quiet", "proc/cpuinfo": "processor\t: 0\nmicrocode\t: 0x1\n",
		"sys/kernel/mm/ksm/run": "0\n", "sys/devices/system/cpu/smt/active": "0\n",
		"sys/devices/system/cpu/vulnerabilities/mds": "Mitigation: Clear CPU buffers\n", "sys/devices/system/cpu/vulnerabilities/l1tf": "Not affected\n",
		"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n", "proc/sys/net/netfilter/nf_conntrack_max": "1048576\n",
	}
	for _, test := range []struct {
		subject, file, text, verdict string
	}{
		{"", "", "", ""},
		{"swap", "proc/swaps", "Filename Type Size\n/dev/sda2 partition 1\n", problem},
		{"ksm", "sys/kernel/mm/ksm/run", "1\n", problem},
		{"smt", "sys/devices/system/cpu/smt/active", "1\n", problem},
		{"mitigations", "proc/cmdline", "quiet mitigations=off", problem},
		{"mitigations", "sys/devices/system/cpu/vulnerabilities/mds", "Vulnerable: no microcode\n", problem},
		{"cgroup", "sys/fs/cgroup/cgroup.controllers", "cpu memory\n", problem},
		{"connections", "proc/sys/net/netfilter/nf_conntrack_max", "65536\n", advice},
	} {
		root := t.TempDir()
		files := maps.Clone(good)
		if test.file != "" {
			files[test.file] = test.text
		}
		for path, text := range files {
			testkit.Must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755))
			testkit.Must(t, os.WriteFile(filepath.Join(root, path), []byte(text), 0o644))
		}
		p := &production{root: root, state: root, kvm: finding{Verdict: fine}, synchronized: func() (bool, error) { return true, nil }}
		want := map[string]string{
			"boundary": fine, "swap": fine, "ksm": fine, "smt": fine, "mitigations": fine, "microcode": advice, "cgroup": fine,
			"connections": fine, "time": fine, "disk quota": advice,
		}
		if test.subject != "" {
			want[test.subject] = test.verdict
		}
		if diff := cmp.Diff(want, verdictsOf(t, p)); diff != "" {
			t.Errorf("%s: %s", test.file, diff)
		}
	}
}

func TestProductionWithoutBoundary(t *testing.T) {
	p := &production{root: t.TempDir(), state: t.TempDir(), kvm: finding{Verdict: advice}, synchronized: func() (bool, error) { return false, nil }}
	got := verdictsOf(t, p)
	if got["boundary"] != problem || got["time"] != problem || got["cgroup"] != problem {
		t.Error(got)
	}
	p.synchronized = func() (bool, error) { return false, errors.New("no") }
	if got := verdictsOf(t, p); got["time"] != advice {
		t.Error(got)
	}
	if _, err := clockSynchronized(); err != nil {
		t.Log(err) // the machine may forbid it
	}
}

func verdictsOf(t *testing.T, p *production) map[string]string {
	t.Helper()
	got := map[string]string{}
	for _, c := range p.checks() {
		f := c.look(t.Context())
		got[c.subject] = f.Verdict
		if f.Verdict == problem && (f.Found == "" || f.Do == "") {
			t.Errorf("%s does not say what to do: %+v", c.subject, f)
		}
	}
	return got
}
