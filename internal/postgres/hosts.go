package postgres

import (
	"context"

	"wrenn"
	"wrenn/internal/postgres/internal/dbsqlc"
)

// SaveHost keeps what a host said of itself, for people and tools.
func (s *Store) SaveHost(ctx context.Context, id wrenn.HostID, url string, info wrenn.HostInfo) error {
	c := info.Capacity
	return s.call(ctx, "save the host", func(ctx context.Context) error {
		return s.queries.SaveHost(ctx, dbsqlc.SaveHostParams{
			ID: string(id), URL: url, Version: info.Version, Instance: info.Instance, Driver: info.Driver,
			Sandboxes: clampInt32(c.Sandboxes), SandboxesUsed: clampInt32(c.SandboxesUsed),
			MemoryMB: c.MemoryMB, MemoryMBUsed: c.MemoryMBUsed, DiskMB: c.DiskMB, DiskMBFree: c.DiskMBFree,
		})
	})
}

// SaveUnknown replaces what is known of a host's unexplained sandboxes, and
// returns the ids that are new among them.
func (s *Store) SaveUnknown(ctx context.Context, host wrenn.HostID, seen []wrenn.SeenSandbox) ([]wrenn.SandboxID, error) {
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
