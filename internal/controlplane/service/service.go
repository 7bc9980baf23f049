// Package service holds the use cases of the control plane, for callers that
// are authenticated. A use case writes the desired state into the database,
// asks the host, and writes the result. Each type is one part of the public API
// and is declared there as an interface, see package api; they share a core.
//
// A replica keeps no state that another would miss: any number of them work on
// one database, because every change of a row is a compare-and-set and every
// call to a host may be repeated. Work that a caller leaves half done by hanging
// up is undone or finished under a detached context.
package service

import (
	"cmp"
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/authority"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/reconcile"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/controlplane/webhook"
)

// Config lists the hosts and bounds what teams may use. Zero values are the
// defaults.
type Config struct {
	Hosts     []Host
	Limits    Limits
	Deadlines hostclient.Deadlines
	Traces    trace.TracerProvider // of calls to hosts; nil makes no spans
	// ReconcileEvery is how often rows and hosts are compared; default 30 s.
	ReconcileEvery time.Duration
	// PingEvery is the mean time between two pings of a host; default 10 s.
	PingEvery time.Duration
	// FlushEvery is how often the times of last use are written; default 10 s.
	FlushEvery time.Duration
	// KeepEnded is how long rows of ended sandboxes are kept; 0 is for good.
	KeepEnded time.Duration
	// KeepAudit is how long entries of the audit log are kept; 0 is for good.
	KeepAudit time.Duration
	// KeepUsage is how long the use of teams is kept; 0 is for good.
	KeepUsage time.Duration
	// StoreRound is the length of a round of uploads to the snapshot store; 0 begins none,
	// and deletes nothing from it.
	StoreRound time.Duration
	// Authority signs the certificates of hosts that join; without one none can.
	Authority *authority.Authority
	// Reviewer lets hosts join by a service account of Kubernetes; nil lets none.
	Reviewer TokenReviewer
	// Nodes has hosts that are nodes of Kubernetes follow them, looking every NodesEvery
	// (default 15 s); nil has not.
	Nodes      NodeReader
	NodesEvery time.Duration
	// Vault has the keys of secrets; without keys none are kept.
	Vault *vault.Vault
	// Webhooks says where events are sent to.
	Webhooks WebhookConfig
}

func (c Config) withDefaults() Config {
	c.Limits = c.Limits.withDefaults()
	c.Deadlines = c.Deadlines.WithDefaults()
	c.Vault = cmp.Or(c.Vault, &vault.Vault{})
	c.PingEvery = cmp.Or(c.PingEvery, 10*time.Second)
	c.FlushEvery = cmp.Or(c.FlushEvery, 10*time.Second)
	c.ReconcileEvery = cmp.Or(c.ReconcileEvery, 30*time.Second)
	c.NodesEvery = cmp.Or(c.NodesEvery, lookAtNodes)
	c.Webhooks = c.Webhooks.withDefaults()
	return c
}

// Host is a machine that runs sandboxes.
type Host struct {
	ID  wrenn.HostID
	URL string             // http://, https:// or unix:///path
	TLS func() *tls.Config // for https, see hostclient.Config
}

// Caller is the client behind a request, as Authenticate found it.
type Caller struct {
	Team wrenn.TeamID
	Key  string // the id of the key; "" is the system

	// Scopes are what the key may be used for. Those who answer requests check them.
	Scopes wrenn.Scopes
}

// actor is the caller in events.
func (c Caller) actor() string {
	if c.Key == "" {
		return actorSystem
	}
	return "key:" + c.Key
}

// Actors in events that are no callers.
const (
	actorSystem     = "system"
	actorOperator   = "operator"
	actorReconciler = "reconciler"
)

// Service is the control plane: all use cases, and the work in the background.
// It is safe for concurrent use.
type Service struct {
	*Sandboxes
	*Snapshots
	*Commands
	*Files
	*Templates
	*Volumes
	*VolumeFiles
	*Secrets
	*Networks
	*Webhooks
	*Keys
	*Ports
	*Audit
	*Accounts
	*HostAdmin
	*Operator

	core                  *core
	builder               *builder
	templates             *templateReconciler
	volumes               *volumeReconciler
	drainer               *drainer
	nodes                 *nodeFollower
	collector             *storeCollector
	flushing              *flusher
	deliverer             *deliverer
	retention, oldEntries *retention
	oldDeliveries         *retention
	usage                 *usageCounter
	oldUsage              *retention
}

// New returns a service over a database that is migrated. It does not wait
// for hosts. Run must run for sandboxes to be made.
func New(cfg Config, store *postgres.Store, log *slog.Logger) (*Service, error) {
	cfg = cfg.withDefaults()
	hosts, err := newFleet(cfg, store, log)
	if err != nil {
		return nil, err
	}
	reconciler := reconcile.New(reconcile.Config{
		Store: rows{store}, Hosts: hosts.reachable, Every: cfg.ReconcileEvery, Grace: grace(cfg.Deadlines), Log: log,
	})
	hosts.changed = reconciler.Notify
	c := &core{
		limits: cfg.Limits, deadlines: cfg.Deadlines, store: store, hosts: hosts, reconciler: reconciler,
		released: newReleaseQueue(), used: &uses[wrenn.SandboxID]{}, tokens: &accessTokens{store: store}, vault: cfg.Vault, log: log,
	}
	hosts.secrets = c.headerSecrets
	builds := make(chan *buildJob)
	keys := newKeys(store)
	hooks := &Webhooks{core: c, sender: webhook.New(cfg.Webhooks.Config)}
	admin := &HostAdmin{core: c, joins: joinLimit(), reviewer: cfg.Reviewer}
	return &Service{
		Sandboxes: &Sandboxes{c}, Snapshots: &Snapshots{c}, Commands: &Commands{c}, Files: &Files{c},
		Templates: &Templates{core: c, builds: builds}, Volumes: &Volumes{c}, VolumeFiles: &VolumeFiles{c}, Secrets: &Secrets{c}, Networks: &Networks{c}, Webhooks: hooks, Keys: keys, Ports: newPorts(c), Audit: newAudit(store, log), Accounts: &Accounts{c}, HostAdmin: admin, Operator: &Operator{c},
		core: c, builder: &builder{core: c, builds: builds},
		templates:     &templateReconciler{core: c, every: cfg.ReconcileEvery, reported: map[wrenn.BuildID]bool{}},
		volumes:       &volumeReconciler{core: c, every: cfg.ReconcileEvery},
		drainer:       newDrainer(c),
		nodes:         &nodeFollower{HostAdmin: admin, nodes: cfg.Nodes, every: cfg.NodesEvery},
		collector:     &storeCollector{core: c, every: cfg.StoreRound},
		flushing:      &flusher{store: store, sandboxes: c.used, keys: &keys.used, every: cfg.FlushEvery, log: log},
		retention:     &retention{what: "rows of sandboxes that ended long ago", drop: store.DropEnded, keep: cfg.KeepEnded, every: retentionEvery, log: log},
		deliverer:     newDeliverer(hooks, cfg.Webhooks),
		oldDeliveries: &retention{what: "old deliveries of webhooks", drop: store.DropDeliveries, keep: keepDeliveries, every: retentionEvery, log: log},
		oldEntries:    &retention{what: "old entries of the audit log", drop: store.DropAuditEntries, keep: cfg.KeepAudit, every: retentionEvery, log: log},
		usage:         &usageCounter{store: store, log: log},
		oldUsage:      &retention{what: "use of teams long ago", drop: store.DropUsage, keep: cfg.KeepUsage, every: retentionEvery, log: log},
	}, nil
}

// settleSlack is for a row's changes before and after a call to a host.
const settleSlack = 2*rowTimeout + 10*time.Second

// grace is longer than the longest time that this service takes. It is for rows
// whose worker is connected and does not finish them: rows whose worker is gone
// or has released them do not wait.
func grace(d hostclient.Deadlines) reconcile.Grace {
	return reconcile.Grace{
		Pending: settleSlack, Starting: d.Create + d.Destroy + settleSlack,
		PausingOrResuming: d.Pause + settleSlack, Stopping: d.Destroy + settleSlack,
	}
}

// Run registers this replica as alive, pings the hosts, reconciles, builds
// templates and writes what was batched. It returns when ctx has ended and all
// of that has stopped.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, part := range []func(context.Context) error{
		s.core.registerWorker, s.core.writeReleases, s.core.hosts.run, s.core.reconciler.Run,
		s.flushing.run, s.builder.run, s.templates.run, s.volumes.run, s.drainer.run, s.nodes.run, s.collector.run, s.runAudit, s.retention.run, s.oldEntries.run, s.oldUsage.run, s.usage.run, s.runReseal,
		s.deliverer.run, s.deliverer.runCrowded, s.oldDeliveries.run,
	} {
		g.Go(func() error { return part(ctx) })
	}
	return g.Wait()
}

// Ready returns nil if requests can be served: Unavailable when the database
// cannot be reached or has an older schema.
func (s *Service) Ready(ctx context.Context) error { return s.core.store.Ready(ctx) }

// Collector returns the metrics of the hosts. Those of unknown sandboxes come
// from the replica that reconciles; the others show none.
func (s *Service) Collector() prometheus.Collector {
	return newCollector(s.core.hosts, s.core.reconciler, s.collector)
}

// rows are the store as the reconciler needs it.
type rows struct{ *postgres.Store }

func (r rows) Move(ctx context.Context, row *wrenn.Sandbox, to wrenn.State, reason string, cause wrenn.EndCause) error {
	_, err := r.MoveSandbox(ctx, row, postgres.Move{To: to, Reason: reason, Cause: cause, Actor: actorReconciler})
	return err
}

func (r rows) SetUnresponsive(ctx context.Context, row *wrenn.Sandbox, u *wrenn.Unresponsive) error {
	_, err := r.Store.SetUnresponsive(ctx, row, u, actorReconciler)
	return err
}

func (r rows) SetEpoch(ctx context.Context, row *wrenn.Sandbox, epoch wrenn.Epoch) error {
	_, err := r.Store.SetEpoch(ctx, row, epoch, actorReconciler)
	return err
}

func (r rows) SetStored(ctx context.Context, row *wrenn.Sandbox, stored wrenn.Stored) error {
	_, err := r.Store.SetStored(ctx, row, stored, actorReconciler)
	return err
}

func (r rows) TryLead(ctx context.Context) (reconcile.Lead, error) {
	lead, err := r.Store.TryLead(ctx, "reconcile")
	if lead == nil {
		return nil, err // not a Lead that holds a nil
	}
	return lead, err
}
