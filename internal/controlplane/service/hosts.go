package service

import (
	"context"

	"golang.org/x/time/rate"

	"wrenn"
)

// HostAdmin has the use cases of hosts, for callers with the scope operator: all teams share
// the hosts.
type HostAdmin struct {
	*core

	joins *rate.Limiter
}

// HostState is a host as its row and this replica know it.
type HostState struct {
	wrenn.HostRecord

	Reachable bool // it answered this replica's last ping
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
	return &out, nil
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
	return out
}
