package service

import (
	"context"
	"log/slog"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/scheduler"
)

// hostBuilds are the builds that a host has, as it answered last.
type hostBuilds struct {
	instance string
	revision uint64 // of the answer; 0 is none
	has      map[wrenn.BuildID]bool
}

// followBuilds asks a host for its builds if they have changed since it was asked last,
// and writes to their rows which of them are stored. What fails is tried at the next ping.
func (f *fleet) followBuilds(ctx context.Context, m *member, info wrenn.HostInfo) {
	if info.TemplatesRevision == 0 || m.buildsAt(info.Instance) == info.TemplatesRevision {
		return
	}
	builds, err := m.client.Builds(ctx)
	if err == nil && len(builds.Stored) > 0 {
		var stored []wrenn.BuildID
		stored, err = f.store.SetBuildsStored(ctx, m.id, info.Platform, builds.Stored)
		for _, id := range stored {
			f.log.LogAttrs(ctx, slog.LevelInfo, "a template is stored", slog.String("build", string(id)), slog.String("host", string(m.id)))
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			f.log.LogAttrs(ctx, slog.LevelWarn, "cannot follow the templates of a host; will retry", slog.String("host", string(m.id)), slog.Any("err", err))
		}
		return
	}
	now := hostBuilds{instance: info.Instance, revision: info.TemplatesRevision, has: map[wrenn.BuildID]bool{}}
	for _, id := range builds.IDs {
		now.has[id] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.builds = now
}

// buildsAt returns the revision of what is known of the host's builds.
func (m *member) buildsAt(instance string) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.builds.instance != instance {
		return 0
	}
	return m.builds.revision
}

// hasBuild reports whether the host has a build, as far as it is known.
func (m *member) hasBuild(id wrenn.BuildID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.builds.has[id]
}

// fetchesTemplates reports whether the host makes templates from what is stored. The
// caller holds mu.
func (m *member) fetchesTemplates() bool { return m.info.HasStore && m.info.TemplatesRevision != 0 }

// sharedTemplate returns what placement needs to know of a build that is stored; nil for
// one that is not.
func (f *fleet) sharedTemplate(g *wrenn.Build) *scheduler.Template {
	if g == nil || g.Stored.Key == "" {
		return nil
	}
	t := &scheduler.Template{Platform: g.Platform, On: map[wrenn.HostID]bool{}}
	for _, m := range f.all() {
		if m.hasBuild(g.ID) {
			t.On[m.id] = true
		}
	}
	return t
}

// storingHost returns a host that answers and reaches the snapshot store, nil if there is
// none.
func (f *fleet) storingHost() *member {
	for _, m := range f.all() {
		m.mu.Lock()
		ok := m.up && m.fetchesTemplates()
		m.mu.Unlock()
		if ok {
			return m
		}
	}
	return nil
}
