//go:build root

package sandbox

import (
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// TestEpochs: an agent refuses calls for another epoch than the sandbox has, also after a
// restart, and what another host fetches gets its own.
func TestEpochs(t *testing.T) {
	s := newObjects(t)
	l, spec := storedLab(t, s)
	l.cfg.Adopt = true
	m := l.open(t)
	stop := running(t, m)
	spec.Epoch = 3
	sb := ensure(t, m, spec)
	at := func(epoch wrenn.Epoch) func(sb *Sandbox) map[string]error {
		return func(sb *Sandbox) map[string]error {
			ctx := WithEpoch(t.Context(), epoch)
			_, use := sb.Use(ctx)
			_, fork := sb.Fork(ctx, []wrenn.SandboxID{wrenn.NewSandboxID()}, nil)
			_, checkpoint := sb.Checkpoint(ctx, "", "")
			return map[string]error{
				"use": use, "fork": fork, "checkpoint": checkpoint, "pause": sb.Pause(ctx), "resume": sb.Resume(ctx), "boot": sb.Boot(ctx, ""),
				"extend": sb.Extend(ctx, 0), "network": sb.SetNetwork(ctx, wrenn.NetworkPolicy{}, wrenn.SecretValues{}),
				"restore": sb.RestoreCheckpoint(ctx, "c1"), "delete": sb.DeleteCheckpoint(ctx, "c1"), "destroy": sb.Destroy(ctx),
			}
		}
	}
	refused := func(sb *Sandbox, epoch wrenn.Epoch, words ...string) {
		t.Helper()
		for name, err := range at(epoch)(sb) {
			if wrenn.CodeOf(err) != wrenn.Unavailable {
				t.Errorf("%s for epoch %d: %v", name, epoch, err)
			}
		}
		testkit.WantCode(t, sb.CheckEpoch(WithEpoch(t.Context(), epoch)), wrenn.Unavailable, words...)
	}
	refused(sb, 2, "was moved", "epoch 2", "epoch 3")
	refused(sb, 4, "was moved")
	wantStatus(t, sb, StatusRunning, "")
	must(t, sb.Pause(WithEpoch(t.Context(), 3)))
	stored := waitStored(t, sb)
	stop()
	m.Close()
	l.crash(t)
	m = l.open(t)
	t.Cleanup(m.Close)
	sb, err := m.Get(sb.ID())
	must(t, err)
	destroyLater(t, sb)
	if got := sb.Info(); got.Epoch != 3 || got.SupersededBy != 0 {
		t.Errorf("after a restart: %+v", got)
	}
	refused(sb, 2)

	b, _ := storedLab(t, s)
	other := b.open(t)
	for _, epoch := range []wrenn.Epoch{4, 5} { // twice is allowed
		moved, err := other.Fetch(t.Context(), sb.ID(), wrenn.StoredSandbox{Team: team, Key: stored.Key, Epoch: epoch})
		must(t, err)
		if got := moved.Info().Epoch; got != epoch {
			t.Errorf("it was fetched with epoch %d", got)
		}
	}
	moved, err := other.Get(sb.ID())
	must(t, err)
	destroyLater(t, moved)
	refused(moved, 3)
	must(t, moved.Resume(WithEpoch(t.Context(), 5)))
}

// TestSuperseded: an old copy that runs is paused with everything in it, and neither a late
// call nor its use wakes it. An operator can.
func TestSuperseded(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb := ensure(t, m, wrenn.SandboxSpec{Size: small, AutoResume: true, Epoch: 1})
	destroyLater(t, sb)
	must(t, l.mark(t.Context(), sb, 'x'))
	for range 2 { // twice is allowed
		must(t, sb.PauseBy(t.Context(), wrenn.PauseOptions{Hold: true, Guest: wrenn.PauseIfAble, SupersededBy: 2}))
	}
	wantStatus(t, sb, StatusPaused, "")
	if got := sb.Info(); got.Epoch != 1 || got.SupersededBy != 2 {
		t.Errorf("%+v", got)
	}
	for _, epoch := range []wrenn.Epoch{1, 2} {
		testkit.WantCode(t, sb.Resume(WithEpoch(t.Context(), epoch)), wrenn.Unavailable, "old copy", "epoch 2 supersedes")
		testkit.WantCode(t, sb.Destroy(WithEpoch(t.Context(), epoch)), wrenn.Unavailable)
	}
	_, err := sb.Use(t.Context())
	testkit.WantCode(t, err, wrenn.Unavailable)
	must(t, sb.PauseBy(t.Context(), wrenn.PauseOptions{Epoch: 3})) // it shall be the sandbox again
	must(t, sb.Resume(WithEpoch(t.Context(), 3)))
	l.wantMark(t, sb, 'x')
}

// TestWithoutEpochs: callers and sandboxes of versions before epochs.
func TestWithoutEpochs(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
	destroyLater(t, sb)
	must(t, sb.Pause(WithEpoch(t.Context(), 7)))
	must(t, sb.Resume(t.Context()))
	wantStatus(t, sb, StatusRunning, "")
}
