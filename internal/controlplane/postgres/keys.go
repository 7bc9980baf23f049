package postgres

import (
	"context"
	"errors"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// Key is an API key without its secret.
type Key struct {
	ID, Name, Hint        string
	Scopes                wrenn.Scopes
	CreatedAt, LastUsedAt time.Time // LastUsedAt is zero when it was not used
	ExpiresAt             time.Time // zero is never
}

// EnsureTeam returns the team of that name, which it makes if it does not exist.
func (s *Store) EnsureTeam(ctx context.Context, name string) (wrenn.TeamID, error) {
	var id string
	err := s.call(ctx, "create the team", func(ctx context.Context) (err error) {
		id, err = s.queries.EnsureTeam(ctx, name)
		return err
	})
	return wrenn.TeamID(id), err
}

// CreateKey writes a key by the hash of its secret. Of k only Name, Hint, Scopes and
// ExpiresAt count.
func (s *Store) CreateKey(ctx context.Context, team wrenn.TeamID, hash [32]byte, k Key) (Key, error) {
	var out Key
	err := s.inTx(ctx, "create the key", func(ctx context.Context, q *dbsqlc.Queries) error {
		n, err := q.CountKeys(ctx, string(team))
		if err != nil {
			return err
		}
		if n >= MaxKeys {
			return wrenn.Errorf(wrenn.Exhausted, "the team has %d API keys, which is a fixed limit: revoke one first", n)
		}
		row, err := q.InsertKey(ctx, dbsqlc.InsertKeyParams{
			TeamID: string(team), Name: k.Name, Hash: hash[:], Hint: k.Hint, Scopes: k.Scopes.Texts(), ExpiresAt: orNil(k.ExpiresAt),
		})
		if pe, ok := errors.AsType[*pgconn.PgError](err); ok && pe.Code == foreignKeyViolation {
			return wrenn.Errorf(wrenn.NotFound, "the team does not exist any more")
		}
		if err == nil {
			out, err = key(row)
		}
		return err
	})
	return out, err
}

// Keys returns a team's keys that are not revoked, newest first.
func (s *Store) Keys(ctx context.Context, team wrenn.TeamID) ([]Key, error) {
	out := []Key{}
	err := s.call(ctx, "list keys", func(ctx context.Context) error {
		rows, err := s.queries.ListKeys(ctx, string(team), MaxKeys)
		for _, row := range rows {
			k, err := key(row)
			if err != nil {
				return err
			}
			out = append(out, k)
		}
		return err
	})
	return out, err
}

// FindKey returns the key whose secret has this hash, with its ID, Scopes and
// ExpiresAt, and its team: NotFound when none has.
func (s *Store) FindKey(ctx context.Context, hash [32]byte) (k Key, team wrenn.TeamID, err error) {
	err = s.call(ctx, "find the key", func(ctx context.Context) error {
		row, err := s.queries.KeyByHash(ctx, hash[:])
		if errors.Is(err, pgx.ErrNoRows) {
			return wrenn.Errorf(wrenn.NotFound, "there is no such key")
		}
		if err != nil {
			return err
		}
		team = wrenn.TeamID(row.TeamID)
		k, err = key(dbsqlc.APIKey{ID: row.ID, Scopes: row.Scopes, ExpiresAt: row.ExpiresAt})
		return err
	})
	return k, team, err
}

var uuid = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// RevokeKey ends a team's key: NotFound when it has none of that id.
func (s *Store) RevokeKey(ctx context.Context, team wrenn.TeamID, id string) error {
	missing := wrenn.Errorf(wrenn.NotFound, "there is no key %.40q", id)
	if !uuid.MatchString(id) {
		return missing
	}
	return s.call(ctx, "revoke the key", func(ctx context.Context) error {
		_, err := s.queries.RevokeKey(ctx, id, string(team))
		if errors.Is(err, pgx.ErrNoRows) {
			return missing
		}
		return err
	})
}

// TouchKeys records when keys were last used.
func (s *Store) TouchKeys(ctx context.Context, used map[string]time.Time) error {
	ids, times := columns(used)
	return s.call(ctx, "record the use of keys", func(ctx context.Context) error { return s.queries.TouchKeys(ctx, ids, times) })
}

// key fails for a scope that only a newer version knows.
func key(r dbsqlc.APIKey) (Key, error) {
	scopes, err := wrenn.ParseScopes(r.Scopes)
	return Key{
		ID: r.ID, Name: r.Name, Hint: r.Hint, Scopes: scopes,
		CreatedAt: r.CreatedAt.UTC(), LastUsedAt: orZero(r.LastUsedAt), ExpiresAt: orZero(r.ExpiresAt),
	}, err
}

// AccessTokenSeed returns the seed of the access tokens of sandboxes, at least 32
// bytes. It never changes. It must not be logged.
func (s *Store) AccessTokenSeed(ctx context.Context) (seed []byte, err error) {
	err = s.call(ctx, "read the seed of access tokens", func(ctx context.Context) error {
		seed, err = s.queries.PlatformSecret(ctx, "access_token_seed")
		return err
	})
	return seed, err
}

// TeamName returns the name of a team.
func (s *Store) TeamName(ctx context.Context, team wrenn.TeamID) (string, error) {
	var name string
	err := s.call(ctx, "read the team", func(ctx context.Context) (err error) {
		name, err = s.queries.TeamName(ctx, string(team))
		return err
	})
	return name, err
}
