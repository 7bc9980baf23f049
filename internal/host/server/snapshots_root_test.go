//go:build root

package server_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm/vmfake"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// Copies run, each under the id that the caller chose; those that do not say why.
func TestForks(t *testing.T) {
	c := call(t, agenttest.Config{Slots: 4, Limits: sandbox.Limits{Sandboxes: 3}})
	id := string(wrenn.NewSandboxID())
	_, err := c.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{
		SandboxId: id, TimeoutSec: 60, OnTimeout: pb.OnTimeout_ON_TIMEOUT_PAUSE, AutoResume: true,
	})
	testkit.Must(t, err)
	ids := []string{string(wrenn.NewSandboxID()), string(wrenn.NewSandboxID()), string(wrenn.NewSandboxID())}
	made := map[string]bool{}
	for range 2 { // as after a lost answer
		resp, err := c.ForkSandbox(t.Context(), &pb.ForkSandboxRequest{SandboxId: id, NewIds: ids})
		testkit.Must(t, err)
		for i, r := range resp.GetResults() {
			switch {
			case r.GetSandboxId() != ids[i]:
				t.Errorf("result %d is of %s", i, r.GetSandboxId())
			case r.GetCode() == "":
				made[ids[i]] = true
			case r.GetCode() != "resource_exhausted" || !strings.Contains(r.GetMessage(), "at its limit of 3 sandboxes"):
				t.Errorf("%v", r)
			}
		}
	}
	list := c.list(t)
	if len(made) != 2 || len(list) != 3 {
		t.Fatalf("made %v, there is %v", made, list)
	}
	for id := range made {
		info := list[id]
		if info.GetStatus() != pb.SandboxStatus_SANDBOX_STATUS_RUNNING || info.GetTimeoutSec() != 60 || info.GetOnTimeout() != pb.OnTimeout_ON_TIMEOUT_PAUSE || !info.GetAutoResume() {
			t.Errorf("copy: %v", info)
		}
		_, err := c.Exec(t.Context(), &pb.ExecRequest{SandboxId: id, Cmd: "true", User: "root"})
		testkit.Must(t, err)
	}
	for name, ids := range map[string][]string{"none": nil, "twice": {ids[0], ids[0]}, "no id": {"../../etc"}, "itself": {id}, "too many": make([]string, 101)} {
		_, err := c.ForkSandbox(t.Context(), &pb.ForkSandboxRequest{SandboxId: id, NewIds: ids})
		if connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The cause of a copy's failure is the operator's.
func TestAForkThatFailsTellsNoCause(t *testing.T) {
	var broken atomic.Bool
	c := call(t, agenttest.Config{Hook: func(s vmfake.Step) error {
		if broken.Load() {
			return vmfake.FailAt(vmfake.StepBoot)(s)
		}
		return nil
	}})
	id := c.create(t)
	broken.Store(true)
	resp, err := c.ForkSandbox(t.Context(), &pb.ForkSandboxRequest{SandboxId: id, NewIds: []string{string(wrenn.NewSandboxID())}})
	testkit.Must(t, err)
	if r := resp.GetResults()[0]; r.GetCode() != "internal" || r.GetMessage() != "internal error" {
		t.Errorf("%v", r)
	}
	if list := c.list(t); len(list) != 1 || list[id].GetStatus() != pb.SandboxStatus_SANDBOX_STATUS_RUNNING {
		t.Errorf("there is %v", list)
	}
}

func TestCheckpointsOfAHost(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := c.create(t)
	var ids []string
	for i, name := range []string{"first", ""} {
		ids = append(ids, string(wrenn.NewCheckpointID()))
		for range 2 {
			resp, err := c.CreateCheckpoint(t.Context(), &pb.CreateCheckpointRequest{SandboxId: id, CheckpointId: ids[i], Name: name})
			testkit.Must(t, err)
			if cp := resp.GetCheckpoint(); cp.GetId() != ids[i] || cp.GetName() != name || cp.GetCreatedAtUnixMs() == 0 || cp.GetSizeBytes() == 0 {
				t.Errorf("made %v", cp)
			}
		}
	}
	tree := func() string {
		t.Helper()
		resp, err := c.ListCheckpoints(t.Context(), &pb.ListCheckpointsRequest{SandboxId: id})
		testkit.Must(t, err)
		var b strings.Builder
		for _, cp := range resp.GetCheckpoints() {
			fmt.Fprintf(&b, "%s<-%s ", cp.GetParent(), cp.GetId())
		}
		return b.String() + resp.GetHead()
	}
	if got, want := tree(), fmt.Sprintf("<-%s %[1]s<-%[2]s %[2]s", ids[0], ids[1]); got != want {
		t.Errorf("tree %s, want %s", got, want)
	}
	_, err := c.RestoreCheckpoint(t.Context(), &pb.RestoreCheckpointRequest{SandboxId: id, CheckpointId: ids[0]})
	testkit.Must(t, err)
	if got := tree(); !strings.HasSuffix(got, " "+ids[0]) {
		t.Errorf("gone back: %s", got)
	}
	for range 2 {
		_, err = c.DeleteCheckpoint(t.Context(), &pb.DeleteCheckpointRequest{SandboxId: id, CheckpointId: ids[0]})
		testkit.Must(t, err)
	}
	if got, want := tree(), fmt.Sprintf("<-%s ", ids[1]); got != want {
		t.Errorf("tree %s, want %s", got, want)
	}
	_, err = c.RestoreCheckpoint(t.Context(), &pb.RestoreCheckpointRequest{SandboxId: id, CheckpointId: ids[0]})
	testkit.WantRPCCode(t, err, connect.CodeNotFound, ids[0])
	for _, bad := range []string{"", "../../etc", strings.Repeat("s", 64)} {
		_, err = c.CreateCheckpoint(t.Context(), &pb.CreateCheckpointRequest{SandboxId: id, CheckpointId: bad})
		testkit.WantRPCCode(t, err, connect.CodeInvalidArgument, "")
	}
}

// One wake for all who call, whatever they want.
func TestUseWakes(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := string(wrenn.NewSandboxID())
	_, err := c.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: id, AutoResume: true})
	testkit.Must(t, err)
	_, err = c.PauseSandbox(t.Context(), &pb.PauseSandboxRequest{SandboxId: id})
	testkit.Must(t, err)
	path := filepath.Join(t.TempDir(), "file")
	var callers sync.WaitGroup
	for i := range 20 {
		callers.Go(func() {
			var err error
			if i%2 == 0 {
				_, err = c.Exec(t.Context(), &pb.ExecRequest{SandboxId: id, Cmd: "true", User: "root"})
			} else {
				_, err = c.WriteFile(t.Context(), &pb.WriteFileRequest{SandboxId: id, Path: path, User: "root"})
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	if n := len(c.agent.World.Running()); n != 1 {
		t.Errorf("%d machines", n)
	}
	_, err = c.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: string(wrenn.NewSandboxID()), OnTimeout: 99})
	testkit.WantRPCCode(t, err, connect.CodeInvalidArgument, "on_timeout")
}
