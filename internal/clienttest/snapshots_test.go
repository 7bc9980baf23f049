package clienttest

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane/service"
)

const (
	first  = "s00000000000000000001"
	second = "s00000000000000000002"
)

func (f *fake) ForkSandbox(_ context.Context, _ service.Caller, id wrenn.SandboxID, req service.ForkSandbox) (*service.Forked, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forked = req
	b, err := f.find(id)
	if err != nil {
		return nil, err
	}
	b.Parent = id
	return &service.Forked{
		Sandboxes: []wrenn.Sandbox{*b}, Failed: []service.FailedCopy{{ID: otherID, Err: wrenn.Errorf(wrenn.Exhausted, "no room")}},
	}, nil
}

func (f *fake) CreateCheckpoint(_ context.Context, _ service.Caller, _ wrenn.SandboxID, name string) (*wrenn.Checkpoint, error) {
	return &wrenn.Checkpoint{ID: second, Parent: first, Name: name, CreatedAt: made, SizeBytes: 5}, nil
}

func (f *fake) Checkpoints(_ context.Context, _ service.Caller, id wrenn.SandboxID) (*wrenn.Checkpoints, error) {
	if _, err := f.find(id); err != nil {
		return nil, err
	}
	return &wrenn.Checkpoints{DiskBytes: new(int64(0)), List: []wrenn.Checkpoint{{ID: first, CreatedAt: made, OwnBytes: new(int64(7))}, {ID: second, Parent: first, CreatedAt: made}}, Head: second}, nil
}

func (f *fake) RestoreCheckpoint(_ context.Context, _ service.Caller, id wrenn.SandboxID, cp wrenn.CheckpointID) (*wrenn.Sandbox, error) {
	if cp != first {
		return nil, wrenn.Errorf(wrenn.NotFound, "no such checkpoint")
	}
	return f.find(id)
}

func (f *fake) DeleteCheckpoint(_ context.Context, _ service.Caller, id wrenn.SandboxID, cp wrenn.CheckpointID) error {
	_, err := f.find(id)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deleted = cp
	return err
}

func TestFork(t *testing.T) {
	f := &fake{}
	c := serve(t, f)
	got, err := c.ForkSandbox(t.Context(), boxID, client.Fork{})
	if err != nil || f.forked.Count != 1 || f.forked.Metadata != nil {
		t.Errorf("asked for %+v, %v", f.forked, err)
	}
	want := &client.Forked{
		Sandboxes: []client.Sandbox{{
			ID: boxID, ParentID: boxID, State: client.Running, Template: "base", VCPUs: 1, MemoryMB: 512, DiskMB: 10240, TimeoutSec: 300,
			OnTimeout: client.PauseOnTimeout, AutoResume: true, Metadata: map[string]string{"user": "alice"}, CreatedAt: made, StartedAt: made, UpdatedAt: made,
		}},
		Errors: []client.FailedCopy{{ID: otherID, Code: client.LimitExceeded, Message: "no room"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ForkSandbox() (-want +got):\n%s", diff)
	}
	if _, err := c.ForkSandbox(t.Context(), boxID, client.Fork{Count: 7, Metadata: map[string]string{"a": "b"}, Checkpoint: "s" + otherID[1:]}); err != nil || f.forked.Count != 7 || string(f.forked.Checkpoint) != "s"+otherID[1:] || f.forked.Metadata["a"] != "b" {
		t.Errorf("asked for %+v, %v", f.forked, err)
	}
	if _, err := c.ForkSandbox(t.Context(), otherID, client.Fork{}); client.CodeOf(err) != client.NotFound {
		t.Errorf("fork of an unknown sandbox: %v", err)
	}
}

func TestCheckpoints(t *testing.T) {
	f := &fake{}
	c := serve(t, f)
	got, err := c.CreateCheckpoint(t.Context(), boxID, "a b")
	if diff := cmp.Diff(&client.Checkpoint{ID: second, ParentID: first, Name: "a b", CreatedAt: made, SizeBytes: 5}, got); diff != "" || err != nil {
		t.Errorf("CreateCheckpoint(): %v (-want +got):\n%s", err, diff)
	}
	all, err := c.Checkpoints(t.Context(), boxID)
	want := &client.Checkpoints{DiskBytes: new(int64(0)), Checkpoints: []client.Checkpoint{{ID: first, CreatedAt: made, OwnBytes: new(int64(7))}, {ID: second, ParentID: first, CreatedAt: made}}, Head: second}
	if diff := cmp.Diff(want, all); diff != "" || err != nil {
		t.Errorf("Checkpoints(): %v (-want +got):\n%s", err, diff)
	}
	if box, err := c.RestoreCheckpoint(t.Context(), boxID, first); err != nil || box.ID != boxID {
		t.Errorf("RestoreCheckpoint() = %v, %v", box, err)
	}
	if _, err := c.RestoreCheckpoint(t.Context(), boxID, second); client.CodeOf(err) != client.NotFound {
		t.Errorf("restore to an unknown checkpoint: %v", err)
	}
	if err := c.DeleteCheckpoint(t.Context(), boxID, first); err != nil || f.deleted != first {
		t.Errorf("deleted %q, %v", f.deleted, err)
	}
	if err := c.DeleteCheckpoint(t.Context(), boxID, "../.."); client.CodeOf(err) != client.NotFound {
		t.Errorf("a path as id: %v", err)
	}
}

func TestPauseOnTimeout(t *testing.T) {
	f := &fake{}
	c := serve(t, f)
	if _, err := c.CreateSandbox(t.Context(), client.CreateSandbox{Timeout: time.Minute, OnTimeout: client.PauseOnTimeout, AutoResume: true}); err != nil {
		t.Fatal(err)
	}
	want := service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{
		EndOfLife: wrenn.EndOfLife{Timeout: time.Minute, OnTimeout: wrenn.PauseOnTimeout}, AutoResume: true,
	}}
	if diff := cmp.Diff(want, f.created); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
}
