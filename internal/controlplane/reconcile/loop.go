package reconcile

import (
	"cmp"
	"context"
	"hash/fnv"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"wrenn"
	"wrenn/internal/wake"
)

const (
	parallelHosts   = 16 // rounds at once, so that a host that hangs holds up nobody
	parallelReads   = 3  // of rows, so that requests find connections to the database, and a CPU
	parallelActions = 8  // of one host
	shares          = 30 // of the hosts, one after the other: a thousand rounds at one moment made requests wait for seconds
	minTick         = time.Millisecond
	leadPoll        = 5 * time.Second
	watchEvery      = 5 * time.Second // for rows that were abandoned
	settled         = 5 * time.Second // how old they must be
)

// Store is the rows. Move changes one if it still is as it was read.
type Store interface {
	Now(ctx context.Context) (time.Time, error)
	HostRows(ctx context.Context, host wrenn.HostID, seen []wrenn.SandboxID) ([]wrenn.Sandbox, error)
	// Abandoned returns rows between two states on which nobody works any more, older than settled.
	Abandoned(ctx context.Context, settled time.Duration) (map[wrenn.SandboxID]wrenn.HostID, error)
	Move(ctx context.Context, row *wrenn.Sandbox, to wrenn.State, reason string) error
	// SaveUnknown keeps what was reported of a host and returns what is new of it.
	SaveUnknown(ctx context.Context, host wrenn.HostID, seen []wrenn.ObservedSandbox) ([]wrenn.SandboxID, error)
	// TryLead returns nil when another replica leads.
	TryLead(ctx context.Context) (Lead, error)
}

// Lead is the right to reconcile.
type Lead interface {
	Held(ctx context.Context) error
	Close(ctx context.Context)
}

// Host is a host that can be reached.
type Host interface {
	Inventory(ctx context.Context) (wrenn.Inventory, error)
	Destroy(ctx context.Context, id wrenn.SandboxID) error
	Extend(ctx context.Context, id wrenn.SandboxID, timeout time.Duration) error
}

// Config is what a loop needs.
type Config struct {
	Store Store
	// Hosts returns those that can be reached now, in a map of the caller's.
	Hosts func() map[wrenn.HostID]Host
	Every time.Duration // default 30 s
	Grace Grace
	Log   *slog.Logger
}

// Loop reconciles as long as it leads.
type Loop struct {
	cfg     Config
	wake    wake.Chan           // kicked has a new host
	reading *semaphore.Weighted // bounds how many read rows at once

	mu       sync.Mutex // guards what follows
	kicked   map[wrenn.HostID]bool
	reported map[wrenn.HostID]int // how many sandboxes, since this loop leads
}

// New returns a loop, which Run runs.
func New(cfg Config) *Loop {
	cfg.Every = cmp.Or(cfg.Every, 30*time.Second)
	return &Loop{
		cfg: cfg, wake: wake.New(), reading: semaphore.NewWeighted(parallelReads),
		kicked: map[wrenn.HostID]bool{}, reported: map[wrenn.HostID]int{},
	}
}

// Kick asks for a round of one host at once. It does not block.
func (l *Loop) Kick(host wrenn.HostID) {
	l.mu.Lock()
	l.kicked[host] = true
	l.mu.Unlock()
	l.wake.Notify()
}

// Run reconciles until ctx ends, whenever no other replica does.
func (l *Loop) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		lead, err := l.cfg.Store.TryLead(ctx)
		if err == nil && lead != nil {
			l.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "leading the reconciliation")
			err = l.lead(ctx, lead)
			l.forgetReports()
			lead.Close(ctx)
		}
		if err != nil && ctx.Err() == nil {
			l.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "not leading the reconciliation", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(leadPoll):
		}
	}
	return nil
}

// lead makes rounds until the lead or ctx ends.
func (l *Loop) lead(ctx context.Context, lead Lead) error {
	tick := time.NewTicker(max(l.cfg.Every/shares, minTick))
	defer tick.Stop()
	watch := time.NewTicker(watchEvery)
	defer watch.Stop()
	l.takeKicked() // the first round is of all
	l.All(ctx)
	for n := uint32(0); ; {
		var do func(context.Context)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			n = (n + 1) % shares
			do = func(ctx context.Context) { l.rounds(ctx, func(host wrenn.HostID) bool { return share(host) == n }) }
		case <-watch.C:
			do = l.lookAfter
		case <-l.wake:
			do = func(ctx context.Context) { l.some(ctx, l.takeKicked()) }
		}
		if err := lead.Held(ctx); err != nil {
			return err
		}
		do(ctx)
	}
}

// share is which part of the hosts one belongs to.
func share(host wrenn.HostID) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(host)) // never fails
	return h.Sum32() % shares
}

// lookAfter makes a round of the hosts that have abandoned rows.
func (l *Loop) lookAfter(ctx context.Context) {
	abandoned, err := l.cfg.Store.Abandoned(ctx, settled)
	if err != nil {
		if ctx.Err() == nil {
			l.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "looking for abandoned sandboxes", slog.Any("error", err))
		}
		return
	}
	hosts := map[wrenn.HostID]bool{}
	for _, host := range abandoned {
		hosts[host] = true
	}
	l.some(ctx, hosts)
}

func (l *Loop) takeKicked() map[wrenn.HostID]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	kicked := l.kicked
	l.kicked = map[wrenn.HostID]bool{}
	return kicked
}

// All makes one round of every host, and of the rows that have none yet.
func (l *Loop) All(ctx context.Context) {
	l.rounds(ctx, func(wrenn.HostID) bool { return true })
}

func (l *Loop) some(ctx context.Context, hosts map[wrenn.HostID]bool) {
	l.rounds(ctx, func(host wrenn.HostID) bool { return hosts[host] })
}

func (l *Loop) rounds(ctx context.Context, wanted func(wrenn.HostID) bool) {
	hosts := l.cfg.Hosts()
	hosts[""] = nowhere{}
	var g errgroup.Group
	g.SetLimit(parallelHosts)
	for id, host := range hosts {
		if wanted(id) {
			g.Go(func() error { l.finish(ctx, id, l.round(ctx, id, host)); return nil })
		}
	}
	_ = g.Wait() // each says itself what is wrong
}

func (l *Loop) finish(ctx context.Context, host wrenn.HostID, err error) {
	if err != nil && ctx.Err() == nil {
		l.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "reconciling a host", slog.String("host", string(host)), slog.Any("error", err))
	}
}

// round looks at one host and acts. The order matters: the time, what is
// there, and then what should be.
func (l *Loop) round(ctx context.Context, id wrenn.HostID, host Host) error {
	asOf, err := l.cfg.Store.Now(ctx)
	if err != nil {
		return err
	}
	inv, err := host.Inventory(ctx)
	if err != nil {
		return err
	}
	ids := make([]wrenn.SandboxID, len(inv.Sandboxes))
	for i, sb := range inv.Sandboxes {
		ids[i] = sb.ID
	}
	rows, err := l.rows(ctx, id, ids)
	if err != nil {
		return err
	}
	inv.Host = id
	plan := Plan(rows, inv, asOf, l.cfg.Grace)
	l.act(ctx, host, plan.Actions)
	return l.report(ctx, id, plan.Unknown)
}

// rows reads the rows first and then which of them are abandoned: in the other
// order one that somebody has taken up meanwhile would be taken for abandoned.
func (l *Loop) rows(ctx context.Context, host wrenn.HostID, seen []wrenn.SandboxID) ([]Row, error) {
	if err := l.reading.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer l.reading.Release(1)
	read, err := l.cfg.Store.HostRows(ctx, host, seen)
	if err != nil || len(read) == 0 {
		return nil, err
	}
	rows, between := make([]Row, len(read)), false
	for i := range read {
		rows[i].Sandbox = read[i]
		between = between || read[i].State.InTransition()
	}
	if !between {
		return rows, nil
	}
	abandoned, err := l.cfg.Store.Abandoned(ctx, settled)
	for i := range rows {
		_, rows[i].Abandoned = abandoned[rows[i].ID]
	}
	return rows, err
}

func (l *Loop) act(ctx context.Context, host Host, actions []Action) {
	var g errgroup.Group
	g.SetLimit(parallelActions)
	for _, a := range actions {
		g.Go(func() error {
			err := l.do(ctx, host, a)
			attrs := []slog.Attr{
				slog.String("action", string(a.Kind)), slog.String("sandbox", string(a.Row.ID)), slog.String("host", string(a.Row.Host)),
				slog.String("from", string(a.Row.State)), slog.String("to", string(a.To)), slog.String("reason", a.Reason),
			}
			if err != nil {
				// Often another request that was first; if not, the next round sees the same again.
				l.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "could not reconcile a sandbox", append(attrs, slog.Any("error", err))...)
				return nil
			}
			l.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "reconciled a sandbox", attrs...)
			return nil
		})
	}
	_ = g.Wait() // logged above
}

func (l *Loop) do(ctx context.Context, host Host, a Action) error {
	move := func() error {
		if a.To == "" {
			return nil
		}
		return l.cfg.Store.Move(ctx, &a.Row, a.To, a.Reason)
	}
	first, then := move, func() error { return nil }
	switch a.Kind {
	case Acknowledge:
		then = func() error { return host.Destroy(ctx, a.Row.ID) }
	case Destroy:
		first, then = func() error { return host.Destroy(ctx, a.Row.ID) }, move
	case Extend:
		first = func() error { return host.Extend(ctx, a.Row.ID, a.Row.Timeout) }
	}
	if err := first(); err != nil {
		return err
	}
	return then()
}

// report tells people of sandboxes that no row explains: once in the log, and
// in the database as long as they are there.
func (l *Loop) report(ctx context.Context, host wrenn.HostID, unknown []wrenn.ObservedSandbox) error {
	l.mu.Lock()
	known, before := l.reported[host]
	l.mu.Unlock()
	if len(unknown) == 0 && before && known == 0 {
		return nil // nothing, as the last time
	}
	fresh, err := l.cfg.Store.SaveUnknown(ctx, host, unknown)
	if err != nil {
		return err
	}
	for _, sb := range unknown {
		if slices.Contains(fresh, sb.ID) {
			l.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "a host has a sandbox that no row explains; it is left alone until a person decides",
				slog.String("host", string(host)), slog.String("sandbox", string(sb.ID)),
				slog.String("state", string(sb.State)), slog.String("reason", sb.Reason))
		}
	}
	l.mu.Lock()
	l.reported[host] = len(unknown)
	l.mu.Unlock()
	return nil
}

// Unknown says how many sandboxes of each host no row explains, as of the last
// round of a loop that leads. One that does not lead knows of none.
func (l *Loop) Unknown() map[wrenn.HostID]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	unknown := maps.Clone(l.reported)
	delete(unknown, "") // no host
	return unknown
}

// forgetReports is for a loop that leads no more: from now on others report.
func (l *Loop) forgetReports() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.reported)
}

// nowhere is the host of rows that have none yet.
type nowhere struct{}

func (nowhere) Inventory(context.Context) (wrenn.Inventory, error)           { return wrenn.Inventory{}, nil }
func (nowhere) Destroy(context.Context, wrenn.SandboxID) error               { return nil }
func (nowhere) Extend(context.Context, wrenn.SandboxID, time.Duration) error { return nil }
