package service_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/nodes"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/hostjoin"
	"wrenn.dev/internal/testkit"
)

// cluster is a Kubernetes whose nodes tests change.
type cluster struct {
	mu    sync.Mutex // guards what follows
	nodes map[wrenn.HostID]nodes.State
	err   error
	read  int // how often the nodes were read
}

func (c *cluster) Nodes(context.Context) ([]nodes.State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []nodes.State
	for _, n := range c.nodes {
		all = append(all, n)
	}
	c.read++
	return all, c.err
}

// set changes a node; nil deletes it.
func (c *cluster) set(id wrenn.HostID, change func(*nodes.State)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if change == nil {
		delete(c.nodes, id)
		return
	}
	n := c.nodes[id]
	change(&n)
	c.nodes[id] = n
}

// rounds waits until the nodes were read so often once more.
func (c *cluster) rounds(t *testing.T, n int) {
	t.Helper()
	count := func() int { c.mu.Lock(); defer c.mu.Unlock(); return c.read }
	until := count() + n
	testkit.WaitUntil(t, "the nodes are read", func() bool { return count() >= until })
}

// TestHostsFollowNodes: a host is drained and uncordoned with its node, unless an operator
// has cordoned it, and is lost with it only if it does not answer.
func TestHostsFollowNodes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{HasStore: true}, &hosttest.Agent{HasStore: true})
	c := &cluster{nodes: map[wrenn.HostID]nodes.State{}}
	var ids []wrenn.HostID
	for i, uid := range []string{nodeUID, "2f0c9d3e-7a52-4b1e-9c88-3f2a6b7c8d9e"} {
		n, err := hostjoin.NewNode([]string{"node1", "node2"}[i], uid)
		testkit.Must(t, err)
		ids = append(ids, n.Host)
		c.nodes[n.Host] = nodes.State{Node: n}
	}
	s, _ := w.replica(t, func(cfg *service.Config) {
		cfg.Nodes, cfg.NodesEvery = c, 20*time.Millisecond
		cfg.Hosts[0].ID, cfg.Hosts[1].ID = ids[0], ids[1]
	})
	is := func(id wrenn.HostID, status wrenn.HostStatus) {
		t.Helper()
		seesHost(t, s, id, "the host is "+string(status), func(h *service.HostState) bool { return h.Status == status })
	}
	for _, id := range ids {
		seesHost(t, s, id, "each host answers", func(h *service.HostState) bool { return h.Reachable })
	}
	first, second := ids[0], ids[1]

	c.set(first, func(n *nodes.State) { n.Cordoned = true })
	is(first, wrenn.HostDraining)
	_, err := s.UncordonHost(t.Context(), w.caller, first) // an operator wins
	testkit.Must(t, err)
	c.rounds(t, 3)
	is(first, wrenn.HostActive)
	c.set(first, func(n *nodes.State) { n.Cordoned = false })
	c.rounds(t, 3)
	c.set(first, func(n *nodes.State) { n.Cordoned = true })
	is(first, wrenn.HostDraining)
	c.set(first, func(n *nodes.State) { n.Cordoned = false })
	is(first, wrenn.HostActive)

	_, err = s.CordonHost(t.Context(), w.caller, second)
	testkit.Must(t, err)
	c.set(second, func(n *nodes.State) { n.Cordoned = true })
	c.rounds(t, 3)
	c.set(second, func(n *nodes.State) { n.Cordoned = false })
	c.rounds(t, 3)
	is(second, wrenn.HostCordoned) // as the operator left it
	_, err = s.UncordonHost(t.Context(), w.caller, second)
	testkit.Must(t, err)

	c.set(second, func(n *nodes.State) { n.OutOfService = true })
	is(second, wrenn.HostDraining) // it answers
	w.servers[1].Stop()
	is(second, wrenn.HostLost)

	c.mu.Lock()
	c.nodes, c.err = map[wrenn.HostID]nodes.State{}, errors.New("not now")
	c.mu.Unlock()
	w.servers[0].Stop()
	seesHost(t, s, first, "the other host stops answering", func(h *service.HostState) bool { return !h.Reachable })
	c.rounds(t, 3)
	is(first, wrenn.HostActive) // Kubernetes does not say that its node is gone
	c.mu.Lock()
	c.err = nil
	c.mu.Unlock()
	is(first, wrenn.HostLost)
}
