package pgserver

import (
	"context"
	"os"
	"os/user"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// A server of the distribution lets its own user in as the superuser; here that is
// the one that Start makes.
func TestEnsureLocal(t *testing.T) {
	if _, err := Find(t.Context()); err != nil {
		if os.Getenv("WRENN_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("", "pg-") //nolint:usetesting // t.TempDir's names are too long for a socket
	testkit.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	testkit.Must(t, os.Chmod(dir, 0o755))
	server, err := Start(t.Context(), Config{Dir: dir + "/pg", Volatile: true})
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, server.Stop(context.WithoutCancel(t.Context()))) })
	url := "postgres:///fleet?sslmode=disable&host=" + server.cfg.SocketDir

	for _, want := range [][]string{{"role keeper", "database fleet"}, nil} {
		got, err := ensureLocal(t.Context(), url, "keeper", admin)
		testkit.Must(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("made (-want +got):\n%s", diff)
		}
	}
	conn, err := pgx.Connect(t.Context(), url+"&user=keeper")
	testkit.Must(t, err)
	_, err = conn.Exec(t.Context(), "CREATE SCHEMA own; CREATE TABLE own.t ()")
	testkit.Must(t, err)
	testkit.Must(t, conn.Close(t.Context()))
	// The role of the URL is made, and not the default.
	got, err := ensureLocal(t.Context(), url+"&user=other", "keeper", admin)
	if diff := cmp.Diff([]string{"role other"}, got); diff != "" || err != nil {
		t.Errorf("made %v (-want +got):\n%s", err, diff)
	}
}

func TestEnsureLocalLeavesOthersAlone(t *testing.T) {
	for _, url := range []string{"postgres://db.internal/wrenn", "postgres://w:secret@/wrenn?host=/run/postgresql"} {
		if made, err := EnsureLocal(t.Context(), url, "wrenn"); made != nil || err != nil {
			t.Errorf("EnsureLocal(%s) = %v, %v", url, made, err)
		}
	}
	if _, err := EnsureLocal(t.Context(), "postgres://%zz", "wrenn"); wrenn.CodeOf(err) != wrenn.Invalid {
		t.Errorf("a wrong URL: %v", err)
	}
	if self, err := user.Current(); err == nil && self.Uid != "0" {
		if _, err := EnsureLocal(t.Context(), "postgres:///wrenn?host=/nowhere", "wrenn"); err == nil {
			t.Error("no server, and no error")
		}
	}
}
