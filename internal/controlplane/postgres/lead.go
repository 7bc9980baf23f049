package postgres

import (
	"context"
	"hash/fnv"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"
)

// A server must find out that a client is gone without closing its connection,
// because a machine or a network died: until then the client's lock is held.
var keepalive = map[string]string{"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "2", "tcp_user_timeout": "15s"}

// Lead is the right of one process to do something alone. It lasts as long as
// its connection.
type Lead struct {
	conn    *pgx.Conn
	timeout time.Duration
}

// TryLead acquires the lead in a matter, or returns nil while another process has
// it. The caller closes the lead.
func (s *Store) TryLead(ctx context.Context, matter string) (*Lead, error) {
	return s.tryLock(ctx, lockKey(matter))
}

// RegisterWorker shows other replicas, as long as the result is held, that this
// process works on the rows that it moved into a transition; see Abandoned. It
// returns nil while the server still holds the session before. The caller closes it.
func (s *Store) RegisterWorker(ctx context.Context) (*Lead, error) { return s.tryLock(ctx, s.worker) }

// tryLock holds a connection outside of the pool, because the lock belongs to
// the session: no pooler that shares sessions among clients may stand in front
// of the database.
func (s *Store) tryLock(ctx context.Context, key int64) (*Lead, error) {
	var lead *Lead
	err := s.call(ctx, "acquire a lock", func(ctx context.Context) error {
		cfg := s.pool.Config().ConnConfig // a copy
		maps.Copy(cfg.RuntimeParams, keepalive)
		conn, err := pgx.ConnectConfig(ctx, cfg)
		if err != nil {
			return err
		}
		var got bool
		err = conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", key).Scan(&got)
		if err != nil || !got {
			_ = conn.Close(ctx) // the lock, if any, goes with it
			return err
		}
		lead = &Lead{conn: conn, timeout: s.timeout}
		return nil
	})
	return lead, err
}

// Held returns nil if the lead is still held. After an error it is lost.
func (l *Lead) Held(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	return failure("keep a lock", l.conn.Ping(ctx))
}

// Close releases the lead, also when ctx has ended.
func (l *Lead) Close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.timeout)
	defer cancel()
	_ = l.conn.Close(ctx) // a broken connection has released it already
}

// lockKey names a matter by a number, as advisory locks are.
func lockKey(matter string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte("wrenn/" + matter)) // never fails
	return int64(h.Sum64())
}
