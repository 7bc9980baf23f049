package service

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"io"
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
	"wrenn/internal/wake"
)

const (
	pingsToDown = 2                // failed ones in a row, so that one lost packet does not take a host away
	saveEvery   = time.Minute      // a host's answers, when nothing changed
	newsRetry   = 5 * time.Second  // the mean time until a stream of news is opened again
	firstPing   = 10 * time.Second // how long a create waits for the first pings
)

// fleet is the hosts and their last answers.
type fleet struct {
	members map[wrenn.HostID]*member // never changes
	every   time.Duration
	store   *postgres.Store
	log     *slog.Logger
	changed func(wrenn.HostID) // called when a host is back or its agent has restarted; set before run
}

// member is one host.
type member struct {
	id     wrenn.HostID
	url    string
	client *hostclient.Client
	pinged chan struct{} // closed when the first ping is over

	mu       sync.Mutex // guards what follows
	up       bool
	failures int // pings in a row
	info     wrenn.HostInfo
	saved    time.Time
	// The sandboxes that are being made on the host, and those made since the last ping was sent.
	making, made load
}

// load is sandboxes and their memory.
type load struct {
	sandboxes        int
	memoryMB, diskMB int64
}

func (l load) add(o load) load {
	return load{l.sandboxes + o.sandboxes, l.memoryMB + o.memoryMB, l.diskMB + o.diskMB}
}

func (l load) sub(o load) load {
	return load{l.sandboxes - o.sandboxes, l.memoryMB - o.memoryMB, l.diskMB - o.diskMB}
}

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
		f.members[h.ID] = &member{id: h.ID, url: h.URL, client: client, pinged: make(chan struct{})}
	}
	return f, nil
}

// run pings every host again and again until ctx ends.
func (f *fleet) run(ctx context.Context) error {
	var g errgroup.Group
	for _, m := range f.members {
		g.Go(func() error {
			defer m.client.Close()
			var news sync.WaitGroup
			defer news.Wait()
			news.Go(func() { f.followNews(ctx, m) })
			f.watch(ctx, m)
			return nil
		})
	}
	return g.Wait()
}

// followNews asks for a round of the host whenever sandboxes have changed there
// without a request. A host of an older version has no such stream: its rows follow
// with the next round, as do those of a host whose stream is away.
func (f *fleet) followNews(ctx context.Context, m *member) {
	for {
		err := f.readNews(ctx, m)
		if ctx.Err() != nil {
			return
		}
		f.log.LogAttrs(ctx, slog.LevelDebug, "stream of a host's changes ended; will retry", slog.String("host", string(m.id)), slog.Any("err", err))
		if !wake.Sleep(ctx, newsRetry/2+rand.N(newsRetry)) {
			return
		}
	}
}

func (f *fleet) readNews(ctx context.Context, m *member) error {
	news, err := m.client.Watch(ctx)
	if err != nil {
		return err
	}
	defer news.Close()
	for {
		if err := news.Next(); err != nil {
			return err
		}
		f.changed(m.id)
	}
}

func (f *fleet) watch(ctx context.Context, m *member) {
	for first := true; ; first = false {
		f.ping(ctx, m)
		if first {
			close(m.pinged)
		}
		// Scattered, so that a thousand hosts are not pinged at one moment.
		if !wake.Sleep(ctx, f.every/2+rand.N(f.every)) {
			return
		}
	}
}

func (f *fleet) ping(ctx context.Context, m *member) {
	counted := m.madeSoFar()
	info, err := m.client.Ping(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		if m.missed() {
			f.log.LogAttrs(ctx, slog.LevelWarn, "cannot reach host", slog.String("host", string(m.id)), slog.Any("err", err))
		}
		return
	}
	isNew, save := m.answered(info, counted)
	if isNew {
		f.log.LogAttrs(ctx, slog.LevelInfo, "host connected", slog.String("host", string(m.id)),
			slog.String("instance", info.Instance), slog.String("version", info.Version), slog.String("driver", info.Driver))
		f.changed(m.id)
	}
	if !save {
		return
	}
	if err := f.store.SaveHost(ctx, m.id, m.url, info); err != nil && ctx.Err() == nil {
		f.log.LogAttrs(ctx, slog.LevelWarn, "cannot save a host's answer", slog.String("host", string(m.id)), slog.Any("err", err))
	}
}

// madeSoFar returns the load that the next answer will include.
func (m *member) madeSoFar() load {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.made
}

// missed records a failed ping and reports whether the host is down since then.
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

// answered records a host's answer. isNew reports that the host is back, after any
// failed ping, or that its agent has restarted; save that the answer is to be saved.
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

// known reports whether the host answers, and returns its last answer.
func (m *member) known() (up bool, info wrenn.HostInfo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.up, m.info
}

// reachable returns the hosts that answer.
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

// client returns the client of a sandbox's host.
func (f *fleet) client(id wrenn.HostID) (*hostclient.Client, error) {
	m := f.members[id]
	if m == nil {
		return nil, wrenn.Errorf(wrenn.Unavailable, "the sandbox is on host %s, which is not configured any more: add it to the configuration again", id)
	}
	return m.client, nil
}

// waitForPings returns when every host was pinged once, after firstPing at the latest.
func (f *fleet) waitForPings(ctx context.Context) {
	timeout := time.NewTimer(firstPing)
	defer timeout.Stop()
	for _, m := range f.members {
		select {
		case <-m.pinged:
		case <-timeout.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// reserve picks a host for a sandbox and reserves its memory and disk. Hosts in full are
// left out; if only is set it is that host. The caller releases the reservation.
func (f *fleet) reserve(need scheduler.Need, full map[wrenn.HostID]bool, only wrenn.HostID) (*reservation, error) {
	id, err := scheduler.Pick(f.candidates(full, only, true), need)
	if wrenn.CodeOf(err) == wrenn.Exhausted {
		// The host may have counted what is being made already: let it decide.
		id, err = scheduler.Pick(f.candidates(full, only, false), need)
	}
	if wrenn.CodeOf(err) == wrenn.Unavailable && only != "" {
		err = wrenn.Errorf(wrenn.Unavailable, "host %s, which has the template or a volume of the sandbox, cannot be reached; try again in a moment", only)
	}
	if err != nil {
		return nil, err
	}
	return f.members[id].reserve(1, need), nil
}

// needOf returns what a sandbox takes of a host.
func needOf(size wrenn.Size, diskMiB int) scheduler.Need {
	return scheduler.Need{MemoryMB: size.MemoryMiB, DiskMB: cmp.Or(diskMiB, wrenn.DefaultDiskMiB)}
}

// candidates returns the hosts that can be reached; pending adds the load that
// they may not have counted yet.
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
				h.PendingSandboxes, h.PendingMemoryMB, h.PendingDiskMB = sum.sandboxes, sum.memoryMB, sum.diskMB
			}
			hosts = append(hosts, h)
		}
		m.mu.Unlock()
	}
	return hosts
}

// ofNewVolume returns the host for a new volume.
func (f *fleet) ofNewVolume() (*member, error) {
	id, err := scheduler.MostDisk(f.candidates(nil, "", false))
	return f.members[id], err
}

// ofBuilds returns the host on which a team's builds with steps run, of those that
// can be reached; "" if there is none. All replicas choose the same one, so that it has
// what the team uploads and what its builds have cached.
func (f *fleet) ofBuilds(team wrenn.TeamID) (best wrenn.HostID) {
	var most uint64
	for id, m := range f.members {
		if up, _ := m.known(); !up {
			continue
		}
		h := fnv.New64a()
		_, _ = io.WriteString(h, string(team)+" "+string(id)) // never fails
		if n := h.Sum64(); best == "" || n > most || n == most && id < best {
			best, most = id, n
		}
	}
	return best
}

// reservation is sandboxes of one size that are to be made on a host.
type reservation struct {
	*member
	sandboxes int
	need      scheduler.Need // of each
}

// reserve counts n sandboxes that are to be made. The caller releases them.
func (m *member) reserve(n int, need scheduler.Need) *reservation {
	r := &reservation{member: m, sandboxes: n, need: need}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.making = m.making.add(r.load(n))
	return r
}

// release ends the reservation; made of its sandboxes exist now. It is called once.
func (r *reservation) release(made int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.making = r.making.sub(r.load(r.sandboxes))
	r.made = r.made.add(r.load(made))
}

func (r *reservation) load(n int) load {
	return load{n, int64(n) * int64(r.need.MemoryMB), int64(n) * int64(r.need.DiskMB)}
}

// removeBuild removes a build whose row does not want it. If that fails now
// the templateReconciler does it.
func (f *fleet) removeBuild(ctx context.Context, host wrenn.HostID, id wrenn.BuildID) {
	m := f.members[host]
	if m == nil {
		return
	}
	if err := m.client.DeleteBuild(ctx, id); err != nil {
		f.log.LogAttrs(ctx, slog.LevelWarn, "cannot remove a template's build from its host; will retry",
			slog.String("build", string(id)), slog.String("host", string(host)), slog.Any("err", err))
	}
}
