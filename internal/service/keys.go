package service

import (
	"context"
	"time"
)

// Key is an API key without its secret.
type Key struct {
	ID, Name   string
	Hint       string // the first characters of the secret
	CreatedAt  time.Time
	LastUsedAt time.Time // zero when never; late by seconds
}

// Authenticate finds whose secret that is: Unauthenticated when nobody's. It remembers for seconds.
func (s *Service) Authenticate(ctx context.Context, secret string) (Caller, error) {
	return Caller{}, errSkeleton
}

// CreateKey makes a key. Its secret is returned this once.
func (s *Service) CreateKey(ctx context.Context, c Caller, name string) (Key, string, error) {
	return Key{}, "", errSkeleton
}

// ListKeys returns the team's keys, newest first.
func (s *Service) ListKeys(ctx context.Context, c Caller) ([]Key, error) { return nil, errSkeleton }

// RevokeKey ends a key. Other replicas may take it for some seconds more.
func (s *Service) RevokeKey(ctx context.Context, c Caller, id string) error { return errSkeleton }
