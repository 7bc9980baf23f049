//go:build root && vm

package e2e

import (
	"bytes"
	gocmp "cmp"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/cli/verify"
	"wrenn.dev/internal/host/sandbox"
)

// TestVerifyFork runs the command as a user does. What must differ differs,
// programs that reseed are safe, and what docs/fork-safety.md calls unsafe does
// repeat: otherwise the page would be wrong, or the command would miss it.
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
	checkVerdicts(t, &report, 3)
	t.Logf("took %v ms", report.TookMS)
	s.clean(t, "verify")
}

// checkVerdicts fails unless the report of that many copies agrees with the page.
func checkVerdicts(t *testing.T, report *verify.Report, copies int) {
	t.Helper()
	if !report.OK || len(report.Copies) != copies {
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
}

// verifyAPI implements verify.API with one sandbox of this host. It works only with
// verify.Options.Keep: it does not list or delete sandboxes.
type verifyAPI struct {
	verify.API

	t     *testing.T
	boxes map[string]*sandbox.Sandbox // the first, and its copies
	first string
}

func newVerifyAPI(t *testing.T, sb *sandbox.Sandbox) verifyAPI {
	t.Helper()
	first := string(sb.ID())
	return verifyAPI{t: t, first: first, boxes: map[string]*sandbox.Sandbox{first: sb}}
}

func (a verifyAPI) CreateSandbox(context.Context, client.CreateSandbox) (*client.Sandbox, error) {
	return &client.Sandbox{ID: a.first}, nil
}

func (a verifyAPI) WriteFile(ctx context.Context, id, name string, content io.Reader, _ client.FileOptions) error {
	return a.boxes[id].Guest().WriteFile(ctx, "user", name, content)
}

func (a verifyAPI) Exec(ctx context.Context, id string, cmd client.Command) (*client.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	res, err := a.boxes[id].Guest().Exec(ctx, wrenn.ExecCommand{Cmd: cmd.Cmd, Args: cmd.Args, User: gocmp.Or(cmd.User, "user")})
	if err != nil {
		return nil, err
	}
	return &client.Result{Stdout: res.Stdout, Stderr: res.Stderr, ExitCode: res.ExitCode, Status: res.Status}, nil
}

// Fork leaves the copies to the test, which keeps them until its end.
func (a verifyAPI) Fork(ctx context.Context, id string, n int) ([]string, error) {
	var ids []wrenn.SandboxID
	for range n {
		ids = append(ids, wrenn.NewSandboxID())
	}
	began := time.Now()
	copies, err := a.boxes[id].Fork(ctx, ids, nil)
	if err != nil {
		return nil, err
	}
	a.t.Logf("%d forks after %s", n, time.Since(began))
	var made []string
	for _, c := range copies {
		a.boxes[string(c.ID)] = keep(a.t, c.Sandbox, c.Err)
		made = append(made, string(c.ID))
	}
	return made, nil
}
