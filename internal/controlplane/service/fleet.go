package service

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"wrenn"
	"wrenn/internal/controlplane/hostclient"
	"wrenn/internal/controlplane/postgres"
	"wrenn/internal/controlplane/reconcile"
	"wrenn/internal/controlplane/scheduler"
)

const (
	pingsToDown = 2                // failed ones in a row, so that one lost packet does not take a host away
	saveEvery   = time.Minute      // what a host said, when nothing changed
	firstPing   = 10 * time.Second // how long a create waits for hosts that were not asked yet
)

// fleet is the hosts and what was last known of them.
type fleet struct {
	members map[wrenn.HostID]*member // never changes
	every   time.Duration
	store   *postgres.Store
	log     *slog.Logger
	changed func(wrenn.HostID) // a host came back, or its agent is a new one; set before run
}

// member is one host.
type member struct {
	id     wrenn.HostID
	url    string
	client *hostclient.Client
	asked  chan struct{} // closed when the first ping is over

	mu       sync.Mutex // guards what follows
	up       bool
	failures int // pings in a row
	info     wrenn.HostInfo
	saved    time.Time
	// Sandboxes that are being made there, and those made since the last ping was sent.
	making, made load
}

// load is sandboxes and their memory.
type load struct {
	sandboxes int
	memoryMB  int64
}

func (l load) add(o load) load { return load{l.sandboxes + o.sandboxes, l.memoryMB + o.memoryMB} }
func (l load) sub(o load) load { return load{l.sandboxes - o.sandboxes, l.memoryMB - o.memoryMB} }

func newFleet(cfg Config, store *postgres.Store, log *slog.Logger) (*fleet, error) {
	f := &fleet{members: map[wrenn.HostID]*member{}, every: cfg.PingEvery, store: store, log: log}
	for _, h := range cfg.Hosts {
		if _, err := wrenn.ParseHostID(string(h.ID)); err != nil {
			return nil, err
		}
		if f.members[h.ID] != nil {
			return nil, wrenn.Errorf(wrenn.Invalid, "host %s is configured twice", h.ID)
		}
		client, err := hostclient.New(hostclient.Config{ID: h.ID, URL: h.URL, TLS: h.TLS, Deadlines: cfg.Deadlines})
		if err != nil {
			return nil, fmt.Errorf("host %s: %w", h.ID, err)
		}
		f.members[h.ID] = &member{id: h.ID, url: h.URL, client: client, asked: make(chan struct{})}
	}
	return f, nil
}

// run asks every host again and again until ctx ends.
func (f *fleet) run(ctx context.Context) error {
	var g errgroup.Group
	for _, m := range f.members {
		g.Go(func() error {
			defer m.client.Close()
			f.watch(ctx, m)
			return nil
		})
	}
	return g.Wait()
}

func (f *fleet) watch(ctx context.Context, m *member) {
	for first := true; ; first = false {
		f.ping(ctx, m)
		if first {
			close(m.asked)
		}
		// Scattered, so that a thousand hosts are not asked at one moment.
		next := time.NewTimer(f.every/2 + rand.N(f.every))
		select {
		case <-ctx.Done():
			next.Stop()
			return
		case <-next.C:
		}
	}
}

func (f *fleet) ping(ctx context.Context, m *member) {
	counted := m.settled()
	info, err := m.client.Ping(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		if m.missed() {
			f.log.LogAttrs(ctx, slog.LevelWarn, "a host cannot be reached", slog.String("host", string(m.id)), slog.Any("error", err))
		}
		return
	}
	isNew, save := m.answered(info, counted)
	if isNew {
		f.log.LogAttrs(ctx, slog.LevelInfo, "a host is there", slog.String("host", string(m.id)),
			slog.String("instance", info.Instance), slog.String("version", info.Version), slog.String("driver", info.Driver))
		f.changed(m.id)
	}
	if !save {
		return
	}
	if err := f.store.SaveHost(ctx, m.id, m.url, info); err != nil && ctx.Err() == nil {
		f.log.LogAttrs(ctx, slog.LevelWarn, "saving what a host said", slog.String("host", string(m.id)), slog.Any("error", err))
	}
}

// settled is what the next answer will have counted already.
func (m *member) settled() load {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.made
}

// missed says whether the host is down since this ping.
func (m *member) missed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures++
	if m.failures < pingsToDown && m.up {
		return false
	}
	was := m.up || m.failures == 1
	m.up = false
	return was
}

// answered says whether the host is back, after however little, or another one, and whether to save what it said.
func (m *member) answered(info wrenn.HostInfo, counted load) (isNew, save bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	isNew = !m.up || m.failures > 0 || m.info.Instance != info.Instance
	m.up, m.failures, m.info, m.made = true, 0, info, m.made.sub(counted)
	if save = isNew || time.Since(m.saved) > saveEvery; save {
		m.saved = time.Now()
	}
	return isNew, save
}

// known is whether the host answers, and what it said last.
func (m *member) known() (up bool, info wrenn.HostInfo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.up, m.info
}

// reachable are the hosts that answer.
func (f *fleet) reachable() map[wrenn.HostID]reconcile.Host {
	out := map[wrenn.HostID]reconcile.Host{}
	for id, m := range f.members {
		m.mu.Lock()
		if m.up {
			out[id] = m.client
		}
		m.mu.Unlock()
	}
	return out
}

// host returns the client of a sandbox's host.
func (f *fleet) host(id wrenn.HostID) (*hostclient.Client, error) {
	m := f.members[id]
	if m == nil {
		return nil, wrenn.Errorf(wrenn.Unavailable, "the sandbox is on host %s, which is not configured any more", id)
	}
	return m.client, nil
}

// ready waits until every host was asked once, but not for long.
func (f *fleet) ready(ctx context.Context) {
	timeout := time.NewTimer(firstPing)
	defer timeout.Stop()
	for _, m := range f.members {
		select {
		case <-m.asked:
		case <-timeout.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// pick chooses a host but those in full; if only is set it is that one.
func (f *fleet) pick(memoryMB int, full map[wrenn.HostID]bool, only wrenn.HostID) (*member, error) {
	candidates := func(pending bool) []scheduler.Host { return f.candidates(full, only, pending) }
	id, err := scheduler.Pick(candidates(true), memoryMB)
	if wrenn.CodeOf(err) == wrenn.Exhausted {
		// What is being made may be counted by the host already. It knows: let it decide.
		id, err = scheduler.Pick(candidates(false), memoryMB)
	}
	if wrenn.CodeOf(err) == wrenn.Unavailable && only != "" {
		err = wrenn.Errorf(wrenn.Unavailable, "host %s, which has what the sandbox is to be made from, cannot be reached; try again in a moment", only)
	}
	return f.members[id], err
}

func (f *fleet) candidates(full map[wrenn.HostID]bool, only wrenn.HostID, pending bool) []scheduler.Host {
	var hosts []scheduler.Host
	for id, m := range f.members {
		if only != "" && id != only {
			continue
		}
		m.mu.Lock()
		if m.up && !full[id] {
			h := scheduler.Host{ID: id, Capacity: m.info.Capacity}
			if pending {
				sum := m.making.add(m.made)
				h.PendingSandboxes, h.PendingMemoryMB = sum.sandboxes, sum.memoryMB
			}
			hosts = append(hosts, h)
		}
		m.mu.Unlock()
	}
	return hosts
}

// reserve counts sandboxes of a size that are to be made; call done with how many were.
func (m *member) reserve(n, memoryMB int) (done func(made int)) {
	of := func(n int) load { return load{n, int64(n) * int64(memoryMB)} }
	m.mu.Lock()
	defer m.mu.Unlock()
	m.making = m.making.add(of(n))
	return func(made int) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.making = m.making.sub(of(n))
		m.made = m.made.add(of(made))
	}
}
