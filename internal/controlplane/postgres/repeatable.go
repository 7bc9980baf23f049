package postgres

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// retention is how long a key of a client names the same create.
const retention = 24 * time.Hour

// RepeatableCreate is a create that a client may repeat.
type RepeatableCreate struct {
	Team        wrenn.TeamID
	Route, Key  string // what the client names it by
	Fingerprint []byte // of the request
	Sandbox     wrenn.SandboxID
}

// CreateProgress is how far a repeatable create is.
type CreateProgress int

// The values of CreateProgress.
const (
	CreateBegins    CreateProgress = iota // by the caller, who calls EndCreate or DropCreate
	CreateDiffers                         // the key is of another request
	CreateAtWork                          // a process creates Sandbox
	CreateAbandoned                       // no process does, and what became of Sandbox was not recorded
	CreateDone                            // Sandbox was created
)

// BeginCreate records a create that this process begins. If the client has begun
// it before it returns how far that is, and its sandbox.
func (s *Store) BeginCreate(ctx context.Context, c RepeatableCreate) (progress CreateProgress, sandbox wrenn.SandboxID, err error) {
	err = s.call(ctx, "begin a create", func(ctx context.Context) error {
		if err := s.queries.DropOldCreates(ctx, retention.Seconds()); err != nil {
			return err
		}
		for {
			begun, err := s.queries.BeginCreate(ctx, dbsqlc.BeginCreateParams{
				TeamID: string(c.Team), Route: c.Route, Key: c.Key, Fingerprint: c.Fingerprint, SandboxID: string(c.Sandbox), Worker: &s.worker,
			})
			if err != nil {
				return err
			}
			if begun > 0 {
				progress, sandbox = CreateBegins, c.Sandbox
				return nil
			}
			row, err := s.queries.GetCreate(ctx, string(c.Team), c.Route, c.Key)
			if errors.Is(err, pgx.ErrNoRows) { // dropped since
				continue
			}
			progress, sandbox = progressOf(&row, c.Fingerprint), wrenn.SandboxID(row.SandboxID)
			return err
		}
	})
	return progress, sandbox, err
}

func progressOf(row *dbsqlc.GetCreateRow, fingerprint []byte) CreateProgress {
	switch {
	case !bytes.Equal(row.Fingerprint, fingerprint):
		return CreateDiffers
	case row.AtWork:
		return CreateAtWork
	case row.Worker != nil:
		return CreateAbandoned
	}
	return CreateDone
}

// TakeOverCreate records that this process begins an abandoned create again, with
// another sandbox. It returns false when another process did so.
func (s *Store) TakeOverCreate(ctx context.Context, c RepeatableCreate, lost wrenn.SandboxID) (bool, error) {
	var n int64
	err := s.call(ctx, "take over a create", func(ctx context.Context) (err error) {
		n, err = s.queries.TakeOverCreate(ctx, dbsqlc.TakeOverCreateParams{
			TeamID: string(c.Team), Route: c.Route, Key: c.Key, SandboxID: string(c.Sandbox), LostID: string(lost), Worker: &s.worker,
		})
		return err
	})
	return n > 0, err
}

// EndCreate records that the sandbox of a create runs.
func (s *Store) EndCreate(ctx context.Context, c RepeatableCreate) error {
	return s.call(ctx, "end a create", func(ctx context.Context) error {
		return s.queries.EndCreate(ctx, dbsqlc.EndCreateParams{TeamID: string(c.Team), Route: c.Route, Key: c.Key, SandboxID: string(c.Sandbox)})
	})
}

// DropCreate forgets a create that made no sandbox.
func (s *Store) DropCreate(ctx context.Context, c RepeatableCreate) error {
	return s.call(ctx, "forget a create", func(ctx context.Context) error {
		return s.queries.DropCreate(ctx, dbsqlc.DropCreateParams{TeamID: string(c.Team), Route: c.Route, Key: c.Key, SandboxID: string(c.Sandbox)})
	})
}
