package postgres_test

import (
	"flag"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"wrenn.dev/internal/pgserver"
	"wrenn.dev/internal/pgtest"
)

var update = flag.Bool("update", false, "write db/schema.sql")

// what lists the parts of a schema that matter, in a form that does not depend on the
// version of PostgreSQL.
const what = `
SELECT 'column ' || table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable || ' ' || coalesce(column_default, '') ||
	' ' || coalesce(collation_name, '') || ' ' || is_identity
FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'goose_db_version'
UNION ALL SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'goose_db_version'
UNION ALL SELECT 'constraint ' || conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'goose_db_version'
UNION ALL SELECT 'trigger ' || pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
ORDER BY 1`

// TestSchemaFile holds db/schema.sql equal to what the migrations make.
func TestSchemaFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join("..", "..", "..", "db", "schema.sql")
	migrated := pgtest.New(t)
	if *update {
		if err := os.WriteFile(file, []byte(dump(t, migrated)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	schema, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	made := pgtest.New(t)
	conn, err := pgx.Connect(t.Context(), made)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "DROP SCHEMA public CASCADE; CREATE SCHEMA public; "+string(schema)); err != nil {
		t.Fatal(err)
	}
	want := query(t, migrated, what)
	if diff := cmp.Diff(want, query(t, made, what)); diff != "" || len(want) < 50 {
		t.Errorf("db/schema.sql is not what the migrations make; go test ./internal/controlplane/postgres -run TestSchemaFile -update (-migrations +file):\n%s", diff)
	}
}

var noise = regexp.MustCompile(`(?m)^(--.*|SET .*|SELECT pg_catalog.set_config.*|\\.*)\n`)

// dump is pg_dump without what differs between its versions.
func dump(t *testing.T, database string) string {
	t.Helper()
	programs, err := pgserver.Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs[0].Bin, "pg_dump"), "--schema-only", "--no-owner", "--no-privileges", "--exclude-table=goose_db_version", "--dbname="+u.String())
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	text := noise.ReplaceAllString(string(out), "")
	text = regexp.MustCompile(`\n{3,}`).ReplaceAllString(text, "\n\n")
	return "-- What the migrations come to. Made by: go test ./internal/controlplane/postgres -run TestSchemaFile -update\n\n" + strings.TrimSpace(text) + "\n"
}
