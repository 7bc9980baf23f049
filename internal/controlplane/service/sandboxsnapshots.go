package service

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	"wrenn.dev"
)

// A snapshot of a sandbox, as E2B's clients know it, is a template that is made
// from the sandbox. The name of one without a name is chosen here.
const unnamedSnapshot = "snapshot-"

// SnapshotSandbox saves a running sandbox, with memory and processes unless diskOnly
// is set, as a template, and returns it when it is ready; the sandbox continues. With "" it
// gets a new name; a name that exists refers to the new snapshot from then on. When
// ctx ends before, a snapshot with a name may come to be all the same.
func (s *Templates) SnapshotSandbox(ctx context.Context, c Caller, id wrenn.SandboxID, name string, diskOnly bool) (*wrenn.Template, error) {
	unnamed := name == ""
	if unnamed {
		name = unnamedSnapshot + string(wrenn.NewBuildID())
	}
	ended := make(chan error, 1)
	_, err := s.beginBuild(ctx, c, BuildTemplate{Name: name, Spec: wrenn.TemplateSpec{From: wrenn.TemplateSource{Sandbox: id, DiskOnly: diskOnly}}}, ended)
	if err != nil {
		return nil, err
	}
	select {
	case err = <-ended:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		if unnamed {
			s.dropSnapshot(ctx, c, name)
		}
		return nil, err
	}
	return s.Template(ctx, c, name)
}

// dropSnapshot deletes a snapshot that its maker does not know.
func (s *Templates) dropSnapshot(ctx context.Context, c Caller, name string) {
	ctx, cancel := detach(ctx, s.deadlines.Destroy)
	defer cancel()
	if err := s.DeleteTemplate(ctx, c, name); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "cannot delete a snapshot that failed", slog.String("template", name), slog.Any("err", err))
	}
}

// ListSnapshots selects snapshots. Empty fields select all.
type ListSnapshots struct {
	Sandbox wrenn.SandboxID // that it was made from
	Name    string          // of the template, with or without its tag
	Limit   int             // of a page; 0 is no limit
	After   string          // the last name of the page before
}

// ListSnapshots returns the templates of the team that were made from sandboxes
// and are ready, in the order of their names, and whether there are more.
func (s *Templates) ListSnapshots(ctx context.Context, c Caller, req ListSnapshots) (page []wrenn.Template, more bool, err error) {
	all, err := s.store.Templates(ctx, c.Team)
	if err != nil {
		return nil, false, err
	}
	all = slices.DeleteFunc(all, func(t wrenn.Template) bool {
		if t.Current == nil || t.Current.Spec.From.Sandbox == "" || t.Name.String() <= req.After {
			return true
		}
		wanted := req.Name == "" || t.Name.Name == req.Name || t.Name.String() == req.Name
		return !wanted || req.Sandbox != "" && t.Current.Spec.From.Sandbox != req.Sandbox
	})
	slices.SortFunc(all, func(a, b wrenn.Template) int { return strings.Compare(a.Name.String(), b.Name.String()) })
	if req.Limit > 0 && len(all) > req.Limit {
		return all[:req.Limit], true, nil
	}
	return all, false, nil
}
