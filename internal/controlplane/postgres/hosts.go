package postgres

import (
	"context"
	"errors"
	"maps"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// SaveHost stores a host's answer about itself, for people and tools.
func (s *Store) SaveHost(ctx context.Context, id wrenn.HostID, url string, info wrenn.HostInfo) error {
	c := info.Capacity
	return s.call(ctx, "save the host", func(ctx context.Context) error {
		return s.queries.SaveHost(ctx, dbsqlc.SaveHostParams{
			ID: string(id), URL: url, Version: info.Version, Instance: info.Instance, Driver: info.Driver,
			Sandboxes: clampInt32(c.Sandboxes), SandboxesUsed: clampInt32(c.SandboxesUsed),
			MemoryMB: c.MemoryMiB, MemoryMBUsed: c.MemoryMiBUsed, DiskMB: c.DiskMiB, DiskMBFree: c.DiskMiBFree,
			DisksMB: c.DisksMiB, DisksMBUsed: c.DisksMiBUsed, Facts: info.HostFacts,
		})
	})
}

// SaveUnknown replaces the list of a host's sandboxes that no row explains, and
// returns the ids that are new in it.
func (s *Store) SaveUnknown(ctx context.Context, host wrenn.HostID, seen []wrenn.ObservedSandbox) ([]wrenn.SandboxID, error) {
	arg := dbsqlc.SaveUnknownParams{HostID: string(host), IDs: []string{}, States: []string{}, Reasons: []string{}}
	for _, sb := range seen {
		arg.IDs = append(arg.IDs, string(sb.ID))
		arg.States = append(arg.States, string(sb.State))
		arg.Reasons = append(arg.Reasons, sb.Reason)
	}
	var fresh []wrenn.SandboxID
	err := s.call(ctx, "save unknown sandboxes", func(ctx context.Context) error {
		ids, err := s.queries.SaveUnknown(ctx, arg)
		for _, id := range ids {
			fresh = append(fresh, wrenn.SandboxID(id))
		}
		return err
	})
	return fresh, err
}

// AddConfiguredHosts makes rows of hosts that have none, from their ids and urls. Twice is allowed.
func (s *Store) AddConfiguredHosts(ctx context.Context, urls map[wrenn.HostID]string) error {
	var ids, texts []string
	for id, url := range urls {
		ids, texts = append(ids, string(id)), append(texts, url)
	}
	return s.call(ctx, "add the configured hosts", func(ctx context.Context) error {
		return s.queries.AddConfiguredHosts(ctx, ids, texts)
	})
}

// Hosts returns all hosts, also those that were removed, by id.
func (s *Store) Hosts(ctx context.Context) (hosts []wrenn.HostRecord, err error) {
	err = s.call(ctx, "list the hosts", func(ctx context.Context) error {
		rows, err := s.queries.Hosts(ctx)
		for _, row := range rows {
			hosts = append(hosts, hostRecord(row))
		}
		return err
	})
	return hosts, err
}

// Host returns a host: NotFound when no row has the id.
func (s *Store) Host(ctx context.Context, id wrenn.HostID) (*wrenn.HostRecord, error) {
	var out wrenn.HostRecord
	err := s.call(ctx, "read a host", func(ctx context.Context) error {
		row, err := s.queries.FindHost(ctx, string(id))
		if errors.Is(err, pgx.ErrNoRows) {
			return noHostError(id)
		}
		out = hostRecord(row)
		return err
	})
	return &out, err
}

// HostContents is what would be lost with a host.
type HostContents struct{ Sandboxes, Builds, Volumes int }

// Empty reports whether nothing would be lost.
func (c HostContents) Empty() bool { return c == HostContents{} }

// HostContents counts the sandboxes of a host that have not ended, and its templates and volumes.
func (s *Store) HostContents(ctx context.Context, id wrenn.HostID) (out HostContents, err error) {
	err = s.call(ctx, "count what a host has", func(ctx context.Context) error {
		row, err := s.queries.HostContents(ctx, string(id))
		out = HostContents{Sandboxes: int(row.Sandboxes), Builds: int(row.Builds), Volumes: int(row.Volumes)}
		return err
	})
	return out, err
}

// SetHostStatus changes the status of a host that has one of the statuses was. It is
// NotFound when no row has the id, FailedPrecondition when the host has another status.
func (s *Store) SetHostStatus(ctx context.Context, id wrenn.HostID, status wrenn.HostStatus, was ...wrenn.HostStatus) (*wrenn.HostRecord, error) {
	var from []string
	for _, status := range was {
		from = append(from, string(status))
	}
	var out wrenn.HostRecord
	err := s.inTx(ctx, "change a host", func(ctx context.Context, q *dbsqlc.Queries) error {
		row, err := q.SetHostStatus(ctx, string(status), string(id), from)
		if errors.Is(err, pgx.ErrNoRows) {
			if row, err = q.FindHost(ctx, string(id)); err == nil {
				return wrenn.Errorf(wrenn.FailedPrecondition, "host %s is %s and cannot become %s", id, row.Status, status)
			}
		}
		if errors.Is(err, pgx.ErrNoRows) {
			return noHostError(id)
		}
		out = hostRecord(row)
		return err
	})
	return &out, err
}

func noHostError(id wrenn.HostID) error {
	return wrenn.Errorf(wrenn.NotFound, "there is no host %s: `wrenn host list` shows all", id)
}

// FollowHosts calls changed whenever a host is added or becomes another one, as the
// trigger hosts_notify has it, until ctx ends or the connection does. It calls changed
// first when it listens: from then on no change is missed.
func (s *Store) FollowHosts(ctx context.Context, changed func()) error {
	conn, err := s.listen(ctx, "hosts")
	if err != nil {
		return failure("follow the hosts", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.timeout)
		defer cancel()
		_ = conn.Close(ctx) // nothing is in progress
	}()
	for {
		changed()
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return failure("follow the hosts", err)
		}
	}
}

// listen returns a connection outside of the pool that receives the channel's notifications.
func (s *Store) listen(ctx context.Context, channel string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	cfg := s.pool.Config().ConnConfig // a copy
	maps.Copy(cfg.RuntimeParams, keepalive)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		_ = conn.Close(ctx) // the error is the other one
		return nil, err
	}
	return conn, nil
}

// UnknownSandboxes returns the sandboxes on hosts that no row explains.
func (s *Store) UnknownSandboxes(ctx context.Context) (unknown []wrenn.UnknownSandbox, err error) {
	err = s.call(ctx, "list unknown sandboxes", func(ctx context.Context) error {
		sandboxes, err := s.queries.UnknownSandboxes(ctx)
		for _, row := range sandboxes {
			unknown = append(unknown, wrenn.UnknownSandbox{
				Host: wrenn.HostID(row.HostID), ID: wrenn.SandboxID(row.SandboxID), State: wrenn.ObservedState(row.SeenState), Reason: row.Reason,
				FirstSeenAt: row.FirstSeenAt, LastSeenAt: row.LastSeenAt,
			})
		}
		return err
	})
	return unknown, err
}

func hostRecord(row dbsqlc.Host) wrenn.HostRecord {
	out := wrenn.HostRecord{
		ID: wrenn.HostID(row.ID), Name: row.Name, URL: row.URL, Zone: row.Zone, Labels: row.Labels,
		Status: wrenn.HostStatus(row.Status), Joined: row.JoinedAt != nil, CreatedAt: row.CreatedAt.UTC(),
		Info: wrenn.HostInfo{
			Version: row.Version, Instance: row.Instance, Driver: row.Driver, HostFacts: row.Facts,
			Capacity: wrenn.Capacity{
				Sandboxes: int(row.Sandboxes), SandboxesUsed: int(row.SandboxesUsed),
				MemoryMiB: row.MemoryMB, MemoryMiBUsed: row.MemoryMBUsed, DiskMiB: row.DiskMB, DiskMiBFree: row.DiskMBFree,
				DisksMiB: row.DisksMB, DisksMiBUsed: row.DisksMBUsed,
			},
		},
	}
	if row.LastSeenAt != nil {
		out.SeenAt = row.LastSeenAt.UTC()
	}
	if row.CertificateUntil != nil {
		out.Serials, out.CertificateUntil = [2]string{row.Serial, row.PreviousSerial}, row.CertificateUntil.UTC()
	}
	return out
}
