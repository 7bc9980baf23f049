package service

import (
	"context"
	"log/slog"
	"slices"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
)

// Operator has the use cases of the person who runs the platform, and of
// programs that act for that person. They take no caller: who can start a
// program with the database's URL may use them.
type Operator struct{ *core }

// Hosts returns all hosts, and the sandboxes on them that no row explains.
func (s *Operator) Hosts(ctx context.Context) ([]wrenn.HostRecord, []wrenn.UnknownSandbox, error) {
	hosts, err := s.store.Hosts(ctx)
	if err != nil {
		return nil, nil, err
	}
	unknown, err := s.store.UnknownSandboxes(ctx)
	return hosts, unknown, err
}

// EnsureTeam returns the team of that name, which it makes if it does not exist.
func (s *Operator) EnsureTeam(ctx context.Context, name string) (wrenn.TeamID, error) {
	if err := checkName("team", name); err != nil {
		return "", err
	}
	return s.store.EnsureTeam(ctx, name)
}

// SandboxesCreatedBy returns the sandboxes that have not ended and that c created, by any request:
// also those that were forked. It works after c's key was revoked.
func (s *Operator) SandboxesCreatedBy(ctx context.Context, c Caller) ([]wrenn.SandboxID, error) {
	return s.store.SandboxesCreatedBy(ctx, c.Team, c.actor())
}

// MoveSandbox makes host the host of a paused sandbox that is stored, or whose files were
// copied there: FailedPrecondition when the row is not paused, or it is not stored and the
// host does not have it paused. The files on the old host are left to the operator, and reported as
// a sandbox that no row explains. Twice is allowed.
func (s *Operator) MoveSandbox(ctx context.Context, id wrenn.SandboxID, host wrenn.HostID) (*wrenn.Sandbox, error) {
	if err := s.hosts.refresh(ctx); err != nil { // a command does not run the fleet
		return nil, err
	}
	m := s.hosts.member(host)
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
	at := slices.IndexFunc(inv.Sandboxes, func(seen wrenn.ObservedSandbox) bool { return seen.ID == id && seen.State == wrenn.ObservedPaused })
	if at < 0 {
		if sb.Stored.Key == "" {
			return nil, wrenn.Errorf(wrenn.FailedPrecondition, "host %s does not have sandbox %s paused, and it is not in a snapshot store: copy its files there and restart its agent", host, id)
		}
		return s.fetchTo(ctx, m, sb, actorOperator, nil)
	}
	if sb.Host == host {
		if seen := inv.Sandboxes[at].Epoch; seen != 0 && seen != sb.Epoch { // files of another day
			err = m.client.Pause(ctx, id, wrenn.PauseOptions{Epoch: sb.Epoch})
		}
		return sb, err
	}
	// The files may be of any placement: from now on they are of the one that the row gets.
	if err := m.client.Pause(ctx, id, wrenn.PauseOptions{Epoch: sb.Epoch + 1}); err != nil {
		return nil, err
	}
	moved, err := s.store.MoveSandbox(ctx, sb, postgres.Move{To: wrenn.Paused, Host: host, Actor: actorOperator, Reason: "moved from host " + string(sb.Host)})
	if err != nil {
		return nil, err
	}
	s.log.LogAttrs(ctx, slog.LevelInfo, "paused sandbox moved to another host", slog.String("sandbox", string(id)), slog.String("from", string(sb.Host)), slog.String("to", string(host)))
	return moved, nil
}
