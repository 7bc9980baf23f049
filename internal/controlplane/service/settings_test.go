package service_test

import (
	"context"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

// TestChangeSandbox: a change reaches the row and the host, also one that did not answer; what
// is not given stays.
func TestChangeSandbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storing())
	away := false
	w.on("h1").Before = func(_ context.Context, method, _ string) error {
		if method == "SetSandboxSettings" && away {
			return wrenn.Errorf(wrenn.Unavailable, "the network is away")
		}
		return nil
	}
	s, _ := w.replica(t, nil)
	sb, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{AutoResume: true}})
	testkit.Must(t, err)
	changed, err := s.ChangeSandbox(t.Context(), w.caller, sb.ID, service.ChangeSandbox{OnHostLoss: new(wrenn.RestoreOnHostLoss), CheckpointEvery: new(5 * time.Minute)})
	testkit.Must(t, err)
	if changed.OnHostLoss != wrenn.RestoreOnHostLoss || changed.CheckpointEvery != 5*time.Minute || !changed.AutoResume || changed.OnTimeout != sb.OnTimeout || changed.State != wrenn.Running {
		t.Errorf("%+v", changed)
	}
	if on := w.on("h1").Settings(sb.ID); on.GetCheckpointEverySec() != 300 || !on.GetAutoResume() {
		t.Errorf("its host follows %v", on)
	}
	_, err = s.PauseSandbox(t.Context(), w.caller, sb.ID)
	testkit.Must(t, err)
	away = true
	changed, err = s.ChangeSandbox(t.Context(), w.caller, sb.ID, service.ChangeSandbox{AutoResume: new(false), CheckpointEvery: new(time.Duration(0)), OnTimeout: new(wrenn.PauseOnTimeout)})
	testkit.Must(t, err)
	if changed.AutoResume || changed.CheckpointEvery != 0 || changed.OnTimeout != wrenn.PauseOnTimeout || changed.State != wrenn.Paused {
		t.Errorf("%+v", changed)
	}
	away = false
	w.on("h1").Announce()
	testkit.WaitUntil(t, "the reconciler has told the host", func() bool {
		on := w.on("h1").Settings(sb.ID)
		return !on.GetAutoResume() && on.GetCheckpointEverySec() == 0
	})

	for want, change := range map[string]service.ChangeSandbox{
		"use fail or restore": {OnHostLoss: new(wrenn.OnHostLoss("pray"))},
		"every 1m0s to":       {CheckpointEvery: new(time.Second)},
		"at the timeout":      {OnTimeout: new(wrenn.OnTimeout("explode"))},
	} {
		_, err := s.ChangeSandbox(t.Context(), w.caller, sb.ID, change)
		testkit.WantCode(t, err, wrenn.Invalid, want)
	}
	_, err = s.ChangeSandbox(t.Context(), w.team(t, "other"), sb.ID, service.ChangeSandbox{AutoResume: new(true)})
	testkit.WantCode(t, err, wrenn.NotFound)
	testkit.Must(t, s.DeleteSandbox(t.Context(), w.caller, sb.ID))
	_, err = s.ChangeSandbox(t.Context(), w.caller, sb.ID, service.ChangeSandbox{AutoResume: new(true)})
	testkit.WantCode(t, err, wrenn.FailedPrecondition)
}

// TestChangeOnAnOldHost: a host that cannot change settings leaves the row as it was.
func TestChangeOnAnOldHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storing())
	w.on("h1").Before = func(_ context.Context, method, _ string) error {
		if method == "SetSandboxSettings" {
			return wrenn.Errorf(wrenn.FailedPrecondition, "its agent must be updated")
		}
		return nil
	}
	s, _ := w.replica(t, nil)
	sb := create(t, s, w.caller)
	_, err := s.ChangeSandbox(t.Context(), w.caller, sb.ID, service.ChangeSandbox{AutoResume: new(true), OnHostLoss: new(wrenn.RestoreOnHostLoss)})
	testkit.WantCode(t, err, wrenn.FailedPrecondition, "updated")
	now, err := s.Sandbox(t.Context(), w.caller, sb.ID)
	if err != nil || now.AutoResume || now.OnHostLoss != sb.OnHostLoss {
		t.Errorf("%+v, %v", now, err)
	}
	now, err = s.ChangeSandbox(t.Context(), w.caller, sb.ID, service.ChangeSandbox{OnHostLoss: new(wrenn.RestoreOnHostLoss)}) // which is the row's alone
	if err != nil || now.OnHostLoss != wrenn.RestoreOnHostLoss {
		t.Errorf("%+v, %v", now, err)
	}
}
