package service

import (
	"context"
	"errors"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
)

// SetMetadata replaces the metadata of a running or paused sandbox.
func (s *Sandboxes) SetMetadata(ctx context.Context, c Caller, id wrenn.SandboxID, metadata map[string]string) (*wrenn.Sandbox, error) {
	if err := checkMetadata(metadata); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		sb, _, err := s.locate(ctx, c, id, wrenn.Running, wrenn.Paused)
		if err != nil {
			return nil, err
		}
		changed, err := s.store.SetMetadata(ctx, sb, metadata, c.actor())
		if errors.Is(err, postgres.ErrConflict) && attempt < casAttempts {
			continue
		}
		return changed, err
	}
}
