package service

import (
	"context"
	"log/slog"
	"slices"

	"wrenn"
	"wrenn/internal/controlplane/postgres"
)

// MoveSandbox makes host the one that a paused sandbox goes on, after its files
// were copied there: FailedPrecondition when the row is not paused or the host
// does not have it paused. What the old host still has is left to the operator,
// and reported as what no row explains. It is for the operator: it asks for no
// caller. It may be repeated.
func (s *Service) MoveSandbox(ctx context.Context, id wrenn.SandboxID, host wrenn.HostID) (*wrenn.Sandbox, error) {
	m := s.fleet.members[host]
	if m == nil {
		return nil, wrenn.Errorf(wrenn.NotFound, "no host %s is configured", host)
	}
	sb, err := s.store.Sandbox(ctx, id)
	if err != nil {
		return nil, err
	}
	if sb.State != wrenn.Paused {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is %s: pause it, and copy its files again", id, sb.State)
	}
	inv, err := m.client.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(inv.Sandboxes, func(seen wrenn.ObservedSandbox) bool { return seen.ID == id && seen.State == wrenn.ObservedPaused }) {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "host %s does not have sandbox %s paused: copy its files there and restart its agent", host, id)
	}
	if sb.Host == host {
		return sb, nil
	}
	moved, err := s.store.MoveSandbox(ctx, sb, postgres.Move{To: wrenn.Paused, Host: host, Actor: "operator", Reason: "moved from host " + string(sb.Host)})
	if err != nil {
		return nil, err
	}
	s.log.LogAttrs(ctx, slog.LevelInfo, "a paused sandbox was moved", slog.String("sandbox", string(id)), slog.String("from", string(sb.Host)), slog.String("to", string(host)))
	return moved, nil
}
