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

	"wrenn.dev"
	"wrenn.dev/internal/wake"
)

const (
	parallelHosts   = 16 // rounds at once, so that a host that hangs does not hold up the others
	parallelReads   = 3  // of rows, so that connections to the database and a CPU are left for requests
	parallelActions = 8  // of one host
	shares          = 30 // of the hosts, one after the other: a thousand rounds at once made requests wait for seconds
	minTick         = time.Millisecond
	leadPoll        = 5 * time.Second
	watchEvery      = 5 * time.Second // for rows that were abandoned
	abandonedAge    = 5 * time.Second // how old these must be
	againAfter      = time.Second     // the time until a round that waits for new rows to be a little older
)

// Store has the rows. Move changes a row if it still is as it was read.
type Store interface {
	Now(ctx context.Context) (time.Time, error)
	HostRows(ctx context.Context, host wrenn.HostID, seen []wrenn.SandboxID) ([]wrenn.Sandbox, error)
	// Abandoned returns the rows in transition on which no process works any more, and which are older than settled.
	Abandoned(ctx context.Context, settled time.Duration) (map[wrenn.SandboxID]wrenn.HostID, error)
	Move(ctx context.Context, row *wrenn.Sandbox, to wrenn.State, reason string, cause wrenn.EndCause) error
	// SecretsTags returns the tags of the secrets that rows need now, "" for none.
	SecretsTags(ctx context.Context, rows []wrenn.Sandbox) (map[wrenn.SandboxID]string, error)
	// Layers gives rows the network policies that they follow now, with those of their
	// teams and templates.
	Layers(ctx context.Context, rows []wrenn.Sandbox) error
	// SetUnresponsive shows whether the guest answers; nil means that it does.
	SetUnresponsive(ctx context.Context, row *wrenn.Sandbox, u *wrenn.Unresponsive) error
	// SetNewestCheckpoint shows the newest checkpoint that is stored.
	SetNewestCheckpoint(ctx context.Context, row *wrenn.Sandbox, newest wrenn.StoredCheckpoint) error
	// SetEpoch shows the epoch of the sandbox on the row's host, if it is a later one.
	SetEpoch(ctx context.Context, row *wrenn.Sandbox, epoch wrenn.Epoch) error
	// SetStored shows where a paused sandbox is stored.
	SetStored(ctx context.Context, row *wrenn.Sandbox, stored wrenn.Stored) error
	// SaveUnknown stores the sandboxes of a host that no row explains and returns the new ones.
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
	// At returns the host for a sandbox of that epoch: it refuses calls if it has another
	// one. 0 compares nothing.
	At(epoch wrenn.Epoch) Host
	Inventory(ctx context.Context) (wrenn.Inventory, error)
	Destroy(ctx context.Context, id wrenn.SandboxID) error
	Pause(ctx context.Context, id wrenn.SandboxID, options wrenn.PauseOptions) error
	Extend(ctx context.Context, id wrenn.SandboxID, timeout time.Duration) error
	SetSettings(ctx context.Context, id wrenn.SandboxID, settings wrenn.Settings) error
	// SetNetwork sets the row's network policy, with the secrets that it needs.
	SetNetwork(ctx context.Context, row *wrenn.Sandbox) error
}

// Config is the configuration of a loop.
type Config struct {
	Store Store
	// Hosts returns the hosts that can be reached now, in a new map.
	Hosts func() map[wrenn.HostID]Host
	Every time.Duration // default 30 s
	Grace Grace
	Log   *slog.Logger
}

// Loop reconciles while it leads.
type Loop struct {
	cfg     Config
	wake    wake.Chan           // notified has a new host
	reading *semaphore.Weighted // bounds the rounds that read rows at once

	mu       sync.Mutex // guards what follows
	notified map[wrenn.HostID]bool
	reported map[wrenn.HostID]int // how many unknown sandboxes, since this loop leads
}

// New returns a loop, which Run runs.
func New(cfg Config) *Loop {
	cfg.Every = cmp.Or(cfg.Every, 30*time.Second)
	return &Loop{
		cfg: cfg, wake: wake.New(), reading: semaphore.NewWeighted(parallelReads),
		notified: map[wrenn.HostID]bool{}, reported: map[wrenn.HostID]int{},
	}
}

// Notify asks for a round of one host now. It does not block.
func (l *Loop) Notify(host wrenn.HostID) {
	l.mu.Lock()
	l.notified[host] = true
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
			l.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "cannot lead the reconciliation; will retry", slog.Any("err", err))
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
	l.drainNotified() // the first round is of all
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
			do = l.roundsOfAbandoned
		case <-l.wake:
			do = func(ctx context.Context) { l.some(ctx, l.drainNotified()) }
		}
		if err := lead.Held(ctx); err != nil {
			return err
		}
		do(ctx)
	}
}

// share returns the share that a host belongs to.
func share(host wrenn.HostID) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(host)) // never fails
	return h.Sum32() % shares
}

// roundsOfAbandoned makes a round of each host that has abandoned rows.
func (l *Loop) roundsOfAbandoned(ctx context.Context) {
	abandoned, err := l.cfg.Store.Abandoned(ctx, abandonedAge)
	if err != nil {
		if ctx.Err() == nil {
			l.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "cannot look for abandoned sandboxes; will retry", slog.Any("err", err))
		}
		return
	}
	hosts := map[wrenn.HostID]bool{}
	for _, host := range abandoned {
		hosts[host] = true
	}
	l.some(ctx, hosts)
}

func (l *Loop) drainNotified() map[wrenn.HostID]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	notified := l.notified
	l.notified = map[wrenn.HostID]bool{}
	return notified
}

// All makes one round of every host, and of the rows without a host.
func (l *Loop) All(ctx context.Context) {
	l.rounds(ctx, func(wrenn.HostID) bool { return true })
}

func (l *Loop) some(ctx context.Context, hosts map[wrenn.HostID]bool) {
	l.rounds(ctx, func(host wrenn.HostID) bool { return hosts[host] })
}

func (l *Loop) rounds(ctx context.Context, wanted func(wrenn.HostID) bool) {
	hosts := l.cfg.Hosts()
	hosts[""] = noHost{}
	var g errgroup.Group
	g.SetLimit(parallelHosts)
	for id, host := range hosts {
		if wanted(id) {
			g.Go(func() error { l.finish(ctx, id, l.round(ctx, id, host)); return nil })
		}
	}
	_ = g.Wait() // finish logs the errors
}

func (l *Loop) finish(ctx context.Context, host wrenn.HostID, err error) {
	if err != nil && ctx.Err() == nil {
		l.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "cannot reconcile host", slog.String("host", string(host)), slog.Any("err", err))
	}
}

// round compares one host and acts. The order matters: the time, the observed
// state, and then the desired state.
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
	if plan.Again {
		time.AfterFunc(againAfter, func() { l.Notify(id) })
	}
	return l.report(ctx, id, plan.Unknown)
}

// rows reads the rows first and then which of them are abandoned: in the other order
// a row that a request acquired in between would be taken for abandoned.
func (l *Loop) rows(ctx context.Context, host wrenn.HostID, seen []wrenn.SandboxID) ([]Row, error) {
	if err := l.reading.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer l.reading.Release(1)
	read, err := l.cfg.Store.HostRows(ctx, host, seen)
	if err != nil || len(read) == 0 {
		return nil, err
	}
	if err := l.cfg.Store.Layers(ctx, read); err != nil {
		return nil, err
	}
	tags, err := l.cfg.Store.SecretsTags(ctx, read)
	if err != nil {
		return nil, err
	}
	rows, inTransition := make([]Row, len(read)), false
	for i := range read {
		rows[i].Sandbox, rows[i].SecretsTag = read[i], tags[read[i].ID]
		inTransition = inTransition || read[i].State.InTransition()
	}
	if !inTransition {
		return rows, nil
	}
	abandoned, err := l.cfg.Store.Abandoned(ctx, abandonedAge)
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
				// Often another request was first; if not, the next round plans the same again.
				l.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "cannot reconcile sandbox", append(attrs, slog.Any("err", err))...)
				return nil
			}
			l.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "reconciled sandbox", attrs...)
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
		return l.cfg.Store.Move(ctx, &a.Row, a.To, a.Reason, a.Cause)
	}
	host = host.At(a.Epoch)
	first, then := move, func() error { return nil }
	switch a.Kind {
	case Acknowledge:
		then = func() error { return host.Destroy(ctx, a.Row.ID) }
	case Destroy:
		first, then = func() error { return host.Destroy(ctx, a.Row.ID) }, move
	case Condition:
		first = func() error { return l.cfg.Store.SetUnresponsive(ctx, &a.Row, a.Unresponsive) }
	case SetStored:
		first = func() error { return l.cfg.Store.SetStored(ctx, &a.Row, a.Stored) }
	case Drop:
		first = func() error { return l.drop(ctx, host, a.Row) }
	case Supersede:
		first = func() error {
			return host.Pause(ctx, a.Row.ID, wrenn.PauseOptions{Hold: true, Guest: wrenn.PauseIfAble, SupersededBy: a.Row.Epoch})
		}
	case SetNewest:
		first = func() error { return l.cfg.Store.SetNewestCheckpoint(ctx, &a.Row, a.Newest) }
	case SetEpoch:
		first = func() error { return l.cfg.Store.SetEpoch(ctx, &a.Row, a.Epoch) }
	case Extend:
		first = func() error { return host.Extend(ctx, a.Row.ID, a.Row.Timeout) }
	case SetSettings:
		first = func() error { return host.SetSettings(ctx, a.Row.ID, a.Row.Settings()) }
	case SetNetwork:
		first = func() error { return host.SetNetwork(ctx, &a.Row) }
	}
	if err := first(); err != nil {
		return err
	}
	return then()
}

// drop removes the copy of a sandbox whose row names another host, unless the row has
// changed: it may name this one again.
func (l *Loop) drop(ctx context.Context, host Host, row wrenn.Sandbox) error {
	now, err := l.cfg.Store.HostRows(ctx, "", []wrenn.SandboxID{row.ID})
	if err != nil {
		return err
	}
	same := slices.ContainsFunc(now, func(sb wrenn.Sandbox) bool { return sb.ID == row.ID && sb.Version == row.Version })
	if !same {
		return nil
	}
	return host.Destroy(ctx, row.ID)
}

// report shows operators the sandboxes that no row explains: once in the log, and
// in the database as long as they exist.
func (l *Loop) report(ctx context.Context, host wrenn.HostID, unknown []wrenn.ObservedSandbox) error {
	l.mu.Lock()
	known, before := l.reported[host]
	l.mu.Unlock()
	if len(unknown) == 0 && before && known == 0 {
		return nil // none, as in the last round
	}
	fresh, err := l.cfg.Store.SaveUnknown(ctx, host, unknown)
	if err != nil {
		return err
	}
	for _, sb := range unknown {
		if slices.Contains(fresh, sb.ID) {
			l.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "no row explains a sandbox on a host; it stays until an operator decides",
				slog.String("host", string(host)), slog.String("sandbox", string(sb.ID)),
				slog.String("state", string(sb.State)), slog.String("reason", sb.Reason))
		}
	}
	l.mu.Lock()
	l.reported[host] = len(unknown)
	l.mu.Unlock()
	return nil
}

// Unknown returns the number of sandboxes on each host that no row explains, as of
// the last round. A loop that does not lead returns none.
func (l *Loop) Unknown() map[wrenn.HostID]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	unknown := maps.Clone(l.reported)
	delete(unknown, "") // no host
	return unknown
}

// forgetReports clears the counts when the loop stops leading: another replica reports then.
func (l *Loop) forgetReports() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.reported)
}

// noHost stands for the host of rows without a host.
type noHost struct{}

func (noHost) Inventory(context.Context) (wrenn.Inventory, error) { return wrenn.Inventory{}, nil }
func (h noHost) At(wrenn.Epoch) Host                              { return h }

func (noHost) Pause(context.Context, wrenn.SandboxID, wrenn.PauseOptions) error { return nil }

func (noHost) Destroy(context.Context, wrenn.SandboxID) error               { return nil }
func (noHost) Extend(context.Context, wrenn.SandboxID, time.Duration) error { return nil }

func (noHost) SetSettings(context.Context, wrenn.SandboxID, wrenn.Settings) error { return nil }

func (noHost) SetNetwork(context.Context, *wrenn.Sandbox) error { return nil }
