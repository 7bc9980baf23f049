package postgres

import (
	"context"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// SandboxesToMove returns the rows that are being moved, and all that have not ended on
// hosts that are drained, without Env.
func (s *Store) SandboxesToMove(ctx context.Context) ([]wrenn.Sandbox, error) {
	var out []wrenn.Sandbox
	err := s.call(ctx, "look for sandboxes to move", func(ctx context.Context) error {
		rows, err := s.queries.SandboxesToMove(ctx)
		out = sandboxes(withoutEnv(rows))
		return err
	})
	return out, err
}

// SetMovingNote shows why a sandbox could not be moved off its host; "" is nothing. It
// does not change the row's version.
func (s *Store) SetMovingNote(ctx context.Context, id wrenn.SandboxID, note string) error {
	return s.call(ctx, "show why a sandbox was not moved", func(ctx context.Context) error {
		return s.queries.SetMovingNote(ctx, note, string(id))
	})
}

// Drain starts the drain of a host that is active, cordoned or drained already, and
// forgets what an earlier drain found.
func (s *Store) Drain(ctx context.Context, id wrenn.HostID) (*wrenn.HostRecord, error) {
	err := s.call(ctx, "forget an earlier drain", func(ctx context.Context) error { return s.queries.ClearMovingNotes(ctx, string(id)) })
	if err != nil {
		return nil, err
	}
	return s.SetHostStatus(ctx, id, wrenn.HostDraining, wrenn.HostActive, wrenn.HostCordoned, wrenn.HostDraining)
}

// Drained is how far the drain of a host is.
type Drained struct {
	Left   int // sandboxes that it still has
	Moving int // of these, those that run again on another host in a moment
	Stuck  []NotMoved
}

// NotMoved is a sandbox that could not be moved.
type NotMoved struct {
	ID     wrenn.SandboxID
	Reason string
}

// maxNotMoved bounds those that are listed.
const maxNotMoved = 100

// DrainProgress returns how far the drain of a host is. It lists 100 sandboxes at most
// that could not be moved.
func (s *Store) DrainProgress(ctx context.Context, id wrenn.HostID) (*Drained, error) {
	var out Drained
	err := s.call(ctx, "look at the drain of a host", func(ctx context.Context) error {
		rows, err := s.queries.DrainProgress(ctx, string(id))
		out = drained(rows)
		return err
	})
	return &out, err
}

func drained(rows []dbsqlc.DrainProgressRow) (out Drained) {
	out.Left = len(rows)
	for _, row := range rows {
		if row.Moving {
			out.Moving++
		}
		if row.MovingNote != "" && len(out.Stuck) < maxNotMoved {
			out.Stuck = append(out.Stuck, NotMoved{wrenn.SandboxID(row.ID), row.MovingNote})
		}
	}
	return out
}
