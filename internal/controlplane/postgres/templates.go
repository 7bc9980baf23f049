package postgres

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// BeginBuild writes the row of a build that this process is about to build.
// It takes ID, Team, Template, Host and Spec of g. AlreadyExists while the name is
// being built, Exhausted when a limit of the team does not allow it.
func (s templateStore) BeginBuild(ctx context.Context, g wrenn.Build, limits Limits) (*wrenn.Build, error) {
	var out *wrenn.Build
	err := s.inTx(ctx, "begin a build", func(ctx context.Context, q *dbsqlc.Queries) error {
		team, name := string(g.Team), g.Template
		if _, err := q.LockTeam(ctx, team); err != nil {
			return err
		}
		now, err := q.TeamBuilds(ctx, name.Name, name.Tag, team)
		if err != nil {
			return err
		}
		tagged, err := q.CountMoreTags(ctx, team, name.Name, name.Tag)
		if err != nil {
			return err
		}
		templates := now.Others + tagged
		switch {
		case now.BuildingThis > 0:
			return wrenn.Errorf(wrenn.AlreadyExists, "template %s is being built already: wait for that build, or delete the template to end it", name)
		case int(now.Building) >= limits.Builds:
			return wrenn.Errorf(wrenn.Exhausted, "the team is at its limit of %d builds at a time: wait for one; the operator sets the limit as limits.builds", now.Building)
		case int(templates)+len(g.MoreTags) >= limits.Templates:
			return wrenn.Errorf(wrenn.Exhausted, "the team is at its limit of %d templates: delete one first; the operator sets the limit as limits.templates", limits.Templates)
		}
		err = errors.Join(q.DropFailedBuilds(ctx, team, name.Name, name.Tag), q.DropLines(ctx, team, name.Name, name.Tag))
		if err != nil {
			return err
		}
		row, err := q.InsertBuild(ctx, dbsqlc.InsertBuildParams{
			ID: string(g.ID), TeamID: team, Name: name.Name, Tag: name.Tag, HostID: string(g.Host),
			FromImage: g.Spec.From.Image, FromOci: g.Spec.From.OCI, FromSandbox: string(g.Spec.From.Sandbox), FromTemplate: string(g.Spec.From.Template),
			VCPUs: clampInt32(g.Spec.VCPUs), MemoryMB: clampInt32(g.Spec.MemoryMiB), Env: orEmpty(g.Spec.Env),
			StartCmd: g.Spec.StartCmd, ReadyCmd: g.Spec.ReadyCmd, ReadyTimeoutSec: seconds(g.Spec.ReadyTimeout), Worker: &s.worker,
			MoreTags: noneNull(g.MoreTags), DiskMB: clampInt32(g.Spec.DiskMiB),
		})
		if err != nil {
			return err
		}
		out = build(row)
		return q.DropRequestedBuild(ctx, row.ID)
	})
	return out, err
}

// noneNull returns texts, which the database does not store as NULL.
func noneNull(texts []string) []string {
	return append([]string{}, texts...)
}

// buildEnded returns the error for a build that was ended by another request.
func buildEnded() error {
	return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the build was ended", Err: ErrConflict}
}

// PlaceBuild records the host of a build. ErrConflict is the cause when the build was ended.
func (s templateStore) PlaceBuild(ctx context.Context, id wrenn.BuildID, host wrenn.HostID) error {
	return s.call(ctx, "place a build", func(ctx context.Context) error {
		n, err := s.queries.PlaceBuild(ctx, string(host), string(id), &s.worker)
		if err == nil && n == 0 {
			err = buildEnded()
		}
		return err
	})
}

// AppendLines appends to a build's log; first is the number of the first line, and
// lines before the number keep are dropped. ErrConflict is the cause when the build
// was ended, also without lines.
func (s templateStore) AppendLines(ctx context.Context, id wrenn.BuildID, first int64, lines []string, keep int64) error {
	return s.inTx(ctx, "write the log of a build", func(ctx context.Context, q *dbsqlc.Queries) error {
		building, err := q.IsBuilding(ctx, string(id), &s.worker)
		switch {
		case err != nil:
			return err
		case !building:
			return buildEnded()
		case len(lines) == 0:
			return nil
		}
		numbers := make([]int64, len(lines))
		for i := range numbers {
			numbers[i] = first + int64(i)
		}
		if err := q.AppendLines(ctx, dbsqlc.AppendLinesParams{ID: string(id), FirstLine: first, Numbers: numbers, Lines: lines}); err != nil {
			return err
		}
		return q.DropOldLines(ctx, string(id), keep)
	})
}

// FinishBuild makes a build ready and its template's name refer to it. The
// build before is deleted. ErrConflict is the cause when the build was ended.
func (s templateStore) FinishBuild(ctx context.Context, id wrenn.BuildID, built wrenn.BuildResult) error {
	return s.inTx(ctx, "finish a build", func(ctx context.Context, q *dbsqlc.Queries) error {
		row, err := q.FinishBuild(ctx, dbsqlc.FinishBuildParams{
			ID: string(id), Worker: &s.worker, VCPUs: clampInt32(built.VCPUs), MemoryMB: clampInt32(built.MemoryMiB),
			Env: orEmpty(built.Env), SizeBytes: built.SizeBytes, Digest: built.Digest, DiskMB: clampInt32(built.DiskMiB),
		})
		if errors.Is(err, pgx.ErrNoRows) {
			return buildEnded()
		}
		if err != nil {
			return err
		}
		for _, tag := range append([]string{row.Tag}, row.MoreTags...) {
			if err := point(ctx, q, dbsqlc.PointTemplateParams{TeamID: row.TeamID, Name: row.Name, Tag: tag, GenerationID: row.ID}); err != nil {
				return err
			}
		}
		return q.DropUnnamedBuilds(ctx, "replaced by build "+row.ID, row.TeamID, row.Name)
	})
}

// FailBuild ends a build, unless it has ended. Step is the one at which it failed,
// "" before the first.
func (s templateStore) FailBuild(ctx context.Context, id wrenn.BuildID, reason, step string) error {
	return s.call(ctx, "end a build", func(ctx context.Context) error {
		_, err := s.queries.FailBuild(ctx, reason, step, string(id))
		return err
	})
}

// FailAbandoned ends the builds of processes that are not connected any more, under
// the conditions of Abandoned, and returns them.
func (s templateStore) FailAbandoned(ctx context.Context, settled time.Duration, reason string) ([]wrenn.BuildID, error) {
	var out []wrenn.BuildID
	err := s.call(ctx, "end abandoned builds", func(ctx context.Context) error {
		ids, err := s.queries.FailAbandonedBuilds(ctx, reason, settled.Seconds())
		out = buildIDs(ids)
		return err
	})
	return out, err
}

// LoseBuild fails a ready build whose host does not have it, unless it is stored.
func (s templateStore) LoseBuild(ctx context.Context, id wrenn.BuildID, reason string) error {
	return s.call(ctx, "mark a build lost", func(ctx context.Context) error {
		_, err := s.queries.LoseBuild(ctx, reason, string(id))
		return err
	})
}

// DeleteTemplate deletes a name and returns its builds, which the caller
// removes from their hosts. NotFound when it has none.
func (s templateStore) DeleteTemplate(ctx context.Context, team wrenn.TeamID, name wrenn.TemplateName) (map[wrenn.BuildID]wrenn.HostID, error) {
	out := map[wrenn.BuildID]wrenn.HostID{}
	err := s.inTx(ctx, "delete a template", func(ctx context.Context, q *dbsqlc.Queries) error {
		if _, err := q.LockTeam(ctx, string(team)); err != nil { // else a build may finish in between
			return err
		}
		named, err := q.DeleteTemplateName(ctx, string(team), name.Name, name.Tag)
		if err != nil {
			return err
		}
		requested, err := q.DropRequestedBuilds(ctx, string(team), name.Name, name.Tag)
		if err != nil {
			return err
		}
		rows, err := q.DeleteTemplate(ctx, dbsqlc.DeleteTemplateParams{Reason: "the template was deleted", TeamID: string(team), Name: name.Name, Tag: name.Tag})
		if err != nil {
			return err
		}
		for _, row := range rows {
			out[wrenn.BuildID(row.ID)] = wrenn.HostID(row.HostID)
		}
		if len(rows) == 0 && named == 0 && requested == 0 {
			return noTemplate(name)
		}
		return q.DropLines(ctx, string(team), name.Name, name.Tag)
	})
	return out, err
}

func noTemplate(name wrenn.TemplateName) error {
	return wrenn.Errorf(wrenn.NotFound, "there is no template %s", name)
}

// Templates returns a team's templates in the order of their names.
func (s templateStore) Templates(ctx context.Context, team wrenn.TeamID) ([]wrenn.Template, error) {
	return s.templates(ctx, team, wrenn.TemplateName{})
}

// Template returns a template: NotFound when the team has none of that name.
func (s templateStore) Template(ctx context.Context, team wrenn.TeamID, name wrenn.TemplateName) (*wrenn.Template, error) {
	list, err := s.templates(ctx, team, name)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, noTemplate(name)
	}
	return &list[0], nil
}

func (s templateStore) templates(ctx context.Context, team wrenn.TeamID, name wrenn.TemplateName) ([]wrenn.Template, error) {
	var out []wrenn.Template
	err := s.call(ctx, "read templates", func(ctx context.Context) error {
		rows, err := s.queries.NamedBuilds(ctx, string(team), name.Name, name.Tag)
		if err != nil {
			return err
		}
		for _, row := range rows { // the newest of a name first
			g := build(row.TemplateGeneration)
			if len(out) == 0 || out[len(out)-1].Name != g.Template {
				out = append(out, wrenn.Template{Name: g.Template, Latest: g})
			}
			if row.IsCurrent && g.State == wrenn.BuildReady {
				out[len(out)-1].Current = g
			}
		}
		tagged, err := s.queries.TaggedBuilds(ctx, string(team), name.Name, name.Tag)
		for _, row := range tagged {
			out = withTagged(out, wrenn.TemplateName{Name: row.OfName, Tag: row.OfTag}, build(row.TemplateGeneration))
		}
		slices.SortFunc(out, func(a, b wrenn.Template) int {
			return cmp.Or(cmp.Compare(a.Name.Name, b.Name.Name), cmp.Compare(a.Name.Tag, b.Name.Tag))
		})
		return err
	})
	return out, err
}

// withTagged adds a name that refers to a build of another tag. The name may have
// builds that are newer and not ready.
func withTagged(list []wrenn.Template, name wrenn.TemplateName, g *wrenn.Build) []wrenn.Template {
	i := slices.IndexFunc(list, func(t wrenn.Template) bool { return t.Name == name })
	if i < 0 {
		return append(list, wrenn.Template{Name: name, Current: g, Latest: g})
	}
	list[i].Current = g
	return list
}

// Line is a line of a build's log.
type Line struct {
	Number int64 // from 0
	Text   string
	At     time.Time // when it was written
}

// Build returns a build and its log from a line on, at most limit lines.
func (s templateStore) Build(ctx context.Context, team wrenn.TeamID, name wrenn.TemplateName, id wrenn.BuildID, from int64, limit int) (*wrenn.Build, []Line, error) {
	var out *wrenn.Build
	var lines []Line
	err := s.call(ctx, "read a build", func(ctx context.Context) error {
		row, err := s.queries.GetBuild(ctx, dbsqlc.GetBuildParams{ID: string(id), TeamID: string(team), Name: name.Name, Tag: name.Tag})
		if errors.Is(err, pgx.ErrNoRows) {
			return wrenn.Errorf(wrenn.NotFound, "template %s has no build %s", name, id)
		}
		if err != nil {
			return err
		}
		out = build(row) // before the lines: the log of a build that has ended is complete
		rows, err := s.queries.BuildLines(ctx, string(id), from, clampInt32(limit))
		for _, l := range rows {
			lines = append(lines, Line{Number: l.Line, Text: l.Content, At: l.WrittenAt.UTC()})
		}
		return err
	})
	return out, lines, err
}

// ReadyOn returns the builds that are on a host alone.
func (s templateStore) ReadyOn(ctx context.Context, host wrenn.HostID) ([]wrenn.BuildID, error) {
	var out []wrenn.BuildID
	err := s.call(ctx, "read a host's builds", func(ctx context.Context) error {
		ids, err := s.queries.ReadyBuilds(ctx, string(host))
		out = buildIDs(ids)
		return err
	})
	return out, err
}

// Known is the state of a build's row.
type Known struct {
	State   wrenn.BuildState
	Team    wrenn.TeamID
	Settled bool // the state is older than the caller asked for
}

// BuildStates returns the states of builds; one without a row is left out.
func (s templateStore) BuildStates(ctx context.Context, ids []wrenn.BuildID, settled time.Duration) (map[wrenn.BuildID]Known, error) {
	out := map[wrenn.BuildID]Known{}
	err := s.call(ctx, "read builds", func(ctx context.Context) error {
		rows, err := s.queries.BuildStates(ctx, settled.Seconds(), texts(ids))
		for _, row := range rows {
			out[wrenn.BuildID(row.ID)] = Known{State: wrenn.BuildState(row.State), Team: wrenn.TeamID(row.TeamID), Settled: row.Settled}
		}
		return err
	})
	return out, err
}

func build(r dbsqlc.TemplateGeneration) *wrenn.Build {
	return &wrenn.Build{
		ID: wrenn.BuildID(r.ID), Team: wrenn.TeamID(r.TeamID), Template: wrenn.TemplateName{Name: r.Name, Tag: r.Tag},
		MoreTags: r.MoreTags,
		State:    wrenn.BuildState(r.State), Reason: r.Reason, FailedStep: r.FailedStep, Host: wrenn.HostID(r.HostID),
		Spec: wrenn.TemplateSpec{
			From: wrenn.TemplateSource{Image: r.FromImage, OCI: r.FromOci, Sandbox: wrenn.SandboxID(r.FromSandbox), Template: wrenn.BuildID(r.FromTemplate)},
			Size: wrenn.Size{VCPUs: int(r.VCPUs), MemoryMiB: int(r.MemoryMB)}, DiskMiB: int(r.DiskMB), Env: r.Env,
			StartCmd: r.StartCmd, ReadyCmd: r.ReadyCmd, ReadyTimeout: time.Duration(r.ReadyTimeoutSec) * time.Second,
		},
		Stored: wrenn.Stored{At: orZero(r.StoredAt), Key: r.StoredKey}, Platform: r.Platform,
		SizeBytes: r.SizeBytes, Digest: r.Digest, CreatedAt: r.CreatedAt.UTC(), UpdatedAt: r.UpdatedAt.UTC(),
	}
}

func buildIDs(texts []string) []wrenn.BuildID {
	out := make([]wrenn.BuildID, len(texts))
	for i, text := range texts {
		out[i] = wrenn.BuildID(text)
	}
	return out
}

// FindBuild returns a build of any team, nil when there is none.
func (s *Store) FindBuild(ctx context.Context, id wrenn.BuildID) (found *wrenn.Build, err error) {
	err = s.call(ctx, "find a build", func(ctx context.Context) error {
		row, err := s.queries.FindBuild(ctx, string(id))
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		found = build(row)
		return err
	})
	return found, err
}

// SetBuildsStored records where a host of a platform has stored the builds that it made,
// and returns those for which that is new. Keys that are not of the build are left out.
func (s *Store) SetBuildsStored(ctx context.Context, host wrenn.HostID, platform wrenn.Platform, stored map[wrenn.BuildID]wrenn.Stored) ([]wrenn.BuildID, error) {
	args := dbsqlc.SetBuildsStoredParams{HostID: string(host), Platform: platform}
	for id, at := range stored {
		args.IDs, args.Keys, args.Times = append(args.IDs, string(id)), append(args.Keys, at.Key), append(args.Times, at.At)
	}
	var out []wrenn.BuildID
	err := s.call(ctx, "record stored builds", func(ctx context.Context) error {
		ids, err := s.queries.SetBuildsStored(ctx, args)
		out = buildIDs(ids)
		return err
	})
	return out, err
}

// BuildsToPurge returns builds that are not wanted any more, since settled or longer, and
// whose objects in the snapshot store were not deleted yet: the first, at most 100.
func (s *Store) BuildsToPurge(ctx context.Context, settled time.Duration) (map[wrenn.BuildID]wrenn.TeamID, error) {
	const most = 100
	out := map[wrenn.BuildID]wrenn.TeamID{}
	err := s.call(ctx, "find builds whose objects are to be deleted", func(ctx context.Context) error {
		rows, err := s.queries.BuildsToPurge(ctx, settled.Seconds(), most)
		for _, row := range rows {
			out[wrenn.BuildID(row.ID)] = wrenn.TeamID(row.TeamID)
		}
		return err
	})
	return out, err
}

// BuildPurged records that the snapshot store has nothing of a build any more.
func (s *Store) BuildPurged(ctx context.Context, id wrenn.BuildID) error {
	return s.call(ctx, "record that a build's objects were deleted", func(ctx context.Context) error {
		return s.queries.BuildPurged(ctx, string(id))
	})
}
