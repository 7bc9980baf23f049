package postgres

import (
	"context"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// AuditEntry is a call with an API key that needed more than to read.
type AuditEntry struct {
	ID        int64 // increases; set by AuditEntries
	Team      wrenn.TeamID
	At        time.Time
	Key       string // its id
	KeyName   string // set by AuditEntries
	Address   string // of the client, without the port
	RequestID string
	Operation string // as the contract calls it
	Path      string
	Status    int // of the answer
}

// AuditQuery says which entries AuditEntries returns. Since and Until are required.
type AuditQuery struct {
	Since, Until time.Time
	Before       int64 // only entries with a lower id
	Limit        int
}

// AddAuditEntries writes entries.
func (s *Store) AddAuditEntries(ctx context.Context, entries []AuditEntry) error {
	var p dbsqlc.InsertAuditEntriesParams
	for _, e := range entries {
		p.Teams, p.Times, p.Keys = append(p.Teams, string(e.Team)), append(p.Times, e.At), append(p.Keys, e.Key)
		p.Addresses, p.Requests = append(p.Addresses, e.Address), append(p.Requests, e.RequestID)
		p.Operations, p.Paths, p.Statuses = append(p.Operations, e.Operation), append(p.Paths, e.Path), append(p.Statuses, clampInt32(e.Status))
	}
	return s.call(ctx, "write the audit log", func(ctx context.Context) error { return s.queries.InsertAuditEntries(ctx, p) })
}

// AuditEntries returns entries of a team, newest first.
func (s *Store) AuditEntries(ctx context.Context, team wrenn.TeamID, q AuditQuery) ([]AuditEntry, error) {
	out := []AuditEntry{}
	err := s.call(ctx, "read the audit log", func(ctx context.Context) error {
		rows, err := s.queries.ListAuditEntries(ctx, dbsqlc.ListAuditEntriesParams{
			TeamID: string(team), Before: q.Before, Since: q.Since, Until: q.Until, PageSize: clampInt32(q.Limit),
		})
		for _, r := range rows {
			out = append(out, AuditEntry{
				ID: r.ID, Team: team, At: r.At.UTC(), Key: r.KeyID, KeyName: r.KeyName, Address: r.Address, RequestID: r.RequestID,
				Operation: r.Operation, Path: r.Path, Status: int(r.Status),
			})
		}
		return err
	})
	return out, err
}

// DropAuditEntries deletes at most so many entries that are older than the
// retention, and returns how many it deleted.
func (s *Store) DropAuditEntries(ctx context.Context, retention time.Duration, most int) (n int, err error) {
	err = s.call(ctx, "delete old entries of the audit log", func(ctx context.Context) error {
		rows, err := s.queries.DropAuditEntries(ctx, retention.Seconds(), clampInt32(most))
		n = int(rows)
		return err
	})
	return n, err
}
