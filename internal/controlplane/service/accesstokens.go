package service

import (
	"context"
	"sync"

	"wrenn.dev"
	"wrenn.dev/internal/accesstoken"
	"wrenn.dev/internal/controlplane/postgres"
)

// accessTokens makes the access tokens of sandboxes. It is safe for concurrent use.
type accessTokens struct {
	store *postgres.Store

	mu   sync.Mutex // guards seed
	seed []byte     // nil until it was read
}

// of returns the access token of a sandbox, which stays the same for its life. It
// is not checked whether the sandbox exists.
func (t *accessTokens) of(ctx context.Context, id wrenn.SandboxID) (string, error) {
	seed, err := t.readSeed(ctx)
	if err != nil {
		return "", err
	}
	return accesstoken.For(seed, id), nil
}

// ofTraffic returns the token for the ports of a sandbox but that of its agent.
func (t *accessTokens) ofTraffic(ctx context.Context, id wrenn.SandboxID) (string, error) {
	seed, err := t.readSeed(ctx)
	if err != nil {
		return "", err
	}
	return accesstoken.ForTraffic(seed, id), nil
}

// ofAll is of for several sandboxes.
func (t *accessTokens) ofAll(ctx context.Context, ids []wrenn.SandboxID) (map[wrenn.SandboxID]string, error) {
	seed, err := t.readSeed(ctx)
	if err != nil {
		return nil, err
	}
	tokens := make(map[wrenn.SandboxID]string, len(ids))
	for _, id := range ids {
		tokens[id] = accesstoken.For(seed, id)
	}
	return tokens, nil
}

func (t *accessTokens) readSeed(ctx context.Context) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.seed == nil {
		seed, err := t.store.AccessTokenSeed(ctx)
		if err != nil {
			return nil, err
		}
		t.seed = seed
	}
	return t.seed, nil
}
