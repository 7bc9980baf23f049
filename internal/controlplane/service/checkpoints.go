package service

import (
	"context"

	"wrenn.dev"
)

// Snapshots are the use cases of copies and checkpoints.
type Snapshots struct{ *core }

// CreateCheckpoint keeps the present state of a running sandbox, which continues.
// A paused one with AutoResume is resumed first. The name is for people and may be empty.
func (s *Snapshots) CreateCheckpoint(ctx context.Context, c Caller, id wrenn.SandboxID, name string) (*wrenn.Checkpoint, error) {
	if len(name) > wrenn.MaxCheckpointNameBytes || !wrenn.IsText(name) {
		return nil, wrenn.Errorf(wrenn.Invalid, "the name of a checkpoint is text of at most %d bytes", wrenn.MaxCheckpointNameBytes)
	}
	host, err := s.use(ctx, c, id)
	if err != nil {
		return nil, err
	}
	defer s.used.add(id)
	cp, err := host.CreateCheckpoint(ctx, id, wrenn.NewCheckpointID(), name)
	if err != nil {
		return nil, err
	}
	return &cp, nil
}

// Checkpoints returns a sandbox's checkpoints, which its host keeps; no row has them. One that has ended, or has not started, has none.
func (s *Snapshots) Checkpoints(ctx context.Context, c Caller, id wrenn.SandboxID) (*wrenn.Checkpoints, error) {
	sb, err := s.store.TeamSandbox(ctx, c.Team, id)
	if err != nil {
		return nil, err
	}
	switch sb.State {
	case wrenn.Running, wrenn.Pausing, wrenn.Paused, wrenn.Resuming:
	default:
		return &wrenn.Checkpoints{}, nil
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
func (s *Snapshots) RestoreCheckpoint(ctx context.Context, c Caller, id wrenn.SandboxID, cp wrenn.CheckpointID) (*wrenn.Sandbox, error) {
	sb, host, err := s.locate(ctx, c, id, wrenn.Running, wrenn.Paused)
	if err != nil {
		return nil, err
	}
	if err := host.RestoreCheckpoint(ctx, id, cp); err != nil {
		return nil, err
	}
	s.used.add(id)
	return sb, nil
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
