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
	// keptRequests is how many builds of a team may have been requested and not
	// started; the oldest are forgotten.
	keptRequests = 100
	// requestRetention is when one is forgotten: its files are uploaded before it starts.
	requestRetention = 24 * time.Hour
)

// RequestBuild writes a build that its client starts later. It takes ID, Team,
// Template, MoreTags and the size of g.
func (s templateStore) RequestBuild(ctx context.Context, g wrenn.Build) error {
	return s.inTx(ctx, "request a build", func(ctx context.Context, q *dbsqlc.Queries) error {
		if err := q.DropOldRequests(ctx, string(g.Team), keptRequests-1, requestRetention.Seconds()); err != nil {
			return err
		}
		return q.RequestBuild(ctx, dbsqlc.RequestBuildParams{
			ID: string(g.ID), TeamID: string(g.Team), Name: g.Template.Name, Tag: g.Template.Tag, MoreTags: noneNull(g.MoreTags),
			VCPUs: clampInt32(g.Spec.VCPUs), MemoryMB: clampInt32(g.Spec.MemoryMiB),
			DiskMB: clampInt32(g.Spec.DiskMiB), MinFreeDiskMB: clampInt32(g.Spec.MinFreeDiskMiB),
		})
	})
}

// RequestedBuild returns a build that was requested and not started. NotFound for
// any other id, also of one that has started.
func (s templateStore) RequestedBuild(ctx context.Context, team wrenn.TeamID, id wrenn.BuildID) (*wrenn.Build, error) {
	var out *wrenn.Build
	err := s.call(ctx, "read a requested build", func(ctx context.Context) error {
		row, err := s.queries.GetRequestedBuild(ctx, string(id), string(team))
		if errors.Is(err, pgx.ErrNoRows) {
			return wrenn.Errorf(wrenn.NotFound, "there is no build %s that waits for its start", id)
		}
		out = &wrenn.Build{
			ID: id, Team: team, Template: wrenn.TemplateName{Name: row.Name, Tag: row.Tag}, MoreTags: row.MoreTags, State: wrenn.BuildRequested,
			Spec: wrenn.TemplateSpec{
				Size:    wrenn.Size{VCPUs: int(row.VCPUs), MemoryMiB: int(row.MemoryMB)},
				DiskMiB: int(row.DiskMB), MinFreeDiskMiB: int(row.MinFreeDiskMB),
			},
			CreatedAt: row.CreatedAt.UTC(), UpdatedAt: row.CreatedAt.UTC(),
		}
		return err
	})
	return out, err
}

// TagBuild makes tags of a name refer to the build that target refers to, and returns
// that. NotFound when it refers to none that is ready.
func (s templateStore) TagBuild(ctx context.Context, team wrenn.TeamID, target wrenn.TemplateName, tags []string, limits Limits) (wrenn.BuildID, error) {
	var id string
	err := s.inTx(ctx, "tag a build", func(ctx context.Context, q *dbsqlc.Queries) error {
		if _, err := q.LockTeam(ctx, string(team)); err != nil {
			return err
		}
		var err error
		if id, err = q.NamedBuild(ctx, string(team), target.Name, target.Tag); err != nil {
			if errors.Is(err, pgx.ErrNoRows) {
				err = noTemplate(target)
			}
			return err
		}
		for _, tag := range tags {
			if err := point(ctx, q, dbsqlc.PointTemplateParams{TeamID: string(team), Name: target.Name, Tag: tag, GenerationID: id}); err != nil {
				return err
			}
		}
		if err := checkNames(ctx, q, string(team), limits); err != nil {
			return err
		}
		return q.DropUnnamedBuilds(ctx, "its last tag refers to another build", string(team), target.Name)
	})
	return wrenn.BuildID(id), err
}

// checkNames returns an Exhausted error if the team has more names than it may.
func checkNames(ctx context.Context, q *dbsqlc.Queries, team string, limits Limits) error {
	n, err := q.CountNames(ctx, team)
	if err == nil && int(n) > limits.Templates {
		err = wrenn.Errorf(wrenn.Exhausted, "the team is at its limit of %d templates: delete one first; the operator sets the limit as limits.templates", limits.Templates)
	}
	return err
}

// UntagBuild removes tags of a name. A build without any tag is deleted. NotFound when
// the name has none of them.
func (s templateStore) UntagBuild(ctx context.Context, team wrenn.TeamID, name string, tags []string) error {
	return s.inTx(ctx, "remove tags of a build", func(ctx context.Context, q *dbsqlc.Queries) error {
		if _, err := q.LockTeam(ctx, string(team)); err != nil {
			return err
		}
		removed := int64(0)
		for _, tag := range tags {
			n, err := q.DeleteTemplateName(ctx, string(team), name, tag)
			if err != nil {
				return err
			}
			removed += n
		}
		if removed == 0 {
			return wrenn.Errorf(wrenn.NotFound, "template %s has none of these tags", name)
		}
		return q.DropUnnamedBuilds(ctx, "its tags were removed", string(team), name)
	})
}
