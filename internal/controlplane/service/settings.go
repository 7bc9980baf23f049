package service

import (
	"context"
	"errors"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
)

// ChangeSandbox is what changes of the settings of a sandbox; nil stays as it is.
type ChangeSandbox struct {
	OnTimeout       *wrenn.OnTimeout
	AutoResume      *bool
	OnHostLoss      *wrenn.OnHostLoss
	CheckpointEvery *time.Duration // 0 is never
}

// ChangeSandbox changes settings of a running or paused sandbox. The row counts: a host that
// cannot be reached is told by the reconciler. FailedPrecondition, and nothing changes, when the
// host's agent is of a version that cannot.
func (s *Sandboxes) ChangeSandbox(ctx context.Context, c Caller, id wrenn.SandboxID, change ChangeSandbox) (*wrenn.Sandbox, error) {
	ctx, cancel := detach(ctx, s.deadlines.Extend)
	defer cancel()
	for attempt := 1; ; attempt++ {
		sb, host, err := s.locate(ctx, c, id, wrenn.Running, wrenn.Paused)
		if err != nil {
			return nil, err
		}
		want, loss := change.apply(sb)
		if err := checkSettings(want, loss, len(sb.Volumes) > 0); err != nil {
			return nil, err
		}
		changed, err := s.store.SetSettings(ctx, sb, want, loss, c.actor())
		switch {
		case errors.Is(err, postgres.ErrConflict) && attempt < casAttempts:
			continue
		case err != nil || want == sb.Settings():
			return changed, err
		}
		switch err := host.SetSettings(ctx, id, want); wrenn.CodeOf(err) {
		case wrenn.NotFound:
			s.reconciler.Notify(sb.Host)
			return nil, lostError(sb)
		case wrenn.FailedPrecondition:
			_, undo := s.store.SetSettings(ctx, changed, sb.Settings(), sb.OnHostLoss, c.actor())
			s.handToReconcilerIfUnsure(ctx, changed, undo)
			return nil, err
		}
		return changed, nil // on another error the reconciler tells the host
	}
}

// apply returns the settings of a sandbox after the change.
func (change ChangeSandbox) apply(sb *wrenn.Sandbox) (wrenn.Settings, wrenn.OnHostLoss) {
	want, loss := sb.Settings(), sb.OnHostLoss
	if change.OnTimeout != nil {
		want.OnTimeout = *change.OnTimeout
	}
	if change.AutoResume != nil {
		want.AutoResume = *change.AutoResume
	}
	if change.CheckpointEvery != nil {
		want.CheckpointEvery = *change.CheckpointEvery
	}
	if change.OnHostLoss != nil {
		loss = *change.OnHostLoss
	}
	return want, loss
}

// checkSettings returns an Invalid error for settings that a sandbox cannot have.
func checkSettings(s wrenn.Settings, loss wrenn.OnHostLoss, volumes bool) error {
	if s.OnTimeout != wrenn.DestroyOnTimeout && !s.OnTimeout.Pauses() {
		return wrenn.Errorf(wrenn.Invalid, "invalid action at the timeout %.20q: use %s, %s or %s",
			string(s.OnTimeout), wrenn.DestroyOnTimeout, wrenn.PauseOnTimeout, wrenn.PauseDiskOnTimeout)
	}
	if loss != wrenn.FailOnHostLoss && loss != wrenn.RestoreOnHostLoss {
		return wrenn.Errorf(wrenn.Invalid, "invalid on_host_loss %.20q: use %s or %s", string(loss), wrenn.FailOnHostLoss, wrenn.RestoreOnHostLoss)
	}
	if volumes && (loss == wrenn.RestoreOnHostLoss || s.CheckpointEvery > 0) {
		return wrenn.Errorf(wrenn.Invalid, "a sandbox with volumes is not stored, so it can have no on_host_loss of %s and no checkpoint_every: its volumes are on one host", wrenn.RestoreOnHostLoss)
	}
	return wrenn.CheckCheckpointEvery(s.CheckpointEvery)
}
