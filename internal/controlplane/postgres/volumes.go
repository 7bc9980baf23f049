package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// BeginVolume writes the row of a volume that this process is about to create on its
// host. It takes ID, Team, Name, Host and SizeMiB of v. AlreadyExists when the team has
// one of that name, Exhausted when a limit of the team does not allow it.
func (s volumeStore) BeginVolume(ctx context.Context, v wrenn.Volume, limits Limits) error {
	return s.inTx(ctx, "create the volume's row", func(ctx context.Context, q *dbsqlc.Queries) error {
		if err := lockTeam(ctx, q, v.Team); err != nil {
			return err
		}
		now, err := q.TeamVolumes(ctx, v.Name, string(v.Team))
		switch {
		case err != nil:
			return err
		case now.Named > 0:
			return wrenn.Errorf(wrenn.AlreadyExists, "the team has a volume %s already", v.Name)
		case int(now.Volumes) >= limits.Volumes:
			return wrenn.Errorf(wrenn.Exhausted, "the team is at its limit of %d volumes: delete one first; the operator sets the limit as limits.volumes", now.Volumes)
		case now.SizeMib+int64(v.SizeMiB) > int64(limits.TeamVolumeMiB):
			return wrenn.Errorf(wrenn.Exhausted, "the team's volumes have %d MiB of at most %d MiB together: delete one first, or ask for less than %d MiB; the operator sets the limit as limits.team_volume_mib", now.SizeMib, limits.TeamVolumeMiB, v.SizeMiB)
		}
		return q.InsertVolume(ctx, dbsqlc.InsertVolumeParams{
			ID: string(v.ID), TeamID: string(v.Team), Name: v.Name, HostID: string(v.Host), SizeMib: clampInt32(v.SizeMiB), Worker: &s.worker,
		})
	})
}

// lockTeam has the changes of one team queue.
func lockTeam(ctx context.Context, q *dbsqlc.Queries, team wrenn.TeamID) error {
	_, err := q.LockTeam(ctx, string(team))
	if errors.Is(err, pgx.ErrNoRows) {
		return wrenn.Errorf(wrenn.NotFound, "the team does not exist any more")
	}
	return err
}

// FinishVolume makes a volume ready that this process has created. ErrConflict is the
// cause when it is to be deleted.
func (s volumeStore) FinishVolume(ctx context.Context, id wrenn.VolumeID) (*wrenn.Volume, error) {
	var out *wrenn.Volume
	err := s.call(ctx, "finish a volume", func(ctx context.Context) error {
		row, err := s.queries.FinishVolume(ctx, string(id), &s.worker)
		if errors.Is(err, pgx.ErrNoRows) {
			return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the volume was deleted while it was created", Err: ErrConflict}
		}
		out = volume(row)
		return err
	})
	return out, err
}

// Volumes returns a team's volumes in the order of their names.
func (s volumeStore) Volumes(ctx context.Context, team wrenn.TeamID) ([]wrenn.Volume, error) {
	var out []wrenn.Volume
	err := s.call(ctx, "list volumes", func(ctx context.Context) error {
		rows, err := s.queries.ListVolumes(ctx, string(team))
		for _, row := range rows {
			out = append(out, *volume(row))
		}
		return err
	})
	return out, err
}

// FindVolumes returns the team's volumes with these names or ids, in their order: an
// id goes before a name. NotFound when the team does not have one.
func (s volumeStore) FindVolumes(ctx context.Context, team wrenn.TeamID, names []string) ([]wrenn.Volume, error) {
	var out []wrenn.Volume
	err := s.call(ctx, "find volumes", func(ctx context.Context) error {
		rows, err := s.queries.FindVolumes(ctx, string(team), names)
		if err != nil {
			return err
		}
		byName := map[string]*wrenn.Volume{}
		for _, row := range rows {
			byName[row.Name] = volume(row)
		}
		for _, row := range rows {
			byName[row.ID] = volume(row)
		}
		for _, name := range names {
			v := byName[name]
			if v == nil {
				return wrenn.Errorf(wrenn.NotFound, "there is no volume %.64s", name)
			}
			out = append(out, *v)
		}
		return nil
	})
	return out, err
}

// BeginDeleteVolume takes a volume away from its team, which the caller then deletes on
// its host. FailedPrecondition while a sandbox has it; twice is allowed.
func (s volumeStore) BeginDeleteVolume(ctx context.Context, v *wrenn.Volume) error {
	return s.inTx(ctx, "delete a volume", func(ctx context.Context, q *dbsqlc.Queries) error {
		if err := lockTeam(ctx, q, v.Team); err != nil { // else a create may mount it in between
			return err
		}
		switch user, err := q.SandboxWithVolume(ctx, string(v.Team), string(v.ID)); {
		case err == nil:
			return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s has volume %s: delete the sandbox first", user, v.Name)
		case !errors.Is(err, pgx.ErrNoRows):
			return err
		}
		_, err := q.BeginDeleteVolume(ctx, string(v.ID))
		return err
	})
}

// DropVolume removes the row of a volume that its host does not have any more.
func (s volumeStore) DropVolume(ctx context.Context, id wrenn.VolumeID) error {
	return s.call(ctx, "remove the volume's row", func(ctx context.Context) error { return s.queries.DropVolume(ctx, string(id)) })
}

// VolumesToDelete returns volumes that are to be deleted on their hosts, at most
// 1,000, those included whose creating process is not connected any more or has not
// finished within grace. Changes younger than settled are left out, as in Abandoned.
func (s volumeStore) VolumesToDelete(ctx context.Context, settled, grace time.Duration) (map[wrenn.VolumeID]wrenn.HostID, error) {
	const atMost = 1000
	out := map[wrenn.VolumeID]wrenn.HostID{}
	err := s.call(ctx, "look for volumes to delete", func(ctx context.Context) error {
		if err := s.queries.EndAbandonedVolumes(ctx, settled.Seconds(), grace.Seconds()); err != nil {
			return err
		}
		rows, err := s.queries.DeletingVolumes(ctx, settled.Seconds(), atMost)
		for _, row := range rows {
			out[wrenn.VolumeID(row.ID)] = wrenn.HostID(row.HostID)
		}
		return err
	})
	return out, err
}

// checkVolumes returns NotFound unless the team has all volumes of a sandbox. The
// caller has locked the team, so that they stay.
func checkVolumes(ctx context.Context, q *dbsqlc.Queries, sb *wrenn.Sandbox) error {
	if len(sb.Volumes) == 0 {
		return nil
	}
	var ids []string
	for _, mount := range sb.Volumes {
		ids = append(ids, string(mount.Volume))
	}
	n, err := q.CountReadyVolumes(ctx, string(sb.Team), ids)
	if err == nil && int(n) != len(ids) {
		err = wrenn.Errorf(wrenn.NotFound, "a volume of the sandbox was deleted")
	}
	return err
}

func volume(r dbsqlc.Volume) *wrenn.Volume {
	return &wrenn.Volume{
		ID: wrenn.VolumeID(r.ID), Team: wrenn.TeamID(r.TeamID), Name: r.Name, Host: wrenn.HostID(r.HostID), SizeMiB: int(r.SizeMib), CreatedAt: r.CreatedAt.UTC(),
	}
}
