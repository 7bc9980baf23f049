package service

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
)

// HostAdmin has the use cases of hosts, for callers with the scope operator: all teams share
// the hosts.
type HostAdmin struct {
	*core

	joins    *rate.Limiter
	reviewer TokenReviewer // nil: no host joins by Kubernetes
}

// HostState is a host as its row and this replica know it.
type HostState struct {
	wrenn.HostRecord

	Reachable bool // it answered this replica's last ping
	// Drain is how far its drain is; nil of one that is not drained, and in lists.
	Drain *postgres.Drained
}

// ListHosts returns all hosts by id, also those that were removed.
func (s *HostAdmin) ListHosts(ctx context.Context, _ Caller) ([]HostState, error) {
	rows, err := s.store.Hosts(ctx)
	out := make([]HostState, len(rows))
	for i := range rows {
		out[i] = s.hosts.state(rows[i])
	}
	return out, err
}

// Host returns a host: NotFound when there is none with the id.
func (s *HostAdmin) Host(ctx context.Context, _ Caller, id wrenn.HostID) (*HostState, error) {
	row, err := s.store.Host(ctx, id)
	if err != nil {
		return nil, err
	}
	out := s.hosts.state(*row)
	if row.Status == wrenn.HostDraining {
		out.Drain, err = s.store.DrainProgress(ctx, id)
	}
	return &out, err
}

// CordonHost lets no new sandboxes onto a host; those that it has stay. Twice is
// allowed. Other replicas follow within moments, within 10 s at the latest.
func (s *HostAdmin) CordonHost(ctx context.Context, _ Caller, id wrenn.HostID) (*HostState, error) {
	return s.setStatus(ctx, id, wrenn.HostCordoned, wrenn.HostActive, wrenn.HostCordoned, wrenn.HostDraining)
}

// UncordonHost lets new sandboxes onto a host again, and ends a drain. Twice is allowed.
func (s *HostAdmin) UncordonHost(ctx context.Context, _ Caller, id wrenn.HostID) (*HostState, error) {
	return s.setStatus(ctx, id, wrenn.HostActive, wrenn.HostActive, wrenn.HostCordoned, wrenn.HostDraining)
}

// RemoveHost ends the use of a host that joined and is empty: its certificate is
// revoked at once. It is FailedPrecondition for a host that is not cordoned, that has
// sandboxes, templates or volumes, or that is in the configuration. Twice is allowed.
func (s *HostAdmin) RemoveHost(ctx context.Context, _ Caller, id wrenn.HostID) (*HostState, error) {
	row, err := s.store.Host(ctx, id)
	if err != nil {
		return nil, err
	}
	switch {
	case s.hosts.configured[id] != "":
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "host %s is in the control plane's configuration: remove it there", id)
	case row.Status == wrenn.HostActive:
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "host %s may get new sandboxes: cordon it first", id)
	}
	has, err := s.store.HostContents(ctx, id)
	if err != nil {
		return nil, err
	}
	if !has.Empty() && row.Status != wrenn.HostLost {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "host %s is not empty: it has %d sandboxes, %d templates and %d volumes; drain it, and delete them first", id, has.Sandboxes, has.Builds, has.Volumes)
	}
	return s.setStatus(ctx, id, wrenn.HostRemoved, wrenn.HostCordoned, wrenn.HostDraining, wrenn.HostLost, wrenn.HostRemoved)
}

const (
	reasonHostLost = "its host was lost"
	lostRounds     = 5 // in which rows that requests change at the same time are tried again
)

// LoseHost takes the word of an operator that a host does not come back: its sandboxes
// become failed but the paused ones that are stored, and those that are restored from a
// checkpoint; its templates have to be built again, and its certificate is revoked.
// It is FailedPrecondition while the host answers. Twice is allowed.
func (s *HostAdmin) LoseHost(ctx context.Context, _ Caller, id wrenn.HostID) (*HostState, error) {
	if m := s.hosts.member(id); m != nil {
		if up, _ := m.known(); up {
			return nil, wrenn.Errorf(wrenn.FailedPrecondition, "host %s answers, so it is not gone: cordon it, and remove it when it is empty", id)
		}
	}
	state, err := s.setStatus(ctx, id, wrenn.HostLost, wrenn.HostActive, wrenn.HostCordoned, wrenn.HostDraining, wrenn.HostLost)
	if err != nil {
		return nil, err
	}
	if err := s.loseSandboxes(ctx, id); err != nil {
		return nil, err
	}
	builds, err := s.store.ReadyOn(ctx, id)
	for _, build := range builds {
		err = errors.Join(err, s.store.LoseBuild(ctx, build, reasonHostLost))
	}
	if err != nil {
		return nil, err
	}
	s.log.LogAttrs(ctx, slog.LevelWarn, "an operator declared a host lost", slog.String("host", string(id)), slog.Int("templates", len(builds)))
	return state, nil
}

// afterLoss returns what becomes of a sandbox whose host is lost. One that shall be restored,
// and can be, is paused as it is stored: it shall run again on another host, to which the
// drainer, or a request, moves it.
func afterLoss(sb *wrenn.Sandbox) postgres.Move {
	restored := postgres.Move{To: wrenn.Paused, Host: sb.Host, Moving: sb.State != wrenn.Paused, Actor: actorOperator, Reason: reasonHostLost}
	restorable := sb.OnHostLoss == wrenn.RestoreOnHostLoss && (sb.State == wrenn.Paused || sb.State.Can(wrenn.Paused) && sb.State != wrenn.Starting)
	switch {
	case restorable && sb.State == wrenn.Resuming && sb.Stored.Key != "": // it may not have run since its pause
		return restored
	case restorable && sb.Newest.Stored.Key != "":
		restored.Stored = sb.Newest.Stored
		restored.Reason += ": it continues from checkpoint " + string(sb.Newest.ID)
		return restored
	}
	return postgres.Move{To: wrenn.Failed, Reason: whyLost(sb), Cause: wrenn.CauseLost, Actor: actorOperator}
}

// whyLost is the reason of a sandbox that ended with its host.
func whyLost(sb *wrenn.Sandbox) string {
	switch {
	case sb.Newest.ID != "":
		return reasonHostLost + "; its newest checkpoint in the snapshot store is " + string(sb.Newest.ID) + " of " + sb.Newest.Stored.At.UTC().Format(time.RFC3339)
	case sb.OnHostLoss == wrenn.RestoreOnHostLoss:
		return reasonHostLost + ", and no checkpoint of it was in the snapshot store"
	}
	return reasonHostLost
}

// loseSandboxes ends the rows of a host that is lost, or has them continue elsewhere.
func (s *HostAdmin) loseSandboxes(ctx context.Context, id wrenn.HostID) error {
	for range lostRounds {
		rows, err := s.store.HostRows(ctx, id, nil)
		rows = slices.DeleteFunc(rows, func(sb wrenn.Sandbox) bool { return sb.State == wrenn.Paused && sb.Stored.Key != "" })
		if err != nil || len(rows) == 0 {
			return err
		}
		for i := range rows {
			_, err := s.store.MoveSandbox(ctx, &rows[i], afterLoss(&rows[i]))
			if err != nil && !errors.Is(err, postgres.ErrConflict) {
				return err
			}
		}
	}
	return wrenn.Errorf(wrenn.Unavailable, "host %s is marked, but requests keep changing some of its sandboxes: repeat the call", id)
}

// setStatus changes the status of a host that has one of the statuses was, and has this
// replica follow at once.
func (s *HostAdmin) setStatus(ctx context.Context, id wrenn.HostID, to wrenn.HostStatus, was ...wrenn.HostStatus) (*HostState, error) {
	row, err := s.store.SetHostStatus(ctx, id, to, was...)
	if err != nil {
		return nil, err
	}
	s.hosts.refreshOrLog(ctx) // otherwise the notification does
	out := s.hosts.state(*row)
	return &out, nil
}

// state adds to a row what this replica knows. Its last answer is newer than the row's.
func (f *fleet) state(row wrenn.HostRecord) HostState {
	out := HostState{HostRecord: row}
	if m := f.member(row.ID); m != nil {
		up, info := m.known()
		if out.Reachable = up; up {
			out.Info = info
		}
	}
	out.Zone, out.Labels = placeOf(row, out.Info.HostFacts)
	return out
}
