// Package service holds what the control plane does: its use cases, for
// callers that are authenticated. It writes the wish into the database, asks
// the host, and writes what came of it.
//
// A replica keeps nothing that another would miss: any number of them work on
// one database, because every change of a row is a compare-and-set and every
// call to a host may be repeated. What a caller who hangs up leaves half done
// is undone, or finished, under a context of its own.
package service

import (
	"cmp"
	"context"
	"crypto/tls"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"wrenn"
	"wrenn/internal/controlplane/auth"
	"wrenn/internal/controlplane/hostclient"
	"wrenn/internal/controlplane/postgres"
	"wrenn/internal/controlplane/reconcile"
)

// The words of commands, which the product shares.
type (
	ExecCommand = wrenn.ExecCommand
	ExecResult  = wrenn.ExecResult
	ExecStart   = wrenn.ExecStart
	ExecAttach  = wrenn.ExecAttach
	ExecStarted = wrenn.ExecStarted
	ExecSession = wrenn.ExecSession
	PTYSize     = wrenn.PTYSize
	ExecOutput  = wrenn.ExecOutput
	ExecExit    = wrenn.ExecExit
)

// Config says which hosts there are and what teams may use. Zero values are
// the defaults.
type Config struct {
	Hosts     []Host
	Limits    Limits
	Deadlines hostclient.Deadlines
	// ReconcileEvery is how often rows and hosts are compared; default 30 s.
	ReconcileEvery time.Duration
	// PingEvery is how often a host is asked whether it is there; default 10 s.
	PingEvery time.Duration
	// FlushEvery is how often what was used when is written; default 10 s.
	FlushEvery time.Duration
}

// Host is a machine that runs sandboxes.
type Host struct {
	ID  wrenn.HostID
	URL string             // http://, https:// or unix:///path
	TLS func() *tls.Config // for https, see hostclient.Config
}

// Limits bound a team. The first two are what it has at once where its row in
// the database says nothing else; the others are of one sandbox.
type Limits struct {
	Sandboxes    int           // paused ones included; default 100
	TeamMemoryMB int           // of those that are not paused; default 262144
	VCPUs        int           // default 8
	MemoryMB     int           // default 16384
	Timeout      time.Duration // default 30 days
	ExecTimeout  time.Duration // of one command; default 24 h
	Templates    int           // that a team has; default 100
	Builds       int           // of templates, of a team at a time; default 4
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Sandboxes: cmp.Or(l.Sandboxes, 100), TeamMemoryMB: cmp.Or(l.TeamMemoryMB, 256<<10),
		VCPUs: cmp.Or(l.VCPUs, 8), MemoryMB: cmp.Or(l.MemoryMB, 16<<10),
		Timeout: cmp.Or(l.Timeout, 30*24*time.Hour), ExecTimeout: cmp.Or(l.ExecTimeout, 24*time.Hour),
		Templates: cmp.Or(l.Templates, 100), Builds: cmp.Or(l.Builds, 4),
	}
}

// ofTeam are the limits of what a team has at once.
func (l Limits) ofTeam() postgres.Limits {
	return postgres.Limits{Sandboxes: l.Sandboxes, MemoryMB: int64(l.TeamMemoryMB)}
}

const (
	keyCacheSize = 10_000
	keyCacheTTL  = 5 * time.Second // how long a key that another replica revoked is taken
	settleSlack  = 2*rowTimeout + 10*time.Second
)

// Caller is who asks, as Authenticate found.
type Caller struct {
	Team wrenn.TeamID
	Key  string // the id of the key; "" is the system
}

// actor is the caller in events.
func (c Caller) actor() string {
	if c.Key == "" {
		return "system"
	}
	return "key:" + c.Key
}

// Service is the control plane. It is safe for concurrent use.
type Service struct {
	cfg   Config
	store *postgres.Store
	fleet *fleet
	loop  *reconcile.Loop
	log   *slog.Logger

	keys      *auth.Cache[Caller]
	usedBoxes uses[wrenn.SandboxID]
	usedKeys  uses[string]
	left      left
	begun     chan *build // by requests, for Run
}

// New returns a service over a database that is migrated. It does not wait
// for hosts. Run must run for sandboxes to be made.
func New(cfg Config, store *postgres.Store, log *slog.Logger) (*Service, error) {
	cfg.Limits = cfg.Limits.withDefaults()
	cfg.Deadlines = cfg.Deadlines.WithDefaults()
	cfg.PingEvery = cmp.Or(cfg.PingEvery, 10*time.Second)
	cfg.FlushEvery = cmp.Or(cfg.FlushEvery, 10*time.Second)
	cfg.ReconcileEvery = cmp.Or(cfg.ReconcileEvery, 30*time.Second)
	s := &Service{cfg: cfg, store: store, log: log, keys: auth.NewCache[Caller](keyCacheSize, keyCacheTTL), left: newLeft(), begun: make(chan *build)}
	var err error
	if s.fleet, err = newFleet(cfg, store, log); err != nil {
		return nil, err
	}
	s.loop = reconcile.New(reconcile.Config{
		Store: rows{store}, Hosts: s.fleet.reachable, Every: cfg.ReconcileEvery, Grace: grace(cfg.Deadlines), Log: log,
	})
	s.fleet.changed = s.loop.Kick
	return s, nil
}

// grace is longer than what this service takes at most. It is for rows whose
// worker is connected and yet does not end them: those of one that is gone or
// has let them go do not wait.
func grace(d hostclient.Deadlines) reconcile.Grace {
	return reconcile.Grace{
		Pending: settleSlack, Starting: d.Create + d.Destroy + settleSlack,
		Turning: d.Pause + settleSlack, Stopping: d.Destroy + settleSlack,
	}
}

// Run shows that this replica lives, watches the hosts, reconciles and writes
// what was batched. It returns when ctx has ended and all of it is done.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.attend(ctx) })
	g.Go(func() error { return s.releaseLeft(ctx) })
	g.Go(func() error { return s.fleet.run(ctx) })
	g.Go(func() error { return s.loop.Run(ctx) })
	g.Go(func() error { return s.flushUses(ctx) })
	g.Go(func() error { return s.runBuilds(ctx) })
	g.Go(func() error { return s.tendTemplates(ctx) })
	return g.Wait()
}

// Ready says whether requests can be served: Unavailable when the database
// cannot be reached or has another schema.
func (s *Service) Ready(ctx context.Context) error { return s.store.Ready(ctx) }

// Hosts returns what is known of the hosts, and of what they have that no row
// explains. It is for the operator: it asks for no caller.
func (s *Service) Hosts(ctx context.Context) ([]wrenn.HostRecord, []wrenn.UnknownSandbox, error) {
	return s.store.Hosts(ctx)
}

// EnsureTeam returns the team of that name and makes it when there is none.
func (s *Service) EnsureTeam(ctx context.Context, name string) (wrenn.TeamID, error) {
	if err := checkName("team", name); err != nil {
		return "", err
	}
	return s.store.EnsureTeam(ctx, name)
}

func checkName(what, name string) error {
	const most = 100
	if strings.TrimSpace(name) != name || name == "" || len(name) > most || !isText(name) {
		return wrenn.Errorf(wrenn.Invalid, "the name of a %s is 1 to %d characters, without spaces around it", what, most)
	}
	return nil
}

// rows are the store as the reconciler needs it.
type rows struct{ *postgres.Store }

func (r rows) Move(ctx context.Context, row *wrenn.Sandbox, to wrenn.State, reason string) error {
	_, err := r.MoveSandbox(ctx, row, postgres.Move{To: to, Reason: reason, Actor: "reconciler"})
	return err
}

func (r rows) TryLead(ctx context.Context) (reconcile.Lead, error) {
	lead, err := r.Store.TryLead(ctx, "reconcile")
	if lead == nil {
		return nil, err // not a Lead that holds a nil
	}
	return lead, err
}
