// Package pgtest gives tests a real PostgreSQL: one server for each test process,
// and a new database for each test, with the schema of the control plane.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/pgserver"
)

const (
	template = "template_wrenn"
	timeout  = 2 * time.Minute // long: machines that run tests are busy
)

// shared is the server of this test process. It starts with the first New, so
// that tests without a database run where PostgreSQL is missing.
var shared struct {
	once   sync.Once
	armed  atomic.Bool // Main is running
	server *pgserver.Server
	dir    string
	err    error
	last   atomic.Int64 // number of the last database
}

// Main runs a package's tests and stops the server after them:
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
func Main(m *testing.M) {
	shared.armed.Store(true)
	defer func() {
		if shared.server != nil {
			ctx, cancel := context.WithTimeout(context.Background(), timeout)
			defer cancel()
			_ = shared.server.Stop(ctx) // if it fails, DieWithParent ends the server
		}
		_ = os.RemoveAll(shared.dir)
	}()
	m.Run()
}

// New returns the URL of an empty database with the schema, which the end of the
// test drops. Without PostgreSQL's programs the test is skipped; with WRENN_CI=1
// it fails.
func New(tb testing.TB) string {
	tb.Helper()
	return create(tb, template)
}

// Empty is New without the schema, for the restore of a dump.
func Empty(tb testing.TB) string {
	tb.Helper()
	return create(tb, "template0")
}

// create makes a database like another one.
func create(tb testing.TB, like string) string {
	tb.Helper()
	if !shared.armed.Load() {
		tb.Fatal("pgtest.New needs: func TestMain(m *testing.M) { pgtest.Main(m) }")
	}
	shared.once.Do(func() { shared.err = startShared() })
	orSkip(tb, shared.err)
	name := fmt.Sprintf("test_%d", shared.last.Add(1))
	admin(tb, "CREATE DATABASE "+name+" TEMPLATE "+like)
	tb.Cleanup(func() { admin(tb, "DROP DATABASE "+name+" WITH (FORCE)") })
	return shared.server.URL(name)
}

// Store opens a store on a database of New.
func Store(tb testing.TB) *postgres.Store {
	tb.Helper()
	return Open(tb, New(tb))
}

// Open opens one more store on a database, as another replica would.
func Open(tb testing.TB, url string) *postgres.Store {
	tb.Helper()
	store, err := postgres.Open(context.WithoutCancel(tb.Context()), postgres.Config{URL: url, Timeout: timeout})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(store.Close)
	return store
}

// Server starts a server for this test alone, which stop stops and restart starts
// again, and returns the URL of a database with the schema.
func Server(tb testing.TB) (url string, stop func(), restart func()) {
	tb.Helper()
	dir, err := os.MkdirTemp("", "pgtest-") //nolint:usetesting // t.TempDir's names are too long for a socket
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	var server *pgserver.Server
	ctx := context.WithoutCancel(tb.Context())
	restart = func() {
		tb.Helper()
		server, err = pgserver.Start(ctx, config(dir))
		orSkip(tb, err)
	}
	stop = func() {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		if err := server.Stop(ctx); err != nil {
			tb.Error(err)
		}
	}
	restart()
	tb.Cleanup(func() { stop() })
	if err := errors.Join(server.EnsureDatabase(ctx, "wrenn"), postgres.Migrate(ctx, server.URL("wrenn"))); err != nil {
		tb.Fatal(err)
	}
	return server.URL("wrenn"), stop, restart
}

// Pair is a primary and its standby, which has all that the primary has acknowledged.
type Pair struct {
	URL string // of a database with the schema, on whichever is the primary

	primary, standby *pgserver.Server
}

// Replicated starts two servers for this test alone.
func Replicated(tb testing.TB) *Pair {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), 2*timeout)
	defer cancel()
	p := &Pair{}
	p.primary = p.start(ctx, tb, func(pgserver.Config) error { return nil })
	if err := p.primary.EnsureDatabase(ctx, "wrenn"); err != nil {
		tb.Fatal(err)
	}
	p.standby = p.start(ctx, tb, func(cfg pgserver.Config) error { return pgserver.Standby(ctx, cfg, p.primary) })
	for _, sql := range []string{"ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"} {
		run(ctx, tb, p.primary.URL("postgres"), sql)
	}
	first, err := url.Parse(p.primary.URL("wrenn"))
	if err != nil {
		tb.Fatal(err)
	}
	second, err := url.Parse(p.standby.URL("wrenn"))
	if err != nil {
		tb.Fatal(err)
	}
	query := first.Query()
	query.Set("host", second.Query().Get("host")+","+query.Get("host")) // the standby first: it must not be used
	first.RawQuery = query.Encode()
	p.URL = first.String()
	if err := postgres.Migrate(ctx, p.URL); err != nil {
		tb.Fatal(err)
	}
	return p
}

// start starts one of the servers, whose data prepare may make.
func (p *Pair) start(ctx context.Context, tb testing.TB, prepare func(pgserver.Config) error) *pgserver.Server {
	tb.Helper()
	dir, err := os.MkdirTemp("", "pgtest-") // t.TempDir's names are too long for a socket
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg := pgserver.Config{Dir: dir, DieWithParent: true} // not Volatile: that acknowledges before the standby does
	orSkip(tb, prepare(cfg))
	server, err := pgserver.Start(ctx, cfg)
	orSkip(tb, err)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		if err := server.Stop(ctx); err != nil {
			tb.Error(err)
		}
	})
	return server
}

// KillPrimary ends the primary as a crash of its machine does.
func (p *Pair) KillPrimary() { p.primary.Kill() }

// Promote makes the standby the primary.
func (p *Pair) Promote(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), timeout)
	defer cancel()
	run(ctx, tb, p.standby.URL("postgres"), "SELECT pg_promote()")
}

func config(dir string) pgserver.Config {
	return pgserver.Config{Dir: dir, Volatile: true, DieWithParent: true}
}

func startShared() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*timeout)
	defer cancel()
	var err error
	if shared.dir, err = os.MkdirTemp("", "pgtest-"); err != nil {
		return err
	}
	if shared.server, err = pgserver.Start(ctx, config(shared.dir)); err != nil {
		return err
	}
	if err := shared.server.EnsureDatabase(ctx, template); err != nil {
		return err
	}
	return postgres.Migrate(ctx, shared.server.URL(template))
}

// admin runs a statement on the shared server.
func admin(tb testing.TB, sql string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), timeout)
	defer cancel()
	run(ctx, tb, shared.server.URL("postgres"), sql)
}

// run runs a statement.
func run(ctx context.Context, tb testing.TB, url, sql string) {
	tb.Helper()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // the statement has been answered
	if _, err := conn.Exec(ctx, sql); err != nil {
		tb.Fatal(err)
	}
}

// orSkip skips the test if PostgreSQL is not installed, and ends it on other errors.
func orSkip(tb testing.TB, err error) {
	tb.Helper()
	switch {
	case err == nil:
	case wrenn.CodeOf(err) == wrenn.NotFound && os.Getenv("WRENN_CI") == "":
		tb.Skip(err)
	default:
		tb.Fatal(err)
	}
}
