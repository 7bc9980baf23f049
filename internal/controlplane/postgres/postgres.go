// Package postgres stores the state of the control plane. It is the only package
// with SQL: rows become types of package wrenn before they leave it.
//
// Every failure is a *wrenn.Error. Unavailable means that the database cannot
// be reached now: nothing has to be restarted when it is back. Each call is
// one statement or one transaction and has its own deadline.
package postgres

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"wrenn.dev"
	"wrenn.dev/db"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

const (
	defaultMaxConns = 16
	defaultTimeout  = 5 * time.Second
	idleCheck       = 15 * time.Second
)

// Config is the configuration of a store. Only URL must be set.
type Config struct {
	URL      string
	MaxConns int           // default 16
	Timeout  time.Duration // of one call; default 5 s
}

// Store is a pool of connections to one database. It is safe for concurrent use.
type Store struct {
	*database
	templateStore
	volumeStore
	secretStore
	networkStore
	webhookStore
}

// templateStore has the methods of a Store for templates.
type templateStore struct{ *database }

// volumeStore has the methods of a Store for volumes.
type volumeStore struct{ *database }

// secretStore has the methods of a Store for secrets.
type secretStore struct{ *database }

// webhookStore has the methods of a Store for webhooks.
type webhookStore struct{ *database }

// database is what is under the methods of a Store.
type database struct {
	pool    *pgxpool.Pool
	queries *dbsqlc.Queries
	timeout time.Duration
	worker  int64 // names this process in the rows that it works on, and in the lock of RegisterWorker
}

// Open returns a store. It does not wait for the database, which may be down;
// see Ready. The caller closes the store.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	pc, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		return nil, badURL(err, cfg.URL)
	}
	pc.MaxConns = int32(cmp.Or(cfg.MaxConns, defaultMaxConns))
	pc.HealthCheckPeriod = idleCheck
	prepare(pc.ConnConfig)
	pc.ConnConfig.Tracer = querySpans{}
	if pc.ConnConfig.RuntimeParams["application_name"] == "" {
		pc.ConnConfig.RuntimeParams["application_name"] = "wrenn"
	}
	// The best plan of a list depends on how many rows a filter by metadata selects; a plan for all values cannot know.
	pc.ConnConfig.RuntimeParams["plan_cache_mode"] = "force_custom_plan"
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, failure("open the database", err)
	}
	// Random among 2^63, so that no two processes are equal, and above 0, which is no process.
	below := &database{pool: pool, queries: dbsqlc.New(pool), timeout: cmp.Or(cfg.Timeout, defaultTimeout), worker: 1 + rand.Int64N(math.MaxInt64)}
	return &Store{database: below, templateStore: templateStore{below}, volumeStore: volumeStore{below}, secretStore: secretStore{below}, networkStore: networkStore{below}, webhookStore: webhookStore{below}}, nil
}

// badURL is the error of a URL that cannot be read. A password in it is not in the error.
func badURL(err error, url string) error {
	without := errors.New(strings.ReplaceAll(err.Error(), url, "[url]"))
	return &wrenn.Error{Code: wrenn.Invalid, Message: "the database's URL cannot be read: expected postgres://user@host/name", Err: without}
}

// Close ends all connections once those in use are returned.
func (s *Store) Close() { s.pool.Close() }

// Ready returns nil if the database answers and has the schema that this program
// needs. A newer schema is allowed: migrations keep the version before working.
func (s *Store) Ready(ctx context.Context) error {
	want, err := latestMigration()
	if err != nil {
		return err
	}
	return s.call(ctx, "check the schema", func(ctx context.Context) error {
		var have int64
		err := s.pool.QueryRow(ctx, "SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied").Scan(&have)
		if pe, ok := errors.AsType[*pgconn.PgError](err); (ok && pe.Code == undefinedTable) || (err == nil && have < want) {
			return wrenn.Errorf(wrenn.Unavailable, "the database's schema is at version %d and %d is needed: run control-plane migrate", have, want)
		}
		return err
	})
}

// Migrate migrates the schema to the version of this program. It waits for
// another process that does so. Twice is allowed.
func Migrate(ctx context.Context, url string) error {
	cfg, err := parseURL(url)
	if err != nil {
		return err
	}
	conn := stdlib.OpenDB(*cfg)
	defer func() { _ = conn.Close() }() // all queries have ended
	provider, err := migrations(conn)
	if err != nil {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		return failure("migrate the database", err)
	}
	return nil
}

func migrations(conn *sql.DB) (*goose.Provider, error) {
	files, err := fs.Sub(db.Migrations, "migrations")
	if err != nil {
		return nil, err
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return nil, err
	}
	// In any order: migrations do not depend on each other, and a database may have had a later one before.
	return goose.NewProvider(goose.DialectPostgres, conn, files, goose.WithSessionLocker(locker), goose.WithAllowOutofOrder(true))
}

func latestMigration() (int64, error) {
	files, err := fs.Glob(db.Migrations, "migrations/*.sql")
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("no migrations: %w", err)
	}
	return goose.NumericComponent(files[len(files)-1])
}

// call runs one call with its deadline and converts its error.
func (s *database) call(ctx context.Context, doing string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.timeout, errSlow)
	defer cancel()
	err := f(ctx)
	if err != nil && context.Cause(ctx) == errSlow { //nolint:errorlint // the very value, set above
		return unavailable(doing, err)
	}
	return failure(doing, err)
}

// inTx is call in a transaction.
func (s *database) inTx(ctx context.Context, doing string, f func(context.Context, *dbsqlc.Queries) error) error {
	return s.call(ctx, doing, func(ctx context.Context) error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error { return f(ctx, s.queries.WithTx(tx)) })
	})
}

var errSlow = errors.New("the database took too long")

// SQLSTATEs, see appendix A of PostgreSQL's manual.
const (
	undefinedTable      = "42P01"
	foreignKeyViolation = "23503"
)

// unavailableClasses are the SQLSTATEs, or their classes, of errors that pass: the caller may try again.
var unavailableClasses = []string{
	"08",    // connection exceptions
	"53",    // insufficient resources
	"57",    // operator intervention: shutdown, cannot connect now
	"58",    // system errors
	"40",    // serialization failure, deadlock
	"25006", // read only: the server was the primary, or a proxy leads to a standby for a moment
}

// failure converts an error of pgx to a *wrenn.Error.
func failure(doing string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*wrenn.Error](err); ok {
		return err
	}
	if errors.Is(err, context.Canceled) {
		return &wrenn.Error{Code: wrenn.Canceled, Message: doing + ": canceled", Err: err}
	}
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		for _, class := range unavailableClasses {
			if strings.HasPrefix(pe.Code, class) {
				return unavailable(doing, err)
			}
		}
		return &wrenn.Error{Code: wrenn.Internal, Message: "the database refused to " + doing, Err: err}
	}
	if unreachable(err) {
		return unavailable(doing, err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &wrenn.Error{Code: wrenn.DeadlineExceeded, Message: doing + ": the deadline passed", Err: err}
	}
	return &wrenn.Error{Code: wrenn.Internal, Message: "cannot " + doing, Err: err}
}

// unreachable reports whether err is a connection that cannot be made, or that broke.
func unreachable(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok && !errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	return pgconn.SafeToRetry(err) || errors.Is(err, fs.ErrClosed) || isEOF(err) || strings.Contains(err.Error(), "conn closed")
}

func unavailable(doing string, err error) error {
	return &wrenn.Error{Code: wrenn.Unavailable, Message: "the database cannot be reached; try again in a moment", Err: fmt.Errorf("%s: %w", doing, err)}
}
