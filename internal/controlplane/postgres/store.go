package postgres

import (
	"context"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// StoreRound returns the round of uploads to the snapshot store, and whether it began
// length ago, or earlier, by the database's clock.
func (s *Store) StoreRound(ctx context.Context, length time.Duration) (round uint64, over bool, err error) {
	err = s.call(ctx, "read the round of uploads", func(ctx context.Context) error {
		row, err := s.queries.StoreRound(ctx, length.Seconds())
		round, over = uint64(row.Round), row.Over
		return err
	})
	return round, over, err
}

// RaiseStoreRound begins a round, unless that or a later one has begun.
func (s *Store) RaiseStoreRound(ctx context.Context, round uint64) error {
	return s.call(ctx, "begin a round of uploads", func(ctx context.Context) error {
		return s.queries.RaiseStoreRound(ctx, int64(round))
	})
}

// TeamsToCollect returns at most so many teams of whose objects those of rounds up to
// through may not be deleted yet; those that were tried last come last.
func (s *Store) TeamsToCollect(ctx context.Context, through uint64, most int) ([]wrenn.TeamID, error) {
	return s.teams(ctx, func(ctx context.Context) ([]string, error) {
		return s.queries.TeamsToCollect(ctx, int64(through), int32(most))
	})
}

// Teams returns all teams by their ids.
func (s *Store) Teams(ctx context.Context) ([]wrenn.TeamID, error) {
	return s.teams(ctx, s.queries.AllTeams)
}

func (s *Store) teams(ctx context.Context, query func(context.Context) ([]string, error)) (out []wrenn.TeamID, err error) {
	err = s.call(ctx, "list teams", func(ctx context.Context) error {
		ids, err := query(ctx)
		out = make([]wrenn.TeamID, len(ids))
		for i, id := range ids {
			out[i] = wrenn.TeamID(id)
		}
		return err
	})
	return out, err
}

// NothingCollected is the round of a collection that failed.
const NothingCollected = -1

// AddStoreCollection records what was deleted of a team, and the last round of which all
// that nothing needs is deleted.
func (s *Store) AddStoreCollection(ctx context.Context, team wrenn.TeamID, through int64, done wrenn.StoreCollected) error {
	return s.call(ctx, "record what was deleted from the snapshot store", func(ctx context.Context) error {
		return s.queries.AddStoreCollection(ctx, dbsqlc.AddStoreCollectionParams{TeamID: string(team), ThroughRound: through, Objects: done.Objects, Bytes: done.Bytes})
	})
}

// StoredSandbox is where a sandbox is stored, by its row; "" is nowhere.
type StoredSandbox struct {
	ID     wrenn.SandboxID
	Host   wrenn.HostID
	Epoch  wrenn.Epoch
	Failed bool // it was lost, and its checkpoint is what is left

	Stored, Moved, Checkpoint string
}

// StoredOfTeam returns where the sandboxes of a team are stored, those that are nowhere
// included, and the keys of its builds.
func (s *Store) StoredOfTeam(ctx context.Context, team wrenn.TeamID) (sandboxes []StoredSandbox, builds []string, err error) {
	err = s.call(ctx, "read what is stored of a team", func(ctx context.Context) error {
		rows, err := s.queries.StoredOfSandboxes(ctx, string(team))
		if err != nil {
			return err
		}
		sandboxes = make([]StoredSandbox, len(rows))
		for i := range rows {
			r := &rows[i]
			sandboxes[i] = StoredSandbox{
				ID: wrenn.SandboxID(r.ID), Host: wrenn.HostID(r.HostID), Epoch: wrenn.Epoch(r.Epoch), Failed: r.Failed,
				Stored: r.StoredKey, Moved: r.MovedKey, Checkpoint: r.CheckpointKey,
			}
		}
		builds, err = s.queries.StoredOfBuilds(ctx, string(team))
		return err
	})
	return sandboxes, builds, err
}
