package postgres

import (
	"context"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// Mark changes whenever what is shown of a sandbox does.
type Mark struct {
	Version      int64
	LastActiveAt time.Time
}

// Marks returns the marks of at most so many sandboxes of a team that have not ended, the newest.
func (s *Store) Marks(ctx context.Context, team wrenn.TeamID, most int) (marks map[wrenn.SandboxID]Mark, err error) {
	var living []wrenn.State
	for _, state := range wrenn.States() {
		if !state.Ended() {
			living = append(living, state)
		}
	}
	err = s.call(ctx, "watch sandboxes", func(ctx context.Context) error {
		rows, err := s.queries.WatchSandboxes(ctx, string(team), texts(living), clampInt32(most))
		marks = make(map[wrenn.SandboxID]Mark, len(rows))
		for _, row := range rows {
			marks[wrenn.SandboxID(row.ID)] = Mark{row.Version, orZero(row.LastActiveAt)}
		}
		return err
	})
	return marks, err
}

// SandboxesByID returns those of the rows that the team has, newest first, without Env.
func (s *Store) SandboxesByID(ctx context.Context, team wrenn.TeamID, ids []wrenn.SandboxID) (out []wrenn.Sandbox, err error) {
	err = s.call(ctx, "read sandboxes", func(ctx context.Context) error {
		rows, err := s.queries.SandboxesByID(ctx, string(team), texts(ids))
		converted := make([]dbsqlc.Sandbox, len(rows))
		for i, row := range rows {
			converted[i] = dbsqlc.Sandbox(row)
		}
		out = sandboxes(converted)
		return err
	})
	return out, err
}
