package service

import (
	"context"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/controlplane/postgres"
)

// Snapshots are the use cases of copies and checkpoints.
type Snapshots struct{ *core }

// CreateCheckpoint keeps the present state of a running sandbox, which continues.
// A paused one with AutoResume is resumed first. The name is for people and may be empty.
func (s *Snapshots) CreateCheckpoint(ctx context.Context, c Caller, id wrenn.SandboxID, name string) (*wrenn.Checkpoint, error) {
	if len(name) > wrenn.MaxCheckpointNameBytes || !wrenn.IsText(name) {
		return nil, wrenn.Errorf(wrenn.Invalid, "the name of a checkpoint is text of at most %d bytes", wrenn.MaxCheckpointNameBytes)
	}
	defer s.used.add(id)
	var cp wrenn.Checkpoint
	err := s.onHost(ctx, c, id, func(host *hostclient.Client) (err error) {
		cp, err = host.CreateCheckpoint(ctx, id, wrenn.NewCheckpointID(), name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &cp, nil
}

// Checkpoints returns a sandbox's checkpoints, which its host keeps; no row has them. One
// that has ended, or has not started, has none, but one that failed the newest that is stored, if it can be restored.
func (s *Snapshots) Checkpoints(ctx context.Context, c Caller, id wrenn.SandboxID) (*wrenn.Checkpoints, error) {
	sb, err := s.store.TeamSandbox(ctx, c.Team, id)
	if err != nil {
		return nil, err
	}
	switch sb.State {
	case wrenn.Running, wrenn.Pausing, wrenn.Paused, wrenn.Resuming:
	default:
		return leftOf(sb), nil
	}
	host, err := s.hosts.clientOf(sb)
	if err != nil {
		return nil, err
	}
	all, err := host.MeasuredCheckpoints(ctx, id)
	if err != nil {
		return nil, err
	}
	return &all, nil
}

// RestoreCheckpoint takes a sandbox back to a checkpoint. Its present state is
// lost; no checkpoint is. A paused sandbox stays paused. When it fails the
// sandbox continues as before. NotFound when it has no such checkpoint.
// A sandbox that failed continues from its newest stored checkpoint, on a host that fits.
// If it cannot run there it stays paused at the checkpoint, which the error says.
func (s *Snapshots) RestoreCheckpoint(ctx context.Context, c Caller, id wrenn.SandboxID, cp wrenn.CheckpointID) (*wrenn.Sandbox, error) {
	sb, err := s.find(ctx, c, id, wrenn.Running, wrenn.Paused, wrenn.Failed)
	if err != nil {
		return nil, err
	}
	if sb.State == wrenn.Failed {
		return s.restoreFailed(ctx, c, sb, cp)
	}
	sb, host, err := s.placeToRestore(ctx, c, sb)
	if err != nil {
		return nil, err
	}
	if err := host.RestoreCheckpoint(ctx, id, cp); err != nil {
		return nil, err
	}
	s.used.add(id)
	return sb, nil
}

// placeToRestore returns the host of a sandbox. One that is paused and stored gets another
// host, which fetches it, if its own cannot be reached.
func (s *Snapshots) placeToRestore(ctx context.Context, c Caller, sb *wrenn.Sandbox) (*wrenn.Sandbox, *hostclient.Client, error) {
	if sb.State == wrenn.Paused && sb.Stored.Key != "" && !s.hosts.answers(ctx, sb.Host) {
		return s.moveStored(ctx, c, sb)
	}
	host, err := s.hosts.clientOf(sb)
	return sb, host, err
}

// canBeRestored reports whether a sandbox failed and can continue from a stored checkpoint.
// One in quarantine is an operator's.
func canBeRestored(sb *wrenn.Sandbox) bool {
	return sb.State == wrenn.Failed && sb.Newest.Stored.Key != "" && sb.EndCause != wrenn.CauseQuarantined
}

// leftOf returns the checkpoint of a failed sandbox that it can be restored from.
func leftOf(sb *wrenn.Sandbox) *wrenn.Checkpoints {
	if !canBeRestored(sb) {
		return &wrenn.Checkpoints{}
	}
	return &wrenn.Checkpoints{List: []wrenn.Checkpoint{{ID: sb.Newest.ID, CreatedAt: sb.Newest.Stored.At, Stored: sb.Newest.Stored}}, Head: sb.Newest.ID}
}

// notLeft is the error of a request for another checkpoint of a failed sandbox.
func notLeft(sb *wrenn.Sandbox, cp wrenn.CheckpointID) error {
	return wrenn.Errorf(wrenn.NotFound, "sandbox %s failed, and of its checkpoints the newest that is stored is left, which is %s, not %.80q", sb.ID, sb.Newest.ID, cp)
}

// restoreFailed has a sandbox that failed continue from its newest stored checkpoint. Its row
// is paused first: whatever happens then, the sandbox can be resumed from the checkpoint.
func (s *Snapshots) restoreFailed(ctx context.Context, c Caller, sb *wrenn.Sandbox, cp wrenn.CheckpointID) (*wrenn.Sandbox, error) {
	switch {
	case !canBeRestored(sb):
		return nil, wrongState(sb, wrenn.Running)
	case cp != sb.Newest.ID:
		return nil, notLeft(sb, cp)
	}
	stored := sb.Newest.Stored
	paused, err := s.store.RestoreSandbox(ctx, sb, s.limits.Limits, postgres.Move{
		To: wrenn.Paused, Stored: stored, MovedKey: stored.Key, Actor: c.actor(), Reason: "restored from checkpoint " + string(cp),
	})
	if err != nil {
		return nil, err
	}
	moved, host, err := s.moveStored(ctx, c, paused)
	if wrenn.CodeOf(err) == wrenn.NotFound { // it is not in the store any more
		s.failAgain(ctx, c, sb, paused)
		return nil, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the checkpoint is not in the snapshot store any more: " + messageOf(err, "it is missing"), Err: err}
	}
	var now *wrenn.Sandbox
	if err == nil {
		now, err = s.tryTransition(ctx, c, moved, host, resuming)
	}
	if err != nil {
		return nil, &wrenn.Error{Code: wrenn.CodeOf(err), Message: "the sandbox is paused at the checkpoint and does not run yet, resume it: " + messageOf(err, "its host could not resume it"), Err: err}
	}
	s.used.add(sb.ID)
	return now, nil
}

// failAgain makes the row of a sandbox that cannot be restored what it was.
func (s *Snapshots) failAgain(ctx context.Context, c Caller, was, sb *wrenn.Sandbox) {
	ctx, cancel := detach(ctx, rowTimeout)
	defer cancel()
	if _, err := s.store.MoveSandbox(ctx, sb, postgres.Move{To: wrenn.Failed, Reason: was.Reason, Cause: was.EndCause, Actor: c.actor()}); err != nil {
		s.handToReconciler(ctx, "mark a sandbox that cannot be restored", sb, err)
	}
}

// DeleteCheckpoint removes a checkpoint; those made after it continue from its
// parent. Twice is allowed.
func (s *Snapshots) DeleteCheckpoint(ctx context.Context, c Caller, id wrenn.SandboxID, cp wrenn.CheckpointID) error {
	_, host, err := s.locate(ctx, c, id, wrenn.Running, wrenn.Paused)
	if err != nil {
		return err
	}
	return host.DeleteCheckpoint(ctx, id, cp)
}
