package postgres_test

import (
	"io/fs"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"wrenn.dev"
	"wrenn.dev/db"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/testkit"
)

// TestDatabaseOfTheVersionBefore migrates a database of the version before, which
// inserted rows as pending and without a host, and uses its rows.
func TestDatabaseOfTheVersionBefore(t *testing.T) {
	t.Parallel()
	const before = 5
	url := pgtest.New(t)
	cfg, err := pgx.ParseConfig(url)
	testkit.Must(t, err)
	conn := stdlib.OpenDB(*cfg)
	defer conn.Close()
	_, err = conn.ExecContext(t.Context(), "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
	testkit.Must(t, err)
	files, err := fs.Sub(db.Migrations, "migrations")
	testkit.Must(t, err)
	provider, err := goose.NewProvider(goose.DialectPostgres, conn, files)
	testkit.Must(t, err)
	_, err = provider.UpTo(t.Context(), before)
	testkit.Must(t, err)

	ids := map[wrenn.State]wrenn.SandboxID{}
	_, err = conn.ExecContext(t.Context(), "INSERT INTO teams (name) VALUES ('team')")
	testkit.Must(t, err)
	for _, state := range wrenn.States() {
		ids[state] = wrenn.NewSandboxID()
		_, err := conn.ExecContext(t.Context(), `
			WITH made AS (
				INSERT INTO sandboxes (id, team_id, template, vcpus, memory_mb, timeout_sec, state, host_id, worker)
				SELECT $1, id, 'base', 1, 512, 300, $2, CASE $2 WHEN 'pending' THEN '' ELSE 'h1' END, 7 FROM teams RETURNING *
			)
			INSERT INTO sandbox_events (sandbox_id, version, from_state, to_state, host_id, actor, reason)
			SELECT id, version, '', state, host_id, 'system', '' FROM made`, string(ids[state]), string(state))
		testkit.Must(t, err)
	}

	testkit.Must(t, postgres.Migrate(t.Context(), url))
	s := pgtest.Open(t, url)
	testkit.Must(t, s.Ready(t.Context()))
	for state, id := range ids {
		if sb, err := s.Sandbox(t.Context(), id); err != nil || sb.State != state || sb.MemoryMiB != 512 {
			t.Errorf("%s: %+v, %v", state, sb, err)
		}
	}
	abandoned, err := s.Abandoned(t.Context(), 0)
	if host, found := abandoned[ids[wrenn.Pending]]; err != nil || !found || host != "" {
		t.Errorf("abandoned %v, %v, want the pending row, without a host", abandoned, err)
	}
	pending, err := s.Sandbox(t.Context(), ids[wrenn.Pending])
	testkit.Must(t, err)
	if failed, err := s.MoveSandbox(t.Context(), pending, postgres.Move{To: wrenn.Failed, Reason: "why", Actor: "test"}); err != nil || failed.State != wrenn.Failed {
		t.Errorf("a pending row ends: %+v, %v", failed, err)
	}
	create(t, s, wrenn.Sandbox{Team: pending.Team})
}
