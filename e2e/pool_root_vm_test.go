//go:build root && vm

package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// poolingAgent returns an agent whose warm pool has one machine.
func poolingAgent(t *testing.T) *agent {
	t.Helper()
	a := newAgentOn(t, "wstk", "10.230.0.0/16")
	text, err := os.ReadFile(a.config)
	if err == nil {
		err = os.WriteFile(a.config, []byte(strings.Replace(string(text), "machines = 0", "machines = 1", 1)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// awaitPooled waits until the nth machine that was made for the pool is in it.
func (a *agent) awaitPooled(t *testing.T, n int) {
	t.Helper()
	testkit.WaitUntil(t, "a machine was made ahead", func() bool {
		return strings.Count(a.out.String(), "machine made ahead of demand") >= n
	})
}

// machines counts the machines of the agent.
func (a *agent) machines(t *testing.T) int {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(a.dir, "run", "vm", "*", "qmp"))
	if err != nil {
		t.Fatal(err)
	}
	return len(dirs)
}

// Sandboxes on pooled machines are like others: each has its own identity, the right
// time and its environment, and survives pause and resume and the end of its agent.
func TestSandboxesOfThePool(t *testing.T) {
	a := poolingAgent(t)
	a.start(t)
	const who = "cat /proc/sys/kernel/random/boot_id /etc/machine-id; hostname; head -c 16 /dev/urandom | od -An -tx1"
	said := map[string]bool{}
	var id string
	for n := range 2 {
		a.awaitPooled(t, n+1)
		time.Sleep(2 * time.Second) // the guest's clock must not be behind by these
		began := time.Now()
		id = a.create(t, 0)
		took := time.Since(began)
		out := string(a.sh(t, id, "date +%s.%N; echo $COLOR").GetStdout())
		t.Logf("create took %s, the first command ended after %s", took, time.Since(began))
		lines := strings.Fields(out)
		if len(lines) != 2 || lines[1] != "blue" {
			t.Fatalf("the guest says %q", out)
		}
		now, err := strconv.ParseFloat(lines[0], 64)
		if behind := float64(time.Now().UnixNano())/1e9 - now; err != nil || behind < -1 || behind > 1.5 {
			t.Errorf("the guest's clock is %f s behind, %v", behind, err)
		}
		for line := range strings.SplitSeq(strings.TrimSpace(string(a.sh(t, id, who).GetStdout())), "\n") {
			if said[line] {
				t.Errorf("two sandboxes say %q", line)
			}
			said[line] = true
		}
		if !said[id] {
			t.Errorf("the host's name is not %s: %v", id, said)
		}
	}
	if len(said) != 8 {
		t.Errorf("they said %v", said)
	}
	a.sh(t, id, "echo kept >/root/file")
	a.stop(t, syscall.SIGKILL)
	a.start(t)
	for _, call := range []func() error{
		func() error { return nil },
		func() error {
			_, err := a.rpc.PauseSandbox(t.Context(), &pb.PauseSandboxRequest{SandboxId: id})
			return err
		},
		func() error {
			_, err := a.rpc.ResumeSandbox(t.Context(), &pb.ResumeSandboxRequest{SandboxId: id})
			if err == nil && string(a.sh(t, id, "cat /root/file").GetStdout()) != "kept\n" {
				t.Error("the file is missing")
			}
			return err
		},
	} {
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
}

// After an agent is killed with pooled machines, or during a claim, none of them
// is left.
func TestAgentIsKilledWithAStock(t *testing.T) {
	a := poolingAgent(t)
	a.start(t)
	a.awaitPooled(t, 1)
	a.stop(t, syscall.SIGTERM)
	if n := a.machines(t); n != 0 {
		t.Errorf("%d machines after a graceful stop", n)
	}
	for _, point := range []string{
		"", "pool: slot acquired", "pool: machine started", "pool: park done",
		"claim to be recorded", "claim recorded", "disk moved", "pool left", "machine resumed", "running to be recorded",
	} {
		t.Run("at "+point, func(t *testing.T) {
			id := string(wrenn.NewSandboxID())
			a.start(t, "WRENN_TEST_CRASH="+point)
			if !strings.HasPrefix(point, "pool: ") {
				a.awaitPooled(t, 1)
			}
			if point == "" {
				a.stop(t, syscall.SIGKILL)
			} else if !strings.HasPrefix(point, "pool: ") {
				_, err := a.rpc.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: id, MemoryMb: 128})
				if connect.CodeOf(err) != connect.CodeUnavailable {
					t.Errorf("CreateSandbox() = %v, want the error of an agent that died", err)
				}
			}
			a.wait(t)
			a.start(t)
			if info := a.info(t, id); info != nil {
				t.Errorf("the sandbox is %v", info)
			}
			a.stop(t, syscall.SIGTERM)
			if n := a.machines(t); n != 0 {
				t.Errorf("%d machines are left", n)
			}
			if left, _ := filepath.Glob("/run/netns/" + a.prefix + "-*"); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}
