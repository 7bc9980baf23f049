//go:build root && vm

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// A paused sandbox whose files are copied to another host can be resumed there,
// while the first host still has its own.
func TestPausedSandboxIsCopiedToAnotherHost(t *testing.T) {
	from, to := newAgent(t), newAgentOn(t, "wmove", "10.244.0.0/16")
	to.start(t) // makes its store
	to.stop(t, syscall.SIGTERM)
	from.start(t)
	id := from.create(t, 0)
	from.sh(t, id, settle)
	if _, err := from.rpc.PauseSandbox(t.Context(), &pb.PauseSandboxRequest{SandboxId: id}); err != nil {
		t.Fatal(err)
	}
	from.stop(t, syscall.SIGTERM)
	copySandbox(t, from, to, id)
	to.start(t)
	if s := to.info(t, id).GetStatus(); s != pb.SandboxStatus_SANDBOX_STATUS_PAUSED {
		t.Fatalf("on the other host it is %s", s)
	}
	if _, err := to.rpc.ResumeSandbox(t.Context(), &pb.ResumeSandboxRequest{SandboxId: id}); err != nil {
		t.Fatal(err)
	}
	if r := to.sh(t, id, state); string(r.GetStdout()) != settled {
		t.Errorf("on the other host it holds %q", r.GetStdout())
	}
	from.start(t)
	if s := from.info(t, id).GetStatus(); s != pb.SandboxStatus_SANDBOX_STATUS_PAUSED {
		t.Errorf("on the first host it is %s", s)
	}
	for _, a := range []*agent{from, to} {
		if _, err := a.rpc.DestroySandbox(t.Context(), &pb.DestroySandboxRequest{SandboxId: id}); err != nil {
			t.Error(err)
		}
		a.stop(t, syscall.SIGTERM)
	}
}

// copySandbox copies a sandbox between stopped agents, as docs/snapshots.md tells
// operators to do.
func copySandbox(t *testing.T, from, to *agent, id string) {
	t.Helper()
	for _, a := range []*agent{from, to} {
		store := filepath.Join(a.dir, "state", "store")
		if _, err := os.Stat(store + ".xfs"); err == nil {
			command(t, "mount", "-o", "loop", store+".xfs", store)
			defer command(t, "umount", store)
		}
	}
	copied := 0
	for _, pattern := range []string{"sandboxes/" + id, "snapshots/s*", "store/sandboxes/" + id, "store/snapshots/s*"} {
		found, err := filepath.Glob(filepath.Join(from.dir, "state", pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			command(t, "cp", "-a", "--sparse=always", path, filepath.Join(to.dir, "state", filepath.Dir(pattern)))
		}
		copied += len(found)
	}
	if copied != 2 {
		t.Fatalf("%d directories were copied, want a journal's and a snapshot's", copied)
	}
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, args, err, out)
	}
}
