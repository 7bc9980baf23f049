package service

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/authority"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/reconcile"
	"wrenn.dev/internal/controlplane/scheduler"
	"wrenn.dev/internal/recent"
	"wrenn.dev/internal/wake"
)

const (
	pingsToDown = 2                // failed ones in a row, so that one lost packet does not take a host away
	saveEvery   = time.Minute      // a host's answers, when nothing changed
	newsRetry   = 5 * time.Second  // the mean time until a stream of news is opened again
	firstPing   = 10 * time.Second // how long a create waits for the first pings
	rowsEvery   = 10 * time.Second // how often the rows of hosts are read without a notification
)

// fleet is the hosts that are used, and their last answers. It follows their rows.
type fleet struct {
	configured map[wrenn.HostID]string // their urls
	spread     *recent.Cache[wrenn.TeamID, *teamSpread]
	every      time.Duration
	store      *postgres.Store
	log        *slog.Logger
	// secrets returns the values that a policy of a team needs; set before run.
	secrets   func(context.Context, wrenn.TeamID, wrenn.NetworkPolicy) (wrenn.SecretValues, error)
	changed   func(wrenn.HostID)   // called when a host is back or its agent has restarted; set before run
	authority *authority.Authority // of hosts that joined; may be nil
	deadlines hostclient.Deadlines
	traces    trace.TracerProvider // nil makes no spans
	wake      wake.Chan            // rows or members have changed
	read      chan struct{}        // closed when the rows were read once
	readOnce  sync.Once

	round   atomic.Uint64 // of uploads to the snapshot store, which is told to hosts
	mu      sync.RWMutex  // guards what follows
	members map[wrenn.HostID]*member
}

// member is one host.
type member struct {
	id     wrenn.HostID
	url    string
	client *hostclient.Client
	pinged chan struct{} // closed when the first ping is over
	once   sync.Once     // closes pinged

	mu       sync.Mutex // guards what follows
	up       bool
	failures int // pings in a row
	info     wrenn.HostInfo
	row      wrenn.HostRecord // as it was read last; zero until then
	saved    time.Time
	// What counts for placement: the row's, and else what the agent is configured with.
	zone   string
	labels map[string]string
	// The sandboxes that are being made on the host, and those made since the last ping was sent.
	making, made load
	refusedMB    int // see scheduler.Host
	builds       hostBuilds
}

func newFleet(cfg Config, store *postgres.Store, log *slog.Logger) (*fleet, error) {
	f := &fleet{
		configured: map[wrenn.HostID]string{}, every: cfg.PingEvery, store: store, log: log,
		authority: cfg.Authority, deadlines: cfg.Deadlines, traces: cfg.Traces, wake: wake.New(),
		read: make(chan struct{}), members: map[wrenn.HostID]*member{},
		spread: recent.New[wrenn.TeamID, *teamSpread](maxSpreads, spreadTTL),
	}
	for _, h := range cfg.Hosts {
		if _, err := wrenn.ParseHostID(string(h.ID)); err != nil {
			return nil, err
		}
		if f.members[h.ID] != nil {
			return nil, wrenn.Errorf(wrenn.Invalid, "host %s is configured twice", h.ID)
		}
		client, err := hostclient.New(hostclient.Config{ID: h.ID, URL: h.URL, TLS: h.TLS, Deadlines: cfg.Deadlines, Traces: cfg.Traces})
		if err != nil {
			return nil, fmt.Errorf("host %s: %w", h.ID, err)
		}
		f.configured[h.ID] = h.URL
		f.members[h.ID] = &member{id: h.ID, url: h.URL, client: client, pinged: make(chan struct{})}
	}
	return f, nil
}

// run follows the rows of hosts, and pings every host again and again until ctx ends.
func (f *fleet) run(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error { f.followRows(ctx); return nil })
	served := map[*member]context.CancelFunc{}
	for {
		f.serveAll(ctx, &g, served)
		f.refreshOrLog(ctx)
		f.serveAll(ctx, &g, served)
		select {
		case <-f.wake:
		case <-time.After(rowsEvery):
		case <-ctx.Done():
			return g.Wait()
		}
	}
}

// serveAll begins to serve the members that served does not have, and ends the others.
func (f *fleet) serveAll(ctx context.Context, g *errgroup.Group, served map[*member]context.CancelFunc) {
	now := map[*member]bool{}
	for _, m := range f.all() {
		now[m] = true
		if served[m] != nil {
			continue
		}
		serving, stop := context.WithCancel(ctx)
		served[m] = stop
		g.Go(func() error { f.serve(serving, m); return nil })
	}
	for m, stop := range served {
		if !now[m] {
			stop()
			delete(served, m)
		}
	}
}

// followRows wakes run when rows of hosts change. While the database cannot be reached
// they are read every rowsEvery.
func (f *fleet) followRows(ctx context.Context) {
	for {
		err := f.store.FollowHosts(ctx, f.wake.Notify)
		if ctx.Err() != nil {
			return
		}
		f.log.LogAttrs(ctx, slog.LevelWarn, "cannot follow the rows of hosts; will retry", slog.Any("err", err))
		if !wake.Sleep(ctx, newsRetry/2+rand.N(newsRetry)) {
			return
		}
	}
}

func (f *fleet) refreshOrLog(ctx context.Context) {
	if err := f.refresh(ctx); err != nil && ctx.Err() == nil {
		f.log.LogAttrs(ctx, slog.LevelWarn, "cannot read the rows of hosts; will retry", slog.Any("err", err))
	}
}

// refresh makes the members what the rows say now. Hosts of the configuration get rows.
func (f *fleet) refresh(ctx context.Context) error {
	rows, err := f.store.Hosts(ctx)
	if err != nil {
		return err
	}
	// After the rows of hosts: who asks all hosts for their rounds has either seen a host's
	// row, or begun its round before.
	round, _, err := f.store.StoreRound(ctx, 0)
	if err != nil {
		return err
	}
	f.raiseRound(round)
	missing := maps.Clone(f.configured)
	for i := range rows {
		delete(missing, rows[i].ID)
		if err := f.follow(rows[i]); err != nil {
			f.log.LogAttrs(ctx, slog.LevelError, "cannot use a host that joined", slog.String("host", string(rows[i].ID)), slog.Any("err", err))
		}
	}
	f.readOnce.Do(func() { close(f.read) })
	if len(missing) == 0 {
		return nil
	}
	return f.store.AddConfiguredHosts(ctx, missing) // which is a change that is read again
}

// raiseRound tells hosts a round from their next ping on, unless a later one is told.
func (f *fleet) raiseRound(round uint64) {
	for {
		now := f.round.Load()
		if round <= now || f.round.CompareAndSwap(now, round) {
			return
		}
	}
}

// follow makes the member of a row what the row says. A host of the configuration stays
// as that has it.
func (f *fleet) follow(row wrenn.HostRecord) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[row.ID]
	if f.configured[row.ID] == "" {
		used := row.Joined && row.Status != wrenn.HostRemoved && row.Status != wrenn.HostLost
		if m != nil && (!used || m.url != row.URL || m.revoked(row)) { // its connections end with it
			delete(f.members, row.ID)
			m = nil
			f.wake.Notify()
		}
		if used && m == nil {
			var err error
			if m, err = f.newMember(row); err != nil {
				return err
			}
			f.members[row.ID] = m
			f.wake.Notify()
		}
	}
	if m != nil {
		m.setRow(row)
	}
	return nil
}

// newMember returns the member of a host that joined.
func (f *fleet) newMember(row wrenn.HostRecord) (*member, error) {
	if f.authority == nil {
		return nil, noAuthorityError()
	}
	m := &member{id: row.ID, url: row.URL, pinged: make(chan struct{})}
	select {
	case <-f.read:
		m.setPinged() // creates do not wait for a host that joins while others answer
	default:
	}
	allowed := func(serial string) bool {
		ok := m.mayUse(serial)
		if !ok {
			f.wake.Notify() // another replica may have renewed it just now
		}
		return ok
	}
	var err error
	m.client, err = hostclient.New(hostclient.Config{
		ID: row.ID, URL: row.URL, TLS: func() *tls.Config { return f.authority.Client(row.ID, allowed) }, Deadlines: f.deadlines, Traces: f.traces,
	})
	return m, err
}

// mayUse reports whether the host may use the certificate with that serial number.
func (m *member) mayUse(serial string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return serial != "" && slices.Contains(m.row.Serials[:], serial)
}

// revoked reports whether the host may use none of the certificates any more that it
// could use when its row was read last: it joined again.
func (m *member) revoked(row wrenn.HostRecord) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := func(serial string) bool { return serial != "" && slices.Contains(m.row.Serials[:], serial) }
	return m.row.Serials[0] != "" && !known(row.Serials[0]) && !known(row.Serials[1])
}

func (m *member) setRow(row wrenn.HostRecord) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.row = row
	m.describe()
}

// describe sets what counts for placement. The caller holds mu.
func (m *member) describe() { m.zone, m.labels = placeOf(m.row, m.info.HostFacts) }

// placeOf returns the zone and the labels of a host: those of its row, which an operator
// gave it, before those that it has by its own configuration.
func placeOf(row wrenn.HostRecord, facts wrenn.HostFacts) (zone string, labels map[string]string) {
	labels = maps.Clone(facts.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, row.Labels)
	return cmp.Or(row.Zone, facts.Zone), labels
}

// schedulable reports whether the host answers and may get new sandboxes.
func (m *member) schedulable() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.up && m.open()
}

// open reports whether the host may get new sandboxes: a row that was not read yet does
// not forbid it. The caller holds mu.
func (m *member) open() bool { return m.row.Status == "" || m.row.Status == wrenn.HostActive }

// member returns a host that is used, or nil.
func (f *fleet) member(id wrenn.HostID) *member {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.members[id]
}

// all returns the hosts that are used, by id.
func (f *fleet) all() []*member {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return slices.SortedFunc(maps.Values(f.members), func(a, b *member) int { return cmp.Compare(a.id, b.id) })
}

// serve pings a host and follows its news until ctx ends.
func (f *fleet) serve(ctx context.Context, m *member) {
	defer m.client.Close()
	var news sync.WaitGroup
	defer news.Wait()
	news.Go(func() { f.followNews(ctx, m) })
	f.watch(ctx, m)
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
			m.setPinged()
		}
		// Scattered, so that a thousand hosts are not pinged at one moment.
		if !wake.Sleep(ctx, f.every/2+rand.N(f.every)) {
			return
		}
	}
}

func (f *fleet) ping(ctx context.Context, m *member) {
	counted := m.madeSoFar()
	info, err := m.client.Ping(ctx, f.round.Load())
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		if m.missed() {
			f.log.LogAttrs(ctx, slog.LevelWarn, "cannot reach host", slog.String("host", string(m.id)), slog.Any("err", err))
		}
		return
	}
	if wrenn.CheckZone(info.Zone) != nil || wrenn.CheckLabels(info.Labels) != nil {
		info.Zone, info.Labels = "", nil // no agent that checks its configuration has such ones
	}
	isNew, save := m.answered(info, counted)
	f.followBuilds(ctx, m, info)
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

// setPinged lets creates no longer wait for the first ping.
func (m *member) setPinged() { m.once.Do(func() { close(m.pinged) }) }

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
	m.up, m.failures, m.info, m.made, m.refusedMB = true, 0, info, m.made.sub(counted), 0
	if isNew {
		m.describe()
	}
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
	for _, m := range f.all() {
		m.mu.Lock()
		if m.up {
			out[m.id] = reconciled{m.client, f.secrets}
		}
		m.mu.Unlock()
	}
	return out
}

// reconciled is a host as the reconciler needs it.
type reconciled struct {
	*hostclient.Client
	secrets func(context.Context, wrenn.TeamID, wrenn.NetworkPolicy) (wrenn.SecretValues, error)
}

// At returns the host for the sandbox of that epoch.
func (r reconciled) At(epoch wrenn.Epoch) reconcile.Host {
	return reconciled{r.Client.At(epoch), r.secrets}
}

// SetNetwork sets the row's network policy, with the secrets that it needs.
func (r reconciled) SetNetwork(ctx context.Context, row *wrenn.Sandbox) error {
	secrets, err := r.secrets(ctx, row.Team, row.Network)
	if err != nil {
		return err
	}
	return r.Client.SetNetwork(ctx, row.ID, row.Network, secrets)
}

// clientOf returns a client of a sandbox's host, for the placement that its row names.
func (f *fleet) clientOf(sb *wrenn.Sandbox) (*hostclient.Client, error) {
	host, err := f.client(sb.Host)
	if err != nil {
		return nil, err
	}
	return host.At(sb.Epoch), nil
}

// client returns the client of a host.
func (f *fleet) client(id wrenn.HostID) (*hostclient.Client, error) {
	m := f.member(id)
	if m == nil {
		return nil, noMemberError(id)
	}
	return m.client, nil
}

func noMemberError(id wrenn.HostID) error {
	return wrenn.Errorf(wrenn.Unavailable, "the sandbox is on host %s, which is not in the configuration and did not join, or was removed: add it again", id)
}

// waitForPings returns when the rows were read and every host was pinged once, after
// firstPing at the latest.
func (f *fleet) waitForPings(ctx context.Context) {
	timeout := time.NewTimer(firstPing)
	defer timeout.Stop()
	wait := func(over chan struct{}) bool {
		select {
		case <-over:
			return true
		case <-timeout.C:
		case <-ctx.Done():
		}
		return false
	}
	if !wait(f.read) {
		return
	}
	for _, m := range f.all() {
		if !wait(m.pinged) {
			return
		}
	}
}

// ofNewVolume returns the host for a new volume.
func (f *fleet) ofNewVolume() (*member, error) {
	id, err := scheduler.MostDisk(f.candidates(false))
	if m := f.member(id); m != nil {
		return m, nil
	}
	if err == nil {
		err = wrenn.Errorf(wrenn.Unavailable, "host %s was removed just now; try again", id)
	}
	return nil, err
}

// copies returns the host of a sandbox that is to be copied there: Unavailable when it
// takes no new sandboxes.
func (f *fleet) copies(id wrenn.HostID) (*member, error) {
	m := f.member(id)
	if m == nil {
		return nil, noMemberError(id)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.open() {
		return nil, wrenn.Errorf(wrenn.Unavailable, "a copy is made on the host of its parent, and host %s takes no new sandboxes now: an operator has cordoned it", id)
	}
	return m, nil
}

// ofBuilds returns the host on which a team's builds with steps run, of those that
// answer and take new work; "" if there is none. All replicas choose the same one, so that
// it has what the team uploads and what its builds have cached.
func (f *fleet) ofBuilds(team wrenn.TeamID) (best wrenn.HostID) {
	var most uint64
	for _, m := range f.all() {
		if !m.schedulable() {
			continue
		}
		h := fnv.New64a()
		_, _ = io.WriteString(h, string(team)+" "+string(m.id)) // never fails
		if n := h.Sum64(); best == "" || n > most {
			best, most = m.id, n
		}
	}
	return best
}

// removeBuild removes a build whose row does not want it and, with an owner, what is
// stored of it. If that fails now the templateReconciler does it.
func (f *fleet) removeBuild(ctx context.Context, host wrenn.HostID, id wrenn.BuildID, owner wrenn.TeamID) {
	m := f.member(host)
	if m == nil {
		return
	}
	if err := m.client.DeleteBuild(ctx, id, owner); err != nil {
		f.log.LogAttrs(ctx, slog.LevelWarn, "cannot remove a template's build from its host; will retry",
			slog.String("build", string(id)), slog.String("host", string(host)), slog.Any("err", err))
	}
}
