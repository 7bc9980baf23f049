package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// keptAssignments is how many assignments of a tag are known; the oldest are forgotten.
const keptAssignments = 1000

// Assignment is when a tag of a template's name began to refer to a build.
type Assignment struct {
	ID      string // a UUID
	Number  int64  // later ones have higher numbers
	Tag     string
	Build   wrenn.BuildID
	At      time.Time
	Created time.Time  // when the build began
	Ready   *time.Time // when it was ready; nil is not known
}

// History selects assignments of a template's name.
type History struct {
	Tag    string // "" is all tags
	Before int64  // only those with lower numbers; 0 is all
	PerTag int    // at most, the newest
}

// point makes a name refer to a build, and records that.
func point(ctx context.Context, q *dbsqlc.Queries, to dbsqlc.PointTemplateParams) error {
	if err := q.PointTemplate(ctx, to); err != nil {
		return err
	}
	return q.DropOldAssignments(ctx, dbsqlc.DropOldAssignmentsParams{TeamID: to.TeamID, Name: to.Name, Tag: to.Tag, Keep: keptAssignments})
}

// Assignments returns what tags have referred to, those that refer to a ready build
// now: in the order of the tags, the newest first. Those of builds that their host
// lost are left out.
func (s templateStore) Assignments(ctx context.Context, team wrenn.TeamID, name string, h History) ([]Assignment, error) {
	var out []Assignment
	err := s.call(ctx, "read the history of tags", func(ctx context.Context) error {
		rows, err := s.queries.Assignments(ctx, dbsqlc.AssignmentsParams{TeamID: string(team), Name: name, Tag: h.Tag, Before: h.Before, PerTag: int64(h.PerTag)})
		for _, row := range rows {
			a := Assignment{ID: row.ID, Number: row.Number, Tag: row.Tag, Build: wrenn.BuildID(row.GenerationID), At: row.AssignedAt.UTC(), Created: row.CreatedAt.UTC()}
			if row.FinishedAt != nil {
				a.Ready = new(row.FinishedAt.UTC())
			}
			out = append(out, a)
		}
		return err
	})
	return out, err
}

// LogPage selects lines of a build's log by their times, each of which is a
// millisecond or more after that of the line before.
type LogPage struct {
	// Cursor is the time of the first line, at the earliest; Backward, lines of this
	// time and later are left out. Zero is the oldest, or the newest.
	Cursor   time.Time
	Backward bool // newest first
	Limit    int
}

// BuildLog returns lines of a build's log: NotFound when the name has no such build.
func (s templateStore) BuildLog(ctx context.Context, team wrenn.TeamID, name wrenn.TemplateName, id wrenn.BuildID, page LogPage) ([]Line, error) {
	var lines []Line
	err := s.call(ctx, "read the log of a build", func(ctx context.Context) error {
		_, err := s.queries.GetBuild(ctx, dbsqlc.GetBuildParams{ID: string(id), TeamID: string(team), Name: name.Name, Tag: name.Tag})
		if errors.Is(err, pgx.ErrNoRows) {
			return wrenn.Errorf(wrenn.NotFound, "template %s has no build %s", name, id)
		}
		if err != nil {
			return err
		}
		from := int64(0)
		if !page.Cursor.IsZero() {
			from = page.Cursor.UnixMilli()
		}
		rows, err := s.queries.BuildLinesByTime(ctx, dbsqlc.BuildLinesByTimeParams{ID: string(id), Backward: page.Backward, CursorMs: from, PageSize: clampInt32(page.Limit)})
		for _, l := range rows {
			lines = append(lines, Line{Number: l.Line, Text: l.Content, At: time.UnixMilli(l.AtMs).UTC()})
		}
		return err
	})
	return lines, err
}
