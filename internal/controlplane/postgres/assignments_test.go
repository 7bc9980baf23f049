package postgres_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/testkit"
)

// TestBuildLogByTime: every line of a log is on one page, also those that an older
// version wrote in the same millisecond.
func TestBuildLogByTime(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t)
	s := pgtest.Open(t, url)
	name := wrenn.TemplateName{Name: "app", Tag: wrenn.DefaultTag}
	g, err := s.BeginBuild(t.Context(), wrenn.Build{
		ID: wrenn.NewBuildID(), Team: team(t, s), Template: name, Host: "h1", Spec: wrenn.TemplateSpec{Size: wrenn.Size{VCPUs: 1, MemoryMiB: 512}},
	}, postgres.Limits{Builds: 1, Templates: 1})
	testkit.Must(t, err)
	const lines = 250
	for first := 0; first < lines; first += lines / 2 {
		var texts []string
		for i := range lines / 2 {
			texts = append(texts, fmt.Sprint(first+i))
		}
		testkit.Must(t, s.AppendLines(t.Context(), g.ID, int64(first), texts, 0))
	}
	check := func(what string) {
		for _, backward := range []bool{false, true} {
			page := postgres.LogPage{Backward: backward, Limit: 100}
			for i := 0; i < lines; {
				found, err := s.BuildLog(t.Context(), g.Team, name, g.ID, page)
				if err != nil || len(found) == 0 {
					t.Fatalf("%s, backward %v: %d of %d lines, %v", what, backward, i, lines, err)
				}
				for _, line := range found {
					want := i
					if backward {
						want = lines - 1 - i
					}
					if line.Text != fmt.Sprint(want) {
						t.Fatalf("%s, backward %v: line %s, want %d", what, backward, line.Text, want)
					}
					i++
				}
				page.Cursor = found[len(found)-1].At
				if !backward {
					page.Cursor = page.Cursor.Add(time.Millisecond)
				}
			}
		}
	}
	check("as they are written")
	conn, err := pgx.Connect(t.Context(), url)
	testkit.Must(t, err)
	defer conn.Close(t.Context())
	_, err = conn.Exec(t.Context(), "UPDATE template_lines SET written_at = '2026-01-02'")
	testkit.Must(t, err)
	check("all at one time")
}
