package postgres

import (
	"context"
	"hash/fnv"
	"time"

	"github.com/jackc/pgx/v5"
)

// Lead is the right to be the only one who does something. It lasts as long
// as its connection.
type Lead struct {
	conn    *pgx.Conn
	timeout time.Duration
}

// TryLead takes the lead in a matter, or returns nil when somebody else has
// it. It holds a connection outside of the pool, because the lock belongs to
// the session: a pooler that shares sessions between clients must not be in
// between. The caller closes the lead.
func (s *Store) TryLead(ctx context.Context, matter string) (*Lead, error) {
	var lead *Lead
	err := s.call(ctx, "take the lead", func(ctx context.Context) error {
		conn, err := pgx.ConnectConfig(ctx, s.pool.Config().ConnConfig)
		if err != nil {
			return err
		}
		var got bool
		err = conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", lockKey(matter)).Scan(&got)
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
	return failure("keep the lead", l.conn.Ping(ctx))
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
