package postgres_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/testkit"
)

// TestSetBuildsStored: a host says where it has stored its own builds, once. Of others, and
// with keys of others, nothing changes.
func TestSetBuildsStored(t *testing.T) {
	t.Parallel()
	s := pgtest.Open(t, pgtest.New(t))
	name := wrenn.TemplateName{Name: "app", Tag: wrenn.DefaultTag}
	g, err := s.BeginBuild(t.Context(), wrenn.Build{
		ID: wrenn.NewBuildID(), Team: team(t, s), Template: name, Host: "h1", Spec: wrenn.TemplateSpec{Size: wrenn.Size{VCPUs: 1, MemoryMiB: 512}},
	}, postgres.Limits{Builds: 1, Templates: 1})
	testkit.Must(t, err)
	testkit.Must(t, s.FinishBuild(t.Context(), g.ID, wrenn.BuildResult{Size: g.Spec.Size}))
	key := "teams/" + string(g.Team) + "/templates/" + string(g.ID) + "/x"
	platform := wrenn.Platform{Driver: "qemu", Version: "8"}
	at := time.Unix(1, 0).UTC()
	set := func(host wrenn.HostID, id wrenn.BuildID, key string) []wrenn.BuildID {
		t.Helper()
		out, err := s.SetBuildsStored(t.Context(), host, platform, map[wrenn.BuildID]wrenn.Stored{id: {At: at, Key: key}})
		testkit.Must(t, err)
		return out
	}
	for _, lie := range []struct {
		host wrenn.HostID
		key  string
	}{
		{"h2", key},
		{"h1", "teams/other/templates/" + string(g.ID) + "/x"},
		{"h1", "teams/" + string(g.Team) + "/templates/" + string(wrenn.NewBuildID()) + "/x"},
		{"h1", "teams/" + string(g.Team) + "/snapshots/x"},
	} {
		if out := set(lie.host, g.ID, lie.key); len(out) > 0 {
			t.Errorf("%+v was believed", lie)
		}
	}
	wantOn := func(want ...wrenn.BuildID) {
		t.Helper()
		on, err := s.ReadyOn(t.Context(), "h1")
		if err != nil || !cmp.Equal(on, want) && len(on)+len(want) > 0 {
			t.Errorf("on the host alone are %v, want %v, %v", on, want, err)
		}
	}
	wantOn(g.ID)
	if out := set("h1", g.ID, key); !cmp.Equal(out, []wrenn.BuildID{g.ID}) {
		t.Errorf("stored are %v", out)
	}
	if out := set("h1", g.ID, key+"2"); len(out) > 0 {
		t.Errorf("stored again are %v", out)
	}
	wantOn()
	testkit.Must(t, s.LoseBuild(t.Context(), g.ID, "lost"))
	found, err := s.FindBuild(t.Context(), g.ID)
	testkit.Must(t, err)
	if found.State != wrenn.BuildReady || found.Stored != (wrenn.Stored{At: at, Key: key}) || found.Platform != platform {
		t.Errorf("%+v", found)
	}

	purge := func() map[wrenn.BuildID]wrenn.TeamID {
		t.Helper()
		builds, err := s.BuildsToPurge(t.Context(), 0)
		testkit.Must(t, err)
		return builds
	}
	if builds := purge(); len(builds) > 0 {
		t.Errorf("not wanted are %v", builds)
	}
	_, err = s.DeleteTemplate(t.Context(), g.Team, name)
	testkit.Must(t, err)
	if diff := cmp.Diff(map[wrenn.BuildID]wrenn.TeamID{g.ID: g.Team}, purge()); diff != "" {
		t.Error(diff)
	}
	testkit.Must(t, s.BuildPurged(t.Context(), g.ID))
	if builds := purge(); len(builds) > 0 {
		t.Errorf("not wanted are %v", builds)
	}
}
