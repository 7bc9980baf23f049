package pgserver_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/pgserver"
)

// dir returns a directory whose path is short enough for a socket, and which the server's user can enter.
func dir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgserver-") //nolint:usetesting // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func start(t *testing.T, dir string) *pgserver.Server {
	t.Helper()
	if _, err := pgserver.Find(t.Context()); err != nil {
		if os.Getenv("WRENN_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	s, err := pgserver.Start(t.Context(), pgserver.Config{Dir: dir, Volatile: true, DieWithParent: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *pgserver.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func query(t *testing.T, s *pgserver.Server, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL("things"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var got string
	if err := conn.QueryRow(t.Context(), sql).Scan(&got); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestServerKeepsItsData(t *testing.T) {
	dir := dir(t)
	s := start(t, dir)
	for range 2 { // twice is allowed
		if err := s.EnsureDatabase(t.Context(), "things"); err != nil {
			t.Fatal(err)
		}
	}
	query(t, s, "WITH made AS (SELECT lo_create(4711)) SELECT 'made' FROM made")
	if got := query(t, s, "SHOW listen_addresses"); got != "" {
		t.Errorf("it listens on %q, want the socket alone", got)
	}
	stop(t, s)
	select {
	case <-s.Done():
	default:
		t.Error("Done is open after Stop")
	}
	stop(t, s) // twice is allowed

	s = start(t, dir)
	if got := query(t, s, "SELECT oid::text FROM pg_largeobject_metadata"); got != "4711" {
		t.Errorf("after a restart it has %q", got)
	}
}

func TestStartStopsLeftover(t *testing.T) {
	dir := dir(t)
	left := start(t, dir)
	s := start(t, dir)
	select {
	case <-left.Done():
	default:
		t.Error("two servers run on one directory")
	}
	if err := s.EnsureDatabase(t.Context(), "things"); err != nil {
		t.Error(err)
	}
}

func TestStartIgnoresForeignPid(t *testing.T) {
	dir := dir(t)
	stop(t, start(t, dir))
	// The pid of a running process that is no server.
	if err := os.WriteFile(filepath.Join(dir, "data", "postmaster.pid"), []byte("1\n"+dir+"/data\n0\n5432\n\n\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "data", "postmaster.pid"), 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, dir)
}

func TestStartReplacesIncompleteData(t *testing.T) {
	dir := dir(t)
	if err := os.MkdirAll(filepath.Join(dir, "data.new", "base"), 0o700); err != nil {
		t.Fatal(err)
	}
	start(t, dir)
}

func TestErrorsSayWhatToDo(t *testing.T) {
	t.Run("a path that is too long", func(t *testing.T) {
		_, err := pgserver.Start(t.Context(), pgserver.Config{Dir: filepath.Join(dir(t), strings.Repeat("x", 100))})
		if wrenn.CodeOf(err) != wrenn.Invalid || !strings.Contains(err.Error(), "shorter") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("data of a version that is not installed", func(t *testing.T) {
		dir := dir(t)
		stop(t, start(t, dir))
		if err := os.WriteFile(filepath.Join(dir, "data", "PG_VERSION"), []byte("7\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := pgserver.Start(t.Context(), pgserver.Config{Dir: dir})
		if wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "PostgreSQL 7") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("an invalid setting", func(t *testing.T) {
		dir := dir(t)
		stop(t, start(t, dir))
		if err := os.WriteFile(filepath.Join(dir, "data", "postgresql.conf"), []byte("nonsense = 1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := pgserver.Start(t.Context(), pgserver.Config{Dir: dir})
		if err == nil || !strings.Contains(err.Error(), "nonsense") {
			t.Errorf("the server's own words are missing: %v", err)
		}
	})
}
