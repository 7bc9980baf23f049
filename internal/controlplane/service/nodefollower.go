package service

import (
	"context"
	"log/slog"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/nodes"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/hostjoin"
	"wrenn.dev/internal/wake"
)

const (
	lookAtNodes = 15 * time.Second
	readNodes   = time.Minute
	// goneRounds is in how many rounds a node must be gone and its host not answer.
	goneRounds = 2
)

// NodeReader reads the nodes of a cluster: the whole list or an error.
type NodeReader interface {
	Nodes(ctx context.Context) ([]nodes.State, error)
}

// nodeFollower has hosts follow their nodes of Kubernetes, whenever no other replica does:
// they are drained and uncordoned with them, and lost when the node is deleted or out of
// service.
type nodeFollower struct {
	*HostAdmin

	nodes NodeReader // nil: not followed
	every time.Duration
	gone  map[wrenn.HostID]int // in how many rounds its node was gone
}

func (f *nodeFollower) run(ctx context.Context) error {
	if f.nodes == nil {
		return nil
	}
	for ctx.Err() == nil {
		lead, err := f.store.TryLead(ctx, "nodes")
		if lead != nil {
			err = f.lead(ctx, lead)
			lead.Close(context.WithoutCancel(ctx))
		}
		if err != nil && ctx.Err() == nil {
			f.log.LogAttrs(ctx, slog.LevelWarn, "cannot follow the nodes of Kubernetes; will retry", slog.Any("err", err))
		}
		wake.Sleep(ctx, f.every)
	}
	return nil
}

// lead follows the nodes until the lead or ctx ends.
func (f *nodeFollower) lead(ctx context.Context, lead *postgres.Lead) error {
	f.gone = map[wrenn.HostID]int{}
	for {
		if err := lead.Held(ctx); err != nil {
			return err
		}
		if err := f.round(ctx); err != nil {
			return err
		}
		if !wake.Sleep(ctx, f.every) {
			return nil
		}
	}
}

// round compares each host that is a node with its node. The hosts are read first: the
// node of each existed by then.
func (f *nodeFollower) round(ctx context.Context) error {
	hosts, err := f.store.Hosts(ctx)
	if err != nil {
		return err
	}
	marked, err := f.store.NodeCordons(ctx)
	if err != nil {
		return err
	}
	reading, cancel := context.WithTimeout(ctx, readNodes)
	defer cancel()
	list, err := f.nodes.Nodes(reading)
	if err != nil {
		return err
	}
	known := make(map[wrenn.HostID]nodes.State, len(list))
	for _, n := range list {
		known[n.Host] = n
	}
	for i := range hosts {
		h := &hosts[i]
		if !hostjoin.IsNode(h.ID) || h.Status == wrenn.HostLost || h.Status == wrenn.HostRemoved {
			continue
		}
		node, exists := known[h.ID]
		if err := f.follow(ctx, h, node, exists, marked[h.ID]); err != nil {
			f.log.LogAttrs(ctx, slog.LevelWarn, "cannot have a host follow its node; will retry", slog.String("host", string(h.ID)), slog.Any("err", err))
		}
	}
	return nil
}

// follow does what the state of a node asks of its host. marked reports whether the host
// was cordoned with its node.
func (f *nodeFollower) follow(ctx context.Context, h *wrenn.HostRecord, node nodes.State, exists, marked bool) error {
	if gone := !exists || node.OutOfService; !gone {
		delete(f.gone, h.ID)
	} else if f.gone[h.ID]++; f.gone[h.ID] >= goneRounds {
		return f.lose(ctx, h)
	} else {
		return nil
	}
	switch {
	case node.Cordoned && !marked && h.Status == wrenn.HostActive:
		return f.drain(ctx, h.ID)
	case !node.Cordoned && marked:
		err := f.store.UncordonWithNode(ctx, h.ID)
		f.hosts.refreshOrLog(ctx)
		f.log.LogAttrs(ctx, slog.LevelInfo, "a host's node is not cordoned any more", slog.String("host", string(h.ID)))
		return err
	}
	return nil
}

// lose declares a host lost whose node is gone. One that answers nevertheless is drained.
func (f *nodeFollower) lose(ctx context.Context, h *wrenn.HostRecord) error {
	f.hosts.waitForPings(ctx)
	_, err := f.LoseHost(ctx, Caller{}, h.ID)
	switch {
	case wrenn.CodeOf(err) != wrenn.FailedPrecondition:
		return err
	case h.Status == wrenn.HostActive:
		return f.drain(ctx, h.ID)
	}
	return nil // it answers, and gets no sandboxes
}

// drain drains a host, or cordons it if its sandboxes cannot be moved.
func (f *nodeFollower) drain(ctx context.Context, id wrenn.HostID) error {
	status := wrenn.HostDraining
	why := f.checkDrain(ctx, id)
	if wrenn.CodeOf(why) == wrenn.FailedPrecondition {
		status = wrenn.HostCordoned
	} else if why != nil {
		return why
	}
	changed, err := f.store.CordonWithNode(ctx, id, status)
	if err != nil || !changed {
		return err
	}
	f.hosts.refreshOrLog(ctx)
	f.log.LogAttrs(ctx, slog.LevelWarn, "a host's node is cordoned or gone", slog.String("host", string(id)), slog.String("status", string(status)), slog.Any("err", why))
	return nil
}
