package hostclient_test

import (
	"context"
	"errors"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/testkit"
)

func TestFork(t *testing.T) {
	full := wrenn.NewSandboxID()
	agent := &hosttest.Agent{Copy: func(_ context.Context, id string) error {
		if id == string(full) {
			return wrenn.Errorf(wrenn.Exhausted, "no memory\x1b for it")
		}
		return nil
	}}
	c, _ := serve(t, agent, hostclient.Deadlines{})
	id, copied := box(t, c), wrenn.NewSandboxID()
	for range 2 {
		got, err := c.Fork(t.Context(), id, wrenn.ForkSpec{IDs: []wrenn.SandboxID{full, copied}})
		if err != nil || got[1] != nil {
			t.Fatalf("%v, %v", got, err)
		}
		testkit.WantCode(t, got[0], wrenn.Exhausted)
		if got[0].Error() != "no memory\ufffd for it" {
			t.Errorf("it says %q", got[0])
		}
	}
	if n := agent.Creates(); n != 2 || agent.Sandboxes()[copied] != wrenn.ObservedRunning {
		t.Errorf("%d made, %v", n, agent.Sandboxes())
	}
	_, err := c.Fork(t.Context(), wrenn.NewSandboxID(), wrenn.ForkSpec{IDs: []wrenn.SandboxID{copied}})
	testkit.WantCode(t, err, wrenn.NotFound)
}

func TestCheckpoints(t *testing.T) {
	c, _ := serve(t, &hosttest.Agent{}, hostclient.Deadlines{})
	id := box(t, c)
	first, second := wrenn.NewCheckpointID(), wrenn.NewCheckpointID()
	_, err := c.CreateCheckpoint(t.Context(), id, first, "a \x1bname")
	got, err2 := c.CreateCheckpoint(t.Context(), id, second, "")
	if err := errors.Join(err, err2); err != nil || got.ID != second || got.Parent != first || got.CreatedAt.IsZero() || got.SizeBytes == 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := c.RestoreCheckpoint(t.Context(), id, first); err != nil {
		t.Error(err)
	}
	all, err := c.Checkpoints(t.Context(), id)
	if list := all.List; err != nil || all.Head != first || len(list) != 2 || list[0].Name != "a \ufffdname" || list[1].ID != second || list[0].OwnBytes != nil || all.DiskBytes != nil {
		t.Errorf("Checkpoints() = %+v, %v", all, err)
	}
	all, err = c.MeasuredCheckpoints(t.Context(), id)
	if err != nil || all.DiskBytes == nil || *all.DiskBytes != 8192 || all.List[0].OwnBytes == nil || *all.List[0].OwnBytes != 1024 {
		t.Errorf("MeasuredCheckpoints() = %+v, %v", all, err)
	}
	if err := errors.Join(c.DeleteCheckpoint(t.Context(), id, first), c.DeleteCheckpoint(t.Context(), id, first)); err != nil {
		t.Error(err)
	}
	testkit.WantCode(t, c.RestoreCheckpoint(t.Context(), id, first), wrenn.NotFound)
}
