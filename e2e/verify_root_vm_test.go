//go:build root && vm

package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn/internal/verify"
)

// TestVerifyFork runs the command as a user does. What must differ differs,
// programs that reseed are safe, and what the page calls unsafe is: were it
// not, the page would be wrong, or the command blind.
func TestVerifyFork(t *testing.T) {
	s := newStack(t, "wver", "10.231.0.0/16")
	cmd := exec.CommandContext(t.Context(), "../bin/wrenn", "--url", s.url, "-o", "json", "verify", "fork", "--count", "3")
	cmd.Env = append(os.Environ(), "WRENN_API_KEY="+s.key)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("wrenn verify fork: %v: %s", err, errOut.Bytes())
	}
	var report verify.Report
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !report.OK || len(report.Copies) != 3 {
		t.Errorf("ok %v, copies %q", report.OK, report.Copies)
	}
	want := map[string]verify.Verdict{
		"kernel.tcp_sequence": verify.Warning,
		"plain.random":        verify.Warning, "plain.uuid1": verify.Warning,
		"plain.openssl": verify.Warning, "plain.tls_random": verify.Warning, "plain.tls_key": verify.Warning,
		"links.tls_record": verify.Warning,
		"node.random":      verify.Skipped, "node.random_bytes": verify.Skipped, "node.uuid": verify.Skipped,
		"node.uuid_uncached": verify.Skipped, "node.key": verify.Skipped, "links.outside": verify.Skipped,
	}
	got := map[string]verify.Verdict{}
	for _, r := range report.Results {
		t.Logf("%-8s %-20s %s", r.Verdict, r.Name, r.Found)
		// A port may be taken in one copy by chance, and how right a clock is depends on how busy this machine is.
		chance := r.Name == "kernel.tcp_port" || r.Name == "kernel.time" && r.Verdict == verify.Warning
		if r.Verdict != verify.Good && !chance {
			got[r.Name] = r.Verdict
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("verdicts that are not ok (-want +got):\n%s", diff)
	}
	t.Logf("took %v ms", report.TookMS)
	s.clean(t, "verify")
}
