package postgres

import (
	"context"

	"wrenn"
	"wrenn/internal/controlplane/postgres/internal/dbsqlc"
)

// SaveHost stores a host's answer about itself, for people and tools.
func (s *Store) SaveHost(ctx context.Context, id wrenn.HostID, url string, info wrenn.HostInfo) error {
	c := info.Capacity
	return s.call(ctx, "save the host", func(ctx context.Context) error {
		return s.queries.SaveHost(ctx, dbsqlc.SaveHostParams{
			ID: string(id), URL: url, Version: info.Version, Instance: info.Instance, Driver: info.Driver,
			Sandboxes: clampInt32(c.Sandboxes), SandboxesUsed: clampInt32(c.SandboxesUsed),
			MemoryMB: c.MemoryMiB, MemoryMBUsed: c.MemoryMiBUsed, DiskMB: c.DiskMiB, DiskMBFree: c.DiskMiBFree,
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

// Hosts returns all hosts that ever answered, and the sandboxes on them that no row explains.
func (s *Store) Hosts(ctx context.Context) (hosts []wrenn.HostRecord, unknown []wrenn.UnknownSandbox, err error) {
	err = s.call(ctx, "list the hosts", func(ctx context.Context) error {
		rows, err := s.queries.Hosts(ctx)
		if err != nil {
			return err
		}
		for _, row := range rows {
			hosts = append(hosts, hostRecord(row))
		}
		sandboxes, err := s.queries.UnknownSandboxes(ctx)
		for _, row := range sandboxes {
			unknown = append(unknown, wrenn.UnknownSandbox{
				Host: wrenn.HostID(row.HostID), ID: wrenn.SandboxID(row.SandboxID), State: wrenn.ObservedState(row.SeenState), Reason: row.Reason,
				FirstSeenAt: row.FirstSeenAt, LastSeenAt: row.LastSeenAt,
			})
		}
		return err
	})
	return hosts, unknown, err
}

func hostRecord(row dbsqlc.Host) wrenn.HostRecord {
	out := wrenn.HostRecord{ID: wrenn.HostID(row.ID), URL: row.URL, Info: wrenn.HostInfo{
		Version: row.Version, Instance: row.Instance, Driver: row.Driver,
		Capacity: wrenn.Capacity{
			Sandboxes: int(row.Sandboxes), SandboxesUsed: int(row.SandboxesUsed),
			MemoryMiB: row.MemoryMB, MemoryMiBUsed: row.MemoryMBUsed, DiskMiB: row.DiskMB, DiskMiBFree: row.DiskMBFree,
		},
	}}
	if row.LastSeenAt != nil {
		out.SeenAt = *row.LastSeenAt
	}
	return out
}
