package service

import (
	"context"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
)

// Snapshots are the use cases of copies and checkpoints.
type Snapshots struct{ *core }

// Checkpoints are those of a sandbox. Its host keeps them; no row has them.
type Checkpoints struct {
	List []wrenn.Checkpoint // oldest first
	Head wrenn.CheckpointID // the one that the sandbox continues from; "" for none
}

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

// Checkpoints returns a sandbox's checkpoints. One that has ended, or has not started, has none.
func (s *Snapshots) Checkpoints(ctx context.Context, c Caller, id wrenn.SandboxID) (*Checkpoints, error) {
	sb, err := s.store.TeamSandbox(ctx, c.Team, id)
	if err != nil {
		return nil, err
	}
	switch sb.State {
	case wrenn.Running, wrenn.Pausing, wrenn.Paused, wrenn.Resuming:
	default:
		return &Checkpoints{}, nil
	}
	host, err := s.hosts.clientOf(sb)
	if err != nil {
		return nil, err
	}
	list, head, err := host.Checkpoints(ctx, id)
	if err != nil {
		return nil, err
	}
	return &Checkpoints{List: list, Head: head}, nil
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
