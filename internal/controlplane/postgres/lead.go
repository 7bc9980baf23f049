package postgres

import (
	"context"
	"hash/fnv"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"
)

// A server that lost its client without a word, because a machine or a network
// died, must find out: until then a lock is held for nobody.
var keepalive = map[string]string{"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "2", "tcp_user_timeout": "15s"}

// Lead is the right to be the only one who does something. It lasts as long
// as its connection.
type Lead struct {
	conn    *pgx.Conn
	timeout time.Duration
}

// TryLead takes the lead in a matter, or returns nil when somebody else has
// it. The caller closes the lead.
func (s *Store) TryLead(ctx context.Context, matter string) (*Lead, error) {
	return s.tryLock(ctx, lockKey(matter))
}

// TryAttend shows other replicas, as long as the result is held, that rows
// which this store moved between two states are worked on; see Abandoned. It
// returns nil while the server believes that the session before is there.
// The caller closes it.
func (s *Store) TryAttend(ctx context.Context) (*Lead, error) { return s.tryLock(ctx, s.worker) }

// tryLock holds a connection outside of the pool, because the lock belongs to
// the session: a pooler that shares sessions between clients must not be in
// between.
func (s *Store) tryLock(ctx context.Context, key int64) (*Lead, error) {
	var lead *Lead
	err := s.call(ctx, "take a lock", func(ctx context.Context) error {
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

// Held says whether the lead still is ours. An error ends it for good.
func (l *Lead) Held(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	return failure("keep a lock", l.conn.Ping(ctx))
}

// Close gives the lead up. It works under a ctx that has ended.
func (l *Lead) Close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.timeout)
	defer cancel()
	_ = l.conn.Close(ctx) // a connection that broke has given it up already
}

// lockKey names a matter by a number, as advisory locks are.
func lockKey(matter string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte("wrenn/" + matter)) // never fails
	return int64(h.Sum64())
}
