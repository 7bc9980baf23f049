// Package service holds what the control plane does: its use cases, for
// callers that are authenticated. It writes the wish into the database, asks
// the host, and writes what came of it.
package service

import (
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"wrenn"
	"wrenn/internal/postgres"
)

// The words of commands, which the product shares.
type (
	ExecCommand = wrenn.ExecCommand
	ExecResult  = wrenn.ExecResult
	ExecStart   = wrenn.ExecStart
	PTYSize     = wrenn.PTYSize
	ExecOutput  = wrenn.ExecOutput
	ExecExit    = wrenn.ExecExit
)

// Config says which hosts there are and what teams may use.
type Config struct {
	Hosts  []Host
	Limits Limits
	// ReconcileEvery is how often rows and hosts are compared; default 30 s.
	ReconcileEvery time.Duration
}

// Host is a machine that runs sandboxes.
type Host struct {
	ID  wrenn.HostID
	URL string // http://, https:// or unix:///path
	TLS *tls.Config
}

// Limits bound a team, where its row in the database says nothing else. Zero values are the defaults.
type Limits struct {
	Sandboxes    int // at once, paused ones included; default 100
	TeamMemoryMB int // of all of them; default 262144
	VCPUs        int // of one; default 8
	MemoryMB     int // of one; default 16384
}

// Caller is who asks, as Authenticate found.
type Caller struct {
	Team wrenn.TeamID
	Key  string // the id of the key
}

// Service is the control plane. It is safe for concurrent use.
type Service struct{ log *slog.Logger }

// New returns a service over a database that is migrated. It does not wait
// for hosts. Run must run for it to notice what hosts do by themselves.
func New(cfg Config, store *postgres.Store, log *slog.Logger) (*Service, error) {
	return &Service{log: log}, nil
}

// Run watches the hosts, reconciles and writes what was batched until ctx ends.
func (s *Service) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// EnsureTeam returns the team of that name and makes it when there is none.
func (s *Service) EnsureTeam(ctx context.Context, name string) (wrenn.TeamID, error) {
	return "", errSkeleton
}

// Ready says whether requests can be served: Unavailable when the database cannot be reached.
func (s *Service) Ready(ctx context.Context) error { return errSkeleton }

var errSkeleton = wrenn.Errorf(wrenn.Unavailable, "not built yet")
