package service

import (
	"cmp"
	"context"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/auth"
	"wrenn.dev/internal/controlplane/postgres"
)

const (
	keyCacheSize = 10_000
	keyCacheTTL  = 5 * time.Second // how long a key works after another replica revoked it
)

// Keys are the use cases of API keys.
type Keys struct {
	store *postgres.Store
	cache *auth.Cache[knownKey]
	used  uses[string]

	sessions *auth.Cache[postgres.Session]
}

// knownKey is a key that the database has.
type knownKey struct {
	caller  Caller
	expires time.Time // zero is never
}

func newKeys(store *postgres.Store) *Keys {
	return &Keys{
		store: store, cache: auth.NewCache[knownKey](keyCacheSize, keyCacheTTL),
		sessions: auth.NewCache[postgres.Session](keyCacheSize, keyCacheTTL),
	}
}

// Key is an API key without its secret.
type Key struct {
	ID, Name   string
	Hint       string // the first characters of the secret
	Scopes     wrenn.Scopes
	CreatedAt  time.Time
	LastUsedAt time.Time // zero when never; late by seconds
	ExpiresAt  time.Time // zero is never
}

// NewKey says what CreateKey makes.
type NewKey struct {
	Name      string
	Scopes    wrenn.Scopes // 0 are all
	ExpiresAt time.Time    // zero is never
}

var errUnknownKey = wrenn.Errorf(wrenn.Unauthenticated, "the API key is missing, unknown, revoked or expired")

// Authenticate returns the caller that a secret belongs to: Unauthenticated when
// it is unknown. It caches for seconds, so that a busy key costs the database nothing.
func (s *Keys) Authenticate(ctx context.Context, secret string) (Caller, error) {
	hash, ok := auth.HashOf(secret)
	if !ok {
		return Caller{}, errUnknownKey
	}
	k, known := s.cache.Get(hash)
	if !known {
		key, team, err := s.store.FindKey(ctx, hash)
		if wrenn.CodeOf(err) == wrenn.NotFound {
			return Caller{}, errUnknownKey
		}
		if err != nil {
			return Caller{}, err
		}
		k = knownKey{Caller{Team: team, Key: key.ID, Scopes: key.Scopes}, key.ExpiresAt}
		s.cache.Put(hash, k)
	}
	if !k.expires.IsZero() && !time.Now().Before(k.expires) {
		return Caller{}, errUnknownKey
	}
	s.used.add(k.caller.Key)
	return k.caller, nil
}

// CreateKey makes a key. Its secret is returned this once.
func (s *Keys) CreateKey(ctx context.Context, c Caller, want NewKey) (Key, string, error) {
	if err := checkName("key", want.Name); err != nil {
		return Key{}, "", err
	}
	if c.Key != "" && want.Scopes.Allow(wrenn.ScopeOperator) {
		if err := c.Scopes.Check(wrenn.ScopeOperator); err != nil {
			return Key{}, "", err
		}
	}
	if !want.ExpiresAt.IsZero() && !time.Now().Before(want.ExpiresAt) {
		return Key{}, "", wrenn.Errorf(wrenn.Invalid, "the key would expire at %s, which has passed", want.ExpiresAt.UTC().Format(time.RFC3339))
	}
	secret := auth.NewSecret()
	hash, _ := auth.HashOf(string(secret)) // it has the form
	key, err := s.store.CreateKey(ctx, c.Team, hash, postgres.Key{
		Name: want.Name, Hint: secret.Hint(), Scopes: cmp.Or(want.Scopes, wrenn.AllScopes), ExpiresAt: want.ExpiresAt,
	})
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
	s.cache.Forget(func(k knownKey) bool { return k.caller.Key == id })
	s.sessions.Forget(func(k postgres.Session) bool { return k.Key == id })
	return nil
}

func keyOf(k postgres.Key) Key {
	return Key{
		ID: k.ID, Name: k.Name, Hint: k.Hint, Scopes: k.Scopes, CreatedAt: k.CreatedAt, LastUsedAt: k.LastUsedAt, ExpiresAt: k.ExpiresAt,
	}
}
