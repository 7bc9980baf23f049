package service

import (
	"context"
	"time"

	"wrenn"
	"wrenn/internal/controlplane/auth"
	"wrenn/internal/controlplane/postgres"
)

const (
	keyCacheSize = 10_000
	keyCacheTTL  = 5 * time.Second // how long a key works after another replica revoked it
)

// Keys are the use cases of API keys.
type Keys struct {
	store *postgres.Store
	cache *auth.Cache[Caller]
	used  uses[string]
}

func newKeys(store *postgres.Store) *Keys {
	return &Keys{store: store, cache: auth.NewCache[Caller](keyCacheSize, keyCacheTTL)}
}

// Key is an API key without its secret.
type Key struct {
	ID, Name   string
	Hint       string // the first characters of the secret
	CreatedAt  time.Time
	LastUsedAt time.Time // zero when never; late by seconds
}

var errUnknownKey = wrenn.Errorf(wrenn.Unauthenticated, "the API key is missing, unknown or revoked")

// Authenticate returns the caller that a secret belongs to: Unauthenticated when
// it is unknown. It caches for seconds, so that a busy key costs the database nothing.
func (s *Keys) Authenticate(ctx context.Context, secret string) (Caller, error) {
	hash, ok := auth.HashOf(secret)
	if !ok {
		return Caller{}, errUnknownKey
	}
	c, known := s.cache.Get(hash)
	if !known {
		id, team, err := s.store.FindKey(ctx, hash)
		if wrenn.CodeOf(err) == wrenn.NotFound {
			return Caller{}, errUnknownKey
		}
		if err != nil {
			return Caller{}, err
		}
		c = Caller{Team: team, Key: id}
		s.cache.Put(hash, c)
	}
	s.used.add(c.Key)
	return c, nil
}

// CreateKey makes a key. Its secret is returned this once.
func (s *Keys) CreateKey(ctx context.Context, c Caller, name string) (Key, string, error) {
	if err := checkName("key", name); err != nil {
		return Key{}, "", err
	}
	secret := auth.NewSecret()
	hash, _ := auth.HashOf(string(secret)) // it has the form
	key, err := s.store.CreateKey(ctx, c.Team, name, hash, secret.Hint())
	if err != nil {
		return Key{}, "", err
	}
	return keyOf(key), string(secret), nil
}

// TeamName returns the name of the caller's team.
func (s *Keys) TeamName(ctx context.Context, c Caller) (string, error) {
	return s.store.TeamName(ctx, c.Team)
}

// ListKeys returns the team's keys, newest first.
func (s *Keys) ListKeys(ctx context.Context, c Caller) ([]Key, error) {
	rows, err := s.store.Keys(ctx, c.Team)
	keys := make([]Key, len(rows))
	for i, row := range rows {
		keys[i] = keyOf(row)
	}
	return keys, err
}

// RevokeKey ends a key of the team: NotFound when it has none of that id.
// Other replicas may accept it for some seconds more.
func (s *Keys) RevokeKey(ctx context.Context, c Caller, id string) error {
	if err := s.store.RevokeKey(ctx, c.Team, id); err != nil {
		return err
	}
	s.cache.Forget(func(known Caller) bool { return known.Key == id })
	return nil
}

func keyOf(k postgres.Key) Key {
	return Key{ID: k.ID, Name: k.Name, Hint: k.Hint, CreatedAt: k.CreatedAt, LastUsedAt: k.LastUsedAt}
}
