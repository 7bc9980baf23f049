package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// maxSessions bounds the sessions of a key: a new one ends its oldest.
const maxSessions = 100

// Session is a browser that is signed in with a key.
type Session struct {
	Team      wrenn.TeamID
	Key       string // its id
	Scopes    wrenn.Scopes
	ExpiresAt time.Time // the earlier one of the session's and the key's
}

// CreateSession writes a session of a key by the hash of its secrets, and drops what has expired.
func (s *Store) CreateSession(ctx context.Context, hash [32]byte, key string, expires time.Time) error {
	return s.inTx(ctx, "create the session", func(ctx context.Context, q *dbsqlc.Queries) error {
		if err := q.DropSessions(ctx, key, maxSessions-1); err != nil {
			return err
		}
		return q.InsertSession(ctx, hash[:], key, expires)
	})
}

// FindSession returns the session whose secrets have this hash: NotFound when none
// has, and when its key was revoked.
func (s *Store) FindSession(ctx context.Context, hash [32]byte) (out Session, err error) {
	err = s.call(ctx, "find the session", func(ctx context.Context) error {
		row, err := s.queries.SessionByHash(ctx, hash[:])
		if errors.Is(err, pgx.ErrNoRows) {
			return wrenn.Errorf(wrenn.NotFound, "there is no such session")
		}
		if err != nil {
			return err
		}
		out = Session{Team: wrenn.TeamID(row.TeamID), Key: row.ID, ExpiresAt: row.ExpiresAt.UTC()}
		if row.KeyExpiresAt != nil && row.KeyExpiresAt.Before(out.ExpiresAt) {
			out.ExpiresAt = row.KeyExpiresAt.UTC()
		}
		out.Scopes, err = wrenn.ParseScopes(row.Scopes)
		return err
	})
	return out, err
}

// DeleteSession ends a session; one that does not exist is no error.
func (s *Store) DeleteSession(ctx context.Context, hash [32]byte) error {
	return s.call(ctx, "end the session", func(ctx context.Context) error { return s.queries.DeleteSession(ctx, hash[:]) })
}

// KeyName returns the name of a key, also of a revoked one.
func (s *Store) KeyName(ctx context.Context, id string) (name string, err error) {
	err = s.call(ctx, "read the key", func(ctx context.Context) (err error) {
		name, err = s.queries.KeyName(ctx, id)
		return err
	})
	return name, err
}
