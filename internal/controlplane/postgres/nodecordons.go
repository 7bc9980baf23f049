package postgres

import (
	"context"

	"wrenn.dev"
)

// NodeCordons returns the hosts that CordonWithNode changed.
func (s *Store) NodeCordons(ctx context.Context) (map[wrenn.HostID]bool, error) {
	out := map[wrenn.HostID]bool{}
	err := s.call(ctx, "look which nodes are cordoned", func(ctx context.Context) error {
		ids, err := s.queries.NodeCordons(ctx)
		for _, id := range ids {
			out[wrenn.HostID(id)] = true
		}
		return err
	})
	return out, err
}

// CordonWithNode gives an active host the status, because its node of Kubernetes is
// cordoned. It reports whether the host was active.
func (s *Store) CordonWithNode(ctx context.Context, id wrenn.HostID, status wrenn.HostStatus) (changed bool, err error) {
	err = s.call(ctx, "cordon a host with its node", func(ctx context.Context) error {
		n, err := s.queries.CordonWithNode(ctx, string(status), string(id))
		changed = n > 0
		return err
	})
	return changed, err
}

// UncordonWithNode undoes CordonWithNode. Twice is allowed.
func (s *Store) UncordonWithNode(ctx context.Context, id wrenn.HostID) error {
	return s.call(ctx, "uncordon a host with its node", func(ctx context.Context) error {
		_, err := s.queries.UncordonWithNode(ctx, string(id))
		return err
	})
}
