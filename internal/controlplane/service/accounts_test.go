package service_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

// TestUsageOfTeams: what is used is shown in whole steps, to the team and to operators.
func TestUsageOfTeams(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	running, stop := w.replica(t, nil)
	create(t, running, w.caller)
	stop() // it counts, too, by its own clock
	s, err := service.New(w.config(), w.store, slog.New(slog.DiscardHandler))
	testkit.Must(t, err)
	now, err := w.store.Now(t.Context())
	testkit.Must(t, err)
	now = now.Add(10 * time.Minute) // as if it ran for as long
	for behind := true; behind; {
		behind, err = w.store.CountUsage(t.Context(), now)
		testkit.Must(t, err)
	}
	end := now.Add(2 * time.Hour).Truncate(time.Hour)
	use, err := s.Usage(t.Context(), w.caller, service.UsageQuery{From: end.Add(-4*time.Hour + time.Second), To: end})
	testkit.Must(t, err)
	ran := use.Total.Sandboxes.Seconds()
	if ran < 600 || ran > 3600 || use.Total.Creates != 1 || use.Total.VCPUs != use.Total.Sandboxes || len(use.Steps) != 4 || !use.From.Equal(end.Add(-4*time.Hour)) {
		t.Errorf("the use is %+v", use)
	}
	if use, err := s.Usage(t.Context(), w.caller, service.UsageQuery{Step: "day"}); err != nil || len(use.Steps) != 8 || use.Total.Creates != 1 {
		t.Errorf("by day it is %+v, %v", use, err)
	}

	other := w.team(t, "other")
	operator := service.Caller{Team: other.Team, Key: "k", Scopes: wrenn.OperatorScopes}
	if use, err := s.Usage(t.Context(), operator, service.UsageQuery{}); err != nil || use.Total.Creates != 0 {
		t.Errorf("another team used %+v, %v", use, err)
	}
	if use, err := s.Usage(t.Context(), operator, service.UsageQuery{Team: "team"}); err != nil || use.Total.Creates != 1 {
		t.Errorf("the operator sees %+v, %v", use, err)
	}
	for name, tc := range map[string]struct {
		caller service.Caller
		query  service.UsageQuery
		want   wrenn.Code
	}{
		"no operator": {service.Caller{Team: other.Team, Key: "k", Scopes: wrenn.AllScopes}, service.UsageQuery{Team: "team"}, wrenn.PermissionDenied},
		"no team":     {operator, service.UsageQuery{Team: "none"}, wrenn.NotFound},
		"no step":     {operator, service.UsageQuery{Step: "week"}, wrenn.Invalid},
		"no time":     {operator, service.UsageQuery{From: now, To: now}, wrenn.Invalid},
		"too many":    {operator, service.UsageQuery{From: now.Add(-1001 * time.Hour), To: now}, wrenn.Invalid},
		"all time":    {operator, service.UsageQuery{From: time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC), To: now, Step: "day"}, wrenn.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Usage(t.Context(), tc.caller, tc.query)
			testkit.WantCode(t, err, tc.want)
		})
	}
}

// TestLimits: each limit of a team is listed with what is used, and its error says who changes it.
func TestLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, func(cfg *service.Config) { cfg.Limits.Sandboxes = 1; cfg.Limits.RequestsPerSecond = 2.5 })
	create(t, s, w.caller)
	find := func(name string) (found service.TeamLimit) {
		t.Helper()
		limits, err := s.Limits(t.Context(), w.caller)
		testkit.Must(t, err)
		for _, l := range limits {
			if l.Name == name {
				found = l
			}
		}
		return found
	}
	refused := func(want string) {
		t.Helper()
		_, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{})
		testkit.WantCode(t, err, wrenn.Exhausted)
		if !strings.HasSuffix(err.Error(), want) {
			t.Errorf("the error %q does not end with %q", err, want)
		}
	}
	want := service.TeamLimit{Name: "sandboxes", Allowed: 1, Used: new(int64(1)), ChangedBy: service.ByConfiguration, Setting: "limits.sandboxes"}
	if diff := cmp.Diff(want, find("sandboxes")); diff != "" {
		t.Errorf("the limit (-want +got):\n%s", diff)
	}
	refused("the operator sets the limit as limits.sandboxes")
	if l := find("memory"); *l.Used != 512 || l.Allowed != 256<<10 {
		t.Errorf("the limit of memory is %+v", l)
	}
	if l := find("requests_per_second"); l.Allowed != 2.5 || l.Used != nil {
		t.Errorf("the limit of requests is %+v", l)
	}

	w.sql(t, "UPDATE teams SET max_memory_mb = 700, max_sandboxes = 9")
	want = service.TeamLimit{Name: "memory", Allowed: 700, Used: new(int64(512)), Unit: "MiB", ChangedBy: service.ByTeam, Setting: "max_memory_mb"}
	if diff := cmp.Diff(want, find("memory")); diff != "" {
		t.Errorf("the team's own limit (-want +got):\n%s", diff)
	}
	refused("the operator sets the limit for this team, as max_memory_mb")
}
