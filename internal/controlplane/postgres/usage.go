package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

const (
	// usageLate is how long after an hour its rows are computed again: a change that is dated
	// in the hour may be committed that much later.
	usageLate = 5 * time.Minute
	// usageHours is how many hours one transaction computes at most, to catch up. More than
	// the two that are not settled, so that each call makes progress.
	usageHours = 4
)

// Usage is what a team used from Begins on, an hour or a day.
type Usage struct {
	Begins  time.Time
	Creates int64 // of sandboxes, copies included

	Sandboxes   Extent // while they ran
	Paused      Extent // sandboxes
	VCPUs       Extent // of running sandboxes, also when they were idle
	MemoryMiB   Extent // of running sandboxes
	DiskMiB     Extent // of running and paused sandboxes
	VolumeMiB   Extent
	TemplateMiB Extent
}

// Add adds another's use.
func (u *Usage) Add(more *Usage) {
	u.Creates += more.Creates
	u.Sandboxes += more.Sandboxes
	u.Paused += more.Paused
	u.VCPUs += more.VCPUs
	u.MemoryMiB += more.MemoryMiB
	u.DiskMiB += more.DiskMiB
	u.VolumeMiB += more.VolumeMiB
	u.TemplateMiB += more.TemplateMiB
}

// Extent is an amount times the milliseconds for which it was there.
type Extent int64

// Seconds returns the amount times seconds.
func (e Extent) Seconds() float64 { return float64(e) / 1000 }

// UsageProgress says of which time the usage is known.
type UsageProgress struct{ From, Until time.Time }

// CountUsage computes what all teams used until now, which is the database's time, see
// Now. Each hour is computed as a whole from the events, so that it counts once however
// often that is done, and by which replica. It returns true when it is behind and shall be
// called again.
func (s *Store) CountUsage(ctx context.Context, now time.Time) (behind bool, err error) {
	err = s.inTx(ctx, "count the use of teams", func(ctx context.Context, q *dbsqlc.Queries) error {
		settled, err := q.LockUsage(ctx)
		if err != nil {
			return err
		}
		if now.Before(settled) { // a clock was set back
			settled = now.UTC().Truncate(time.Hour)
		}
		if err := q.ForgetUsageSince(ctx, settled); err != nil {
			return err
		}
		var counted time.Time
		if settled, counted, err = countHours(ctx, q, settled, now); err != nil {
			return err
		}
		behind = counted.Before(now)
		if err := q.DropEndedVolumes(ctx, settled); err != nil {
			return err
		}
		return q.SetUsageProgress(ctx, settled, counted)
	})
	return behind && err == nil, err
}

// countHours computes the hours from one on, until now, and returns up to when they are
// settled and counted.
func countHours(ctx context.Context, q *dbsqlc.Queries, hour, now time.Time) (settled, counted time.Time, err error) {
	settled, counted = hour, hour
	for n := 0; n < usageHours && hour.Before(now); n++ {
		next := hour.Add(time.Hour)
		counted = next
		if now.Before(next) {
			counted = now
		}
		if err := q.CountUsage(ctx, hour, counted, wrenn.DefaultDiskMiB); err != nil {
			return settled, counted, err
		}
		if !now.Before(next.Add(usageLate)) {
			settled = next
		}
		hour = next
	}
	return settled, counted, nil
}

// UsageProgress returns of which time the usage is known.
func (s *Store) UsageProgress(ctx context.Context) (UsageProgress, error) {
	var p UsageProgress
	err := s.call(ctx, "read how far the use of teams is counted", func(ctx context.Context) error {
		row, err := s.queries.UsageProgress(ctx)
		p = UsageProgress{From: row.CountedFrom.UTC(), Until: row.CountedUntil.UTC()}
		return err
	})
	return p, err
}

// TeamUsage returns what a team used from one time to another, which begin hours or days
// in UTC, in steps of "hour" or "day", oldest first, without steps in which it used nothing.
func (s *Store) TeamUsage(ctx context.Context, team wrenn.TeamID, from, to time.Time, step string) (steps []Usage, err error) {
	err = s.call(ctx, "read the use of the team", func(ctx context.Context) error {
		rows, err := s.queries.TeamUsage(ctx, dbsqlc.TeamUsageParams{Step: step, TeamID: string(team), Since: from, Until: to})
		for _, r := range rows {
			steps = append(steps, Usage{
				Begins: r.Begins.UTC(), Creates: r.Creates, Sandboxes: Extent(r.SandboxMs), Paused: Extent(r.PausedMs), VCPUs: Extent(r.VcpuMs),
				MemoryMiB: Extent(r.MemoryMibMs), DiskMiB: Extent(r.DiskMibMs), VolumeMiB: Extent(r.VolumeMibMs), TemplateMiB: Extent(r.TemplateMibMs),
			})
		}
		return err
	})
	return steps, err
}

// FindTeam returns the team of that name: NotFound when it does not exist.
func (s *Store) FindTeam(ctx context.Context, name string) (wrenn.TeamID, error) {
	var id string
	err := s.call(ctx, "find the team", func(ctx context.Context) (err error) {
		id, err = s.queries.FindTeam(ctx, name)
		if errors.Is(err, pgx.ErrNoRows) {
			return wrenn.Errorf(wrenn.NotFound, "there is no team %.100q", name)
		}
		return err
	})
	return wrenn.TeamID(id), err
}

// DropUsage deletes the use in at most so many hours of teams that are older than the
// retention, and returns how many it deleted.
func (s *Store) DropUsage(ctx context.Context, retention time.Duration, most int) (n int, err error) {
	err = s.call(ctx, "delete the use of teams long ago", func(ctx context.Context) error {
		rows, err := s.queries.DropUsage(ctx, retention.Seconds(), clampInt32(most))
		n = int(rows)
		return err
	})
	return n, err
}

// Holdings are what a team has now, as its limits count it.
type Holdings struct {
	Sandboxes, MemoryMiB, Templates, Builds, Volumes, VolumeMiB, Secrets, Keys int64

	// OwnSandboxes and OwnMemory report whether the team's row has its own limits of these.
	OwnSandboxes, OwnMemory bool
}

// MaxKeys bounds the keys of a team: a list of them is one page.
const MaxKeys = 1000

// Holdings returns what a team has, and its limits: those given, or its own.
func (s *Store) Holdings(ctx context.Context, team wrenn.TeamID, limits Limits) (h Holdings, own Limits, err error) {
	err = s.call(ctx, "read what the team has", func(ctx context.Context) error {
		r, err := s.queries.TeamHolds(ctx, string(team))
		if errors.Is(err, pgx.ErrNoRows) {
			return wrenn.Errorf(wrenn.NotFound, "the team does not exist any more")
		}
		h = Holdings{
			Sandboxes: int64(r.UsedSandboxes), MemoryMiB: r.UsedMemoryMB, Templates: r.Templates, Builds: r.Builds,
			Volumes: r.Volumes, VolumeMiB: r.VolumeMib, Secrets: r.Secrets, Keys: r.Keys,
			OwnSandboxes: r.MaxSandboxes != nil, OwnMemory: r.MaxMemoryMB != nil,
		}
		own = limits.of(r.MaxSandboxes, r.MaxMemoryMB)
		return err
	})
	return h, own, err
}
