package service

import (
	"context"

	"wrenn"
)

// Checkpoints are those of a sandbox. They are their host's to know: no row has them.
type Checkpoints struct {
	List []wrenn.Checkpoint // oldest first
	Head wrenn.CheckpointID // the one that the sandbox goes on from; "" for none
}

// CreateCheckpoint keeps what a running sandbox is now; it goes on. A paused
// one that may be woken is. The name is for people and may be empty.
func (s *Service) CreateCheckpoint(ctx context.Context, c Caller, id wrenn.SandboxID, name string) (*wrenn.Checkpoint, error) {
	if len(name) > wrenn.MaxCheckpointNameBytes || !isText(name) {
		return nil, wrenn.Errorf(wrenn.Invalid, "the name of a checkpoint is text of at most %d bytes", wrenn.MaxCheckpointNameBytes)
	}
	host, err := s.use(ctx, c, id)
	if err != nil {
		return nil, err
	}
	defer s.usedBoxes.add(id)
	cp, err := host.CreateCheckpoint(ctx, id, wrenn.NewCheckpointID(), name)
	if err != nil {
		return nil, err
	}
	return &cp, nil
}

// Checkpoints returns a sandbox's checkpoints. One that has ended, or has not started, has none.
func (s *Service) Checkpoints(ctx context.Context, c Caller, id wrenn.SandboxID) (*Checkpoints, error) {
	sb, err := s.store.TeamSandbox(ctx, c.Team, id)
	if err != nil {
		return nil, err
	}
	switch sb.State {
	case wrenn.Running, wrenn.Pausing, wrenn.Paused, wrenn.Resuming:
	default:
		return &Checkpoints{}, nil
	}
	host, err := s.fleet.host(sb.Host)
	if err != nil {
		return nil, err
	}
	list, head, err := host.Checkpoints(ctx, id)
	if err != nil {
		return nil, err
	}
	return &Checkpoints{List: list, Head: head}, nil
}

// RestoreCheckpoint makes a sandbox what it was at a checkpoint. What it is
// now is lost, no checkpoint is; a paused one stays paused. When it fails the sandbox
// goes on as before. NotFound when there is no such checkpoint.
func (s *Service) RestoreCheckpoint(ctx context.Context, c Caller, id wrenn.SandboxID, cp wrenn.CheckpointID) (*wrenn.Sandbox, error) {
	sb, host, err := s.at(ctx, c, id, wrenn.Running, wrenn.Paused)
	if err != nil {
		return nil, err
	}
	if err := host.RestoreCheckpoint(ctx, id, cp); err != nil {
		return nil, err
	}
	s.usedBoxes.add(id)
	return sb, nil
}

// DeleteCheckpoint removes a checkpoint; those made after it go on from its
// parent. One that is not there is no error.
func (s *Service) DeleteCheckpoint(ctx context.Context, c Caller, id wrenn.SandboxID, cp wrenn.CheckpointID) error {
	_, host, err := s.at(ctx, c, id, wrenn.Running, wrenn.Paused)
	if err != nil {
		return err
	}
	return host.DeleteCheckpoint(ctx, id, cp)
}
