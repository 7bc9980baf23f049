package postgres

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// TestServersOfURL: the servers that do not answer leave time for the last one, within a call.
func TestServersOfURL(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]time.Duration{
		"postgres://a/wrenn":                               3 * time.Second,
		"postgres://a/wrenn?sslmode=prefer":                3 * time.Second, // the same one, with TLS and without
		"postgres://a,b/wrenn":                             2 * time.Second,
		"postgres://a,b,c,d/wrenn?sslmode=disable":         time.Second,
		"postgres:///wrenn?host=/run/a,/run/b&user=nobody": 2 * time.Second,
	} {
		cfg, err := parseURL(url)
		testkit.Must(t, err)
		if cfg.ConnectTimeout != want || cfg.ConnectTimeout >= defaultTimeout || cfg.ValidateConnect == nil {
			t.Errorf("%s: %s for each server, want %s", url, cfg.ConnectTimeout, want)
		}
	}
}

// TestPassingErrors: what a failover causes is Unavailable, so that clients try again.
func TestPassingErrors(t *testing.T) {
	t.Parallel()
	for _, code := range []string{
		"57P01", // the server stops
		"57P03", // it starts
		"25006", // it is a standby
		"40001",
	} {
		testkit.WantCode(t, failure("write", &pgconn.PgError{Code: code}), wrenn.Unavailable, "try again")
	}
	testkit.WantCode(t, failure("write", &pgconn.PgError{Code: "25001"}), wrenn.Internal)
}
