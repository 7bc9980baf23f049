package service

import (
	"cmp"
	"context"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
)

type (
	// Assignment is when a tag of a template began to refer to a build.
	Assignment = postgres.Assignment
	// History selects assignments of a template's name.
	History = postgres.History
	// LogPage selects lines of a build's log by their times.
	LogPage = postgres.LogPage
)

// TagHistory returns what the tags of a template's name have referred to: in the order
// of the tags, the newest first. Only tags that refer to a ready build now have one.
// NotFound when the team has no template of that name, or cannot have; the base has no tags.
func (s *Templates) TagHistory(ctx context.Context, c Caller, name string, h History) ([]Assignment, error) {
	none := wrenn.Errorf(wrenn.NotFound, "there is no template %.100s", name)
	if _, err := wrenn.ParseTemplateName(name + ":" + cmp.Or(h.Tag, wrenn.DefaultTag)); err != nil {
		return nil, none
	}
	found, err := s.store.Assignments(ctx, c.Team, name, h)
	if err != nil || len(found) > 0 {
		return found, err
	}
	all, err := s.store.Templates(ctx, c.Team)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].Name.Name == name {
			return nil, nil
		}
	}
	if name == wrenn.BaseTemplate {
		return nil, nil
	}
	return nil, none
}

// BuildLogPage returns lines of a build's log by their times, none of a build that was
// requested and has not started. NotFound for another team's build.
func (s *Templates) BuildLogPage(ctx context.Context, c Caller, template string, id wrenn.BuildID, page LogPage) ([]LogLine, error) {
	g, _, err := s.BuildProgress(ctx, c, template, id, 0, 0)
	if err != nil || g.State == wrenn.BuildRequested {
		return nil, err
	}
	return s.store.BuildLog(ctx, c.Team, g.Template, id, page)
}
