// Package controlplane assembles the control plane from its configuration: the
// database, the use cases, the public API and the metrics.
package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"syscall"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"wrenn.dev"
	"wrenn.dev/internal/acme"
	"wrenn.dev/internal/budget"
	"wrenn.dev/internal/controlplane/admission"
	"wrenn.dev/internal/controlplane/api"
	"wrenn.dev/internal/controlplane/e2b"
	"wrenn.dev/internal/controlplane/gateway"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/controlplane/webhook"
	"wrenn.dev/internal/telemetry"
	"wrenn.dev/internal/tracing"
)

// NewLogger returns a logger to w as cfg configures it.
func NewLogger(w io.Writer, cfg Log) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		return nil, err
	}
	return telemetry.NewLogger(w, telemetry.Log{Level: level, Format: cfg.Format})
}

// Migrate migrates the database's schema to the version of this program. It is safe
// for several processes at once.
func Migrate(ctx context.Context, cfg Config) error {
	return postgres.Migrate(ctx, cfg.Database.URL)
}

// Addresses are the bound addresses of a control plane.
type Addresses struct {
	API, Metrics net.Addr // Metrics is nil without a listener
}

// Run serves until ctx ends, then lets requests in progress end. It calls ready,
// which may be nil, when both addresses are bound; the database and the hosts may
// come later, which GET /ready reports. It does not migrate.
func Run(ctx context.Context, cfg Config, log *slog.Logger, ready func(Addresses)) error {
	listeners, err := listen(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer listeners.close()
	registry := telemetry.NewRegistry()
	traces, err := tracing.Open(ctx, cfg.Traces.Export, tracing.Process{
		Name: "wrenn-control-plane", Sampler: tracing.Sampled(cfg.Traces.Sample), Registry: registry, Log: log,
	})
	if err != nil {
		return err
	}
	defer traces.Close(ctx)
	svc, closeStore, err := open(ctx, cfg, traces.Provider(), log)
	if err != nil {
		return err
	}
	defer closeStore()
	registry.MustRegister(svc.Collector())
	ports, err := gateway.New(gateway.Config{Sandboxes: svc.Ports, Log: log, Metrics: registry, Traces: traces.Provider()})
	if err != nil {
		return err
	}
	door := admission.New(admission.Config{
		Authenticate: svc.Authenticate, AuthenticateSession: svc.AuthenticateSession,
		PerSecond: cfg.Limits.RequestsPerSecond, Burst: cfg.Limits.RequestBurst, Open: cfg.Limits.OpenRequests,
	})
	server, err := api.New(api.Config{
		Service: svc, Admission: door, Log: log, Metrics: registry, Traces: traces.Provider(), Domain: cfg.Domain.url(), ShutdownGrace: cfg.ShutdownGrace.Duration,
	})
	if err != nil {
		return err
	}
	compatible, err := e2b.New(e2b.Config{Service: svc, Domain: cfg.Domain.url(), Admission: door, Log: log, Traces: traces.Provider()})
	if err != nil {
		return err
	}
	memory := limitMemory(ctx, cfg, log)
	server.SetFront(func(api http.Handler) http.Handler { return memory.Handler(ports.InFrontOf(compatible.InFrontOf(api))) })
	if ready != nil {
		ready(listeners.addresses())
	}
	// The service ends after the last request that needs it.
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return svc.Run(work) })
	parts.Go(func() error {
		defer stopWork()
		return server.Run(ctx, listeners.public()...)
	})
	if listeners.acme != nil {
		parts.Go(func() error { return listeners.acme.Run(ctx) })
	}
	if listeners.metrics != nil {
		parts.Go(func() error { return telemetry.Serve(work, listeners.metrics, registry, readyUntil(ctx, svc.Ready)) })
	}
	return parts.Wait()
}

// limitMemory sets the limit of this process, and returns the budget of what requests
// send and receive.
func limitMemory(ctx context.Context, cfg Config, log *slog.Logger) *budget.Budget {
	limit := budget.SetLimit(cfg.MemoryLimitMB)
	log.LogAttrs(ctx, slog.LevelInfo, "memory limit", slog.Int64("mib", limit>>20))
	return budget.New(budget.Share(limit), hostclient.MaxAnswerMemory, "the control plane by memory_limit_mb")
}

// readyUntil returns ready, which fails once stop has ended: a balancer then uses
// other replicas.
func readyUntil(stop context.Context, ready telemetry.Ready) telemetry.Ready {
	return func(ctx context.Context) error {
		if stop.Err() != nil {
			return wrenn.Errorf(wrenn.Unavailable, "the server is stopping")
		}
		return ready(ctx)
	}
}

// Open returns the use cases on the database of cfg, for commands that do not
// serve. The caller closes the store when it is done with the service.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (svc *service.Service, closeStore func(), err error) {
	return open(ctx, cfg, nil, log)
}

func open(ctx context.Context, cfg Config, traces trace.TracerProvider, log *slog.Logger) (svc *service.Service, closeStore func(), err error) {
	hosts, err := cfg.hosts(log)
	if err != nil {
		return nil, nil, err
	}
	keys, err := vault.Load(cfg.Secrets.KeyFiles)
	if err != nil {
		return nil, nil, err
	}
	signs, err := cfg.Fleet.open()
	if err != nil {
		return nil, nil, err
	}
	reviewer, nodes, err := cfg.Fleet.reviewer(os.Getenv)
	if err != nil {
		return nil, nil, err
	}
	store, err := postgres.Open(ctx, postgres.Config{URL: cfg.Database.URL, MaxConns: cfg.Database.MaxConnections})
	if err != nil {
		return nil, nil, err
	}
	svc, err = service.New(service.Config{Hosts: hosts, Traces: traces, KeepEnded: cfg.Database.KeepEnded.Duration, KeepAudit: cfg.Database.KeepAudit.Duration, KeepUsage: cfg.Database.KeepUsage.Duration, StoreRound: cfg.Store.Round.Duration, Vault: keys, Authority: signs, Reviewer: reviewer, Nodes: nodes, Webhooks: service.WebhookConfig{Config: webhook.Config{
		Allow: cfg.Webhooks.AllowAddresses, Deny: cfg.Webhooks.DenyAddresses, PlainHTTP: cfg.Webhooks.PlainHTTP,
	}}, Limits: service.Limits{
		Limits: postgres.Limits{
			Sandboxes: cfg.Limits.Sandboxes, TeamMemoryMB: cfg.Limits.TeamMemoryMB, Templates: cfg.Limits.Templates, Builds: cfg.Limits.Builds,
			Volumes: cfg.Limits.Volumes, TeamVolumeMiB: cfg.Limits.TeamVolumeMiB, Secrets: cfg.Limits.Secrets,
		},
		VCPUs: cfg.Limits.VCPUs, MemoryMB: cfg.Limits.MemoryMB, DiskMB: cfg.Limits.DiskMB,
		RequestsPerSecond: cfg.Limits.RequestsPerSecond, RequestBurst: cfg.Limits.RequestBurst, OpenRequests: cfg.Limits.OpenRequests,
	}}, store, log)
	if err != nil {
		store.Close()
		return nil, nil, err
	}
	return svc, store.Close, nil
}

// listeners are bound before anything starts, so that a port in use is an error of Run.
type listeners struct {
	api, metrics net.Listener   // metrics may be nil
	domain       []net.Listener // may be empty
	acme         *acme.Source   // gets the certificate of domain; may be nil
}

func listen(ctx context.Context, cfg Config, log *slog.Logger) (*listeners, error) {
	l := &listeners{}
	var err error
	if l.api, err = listenTLS(ctx, cfg.Listen, cfg.TLS, log); err != nil {
		return nil, fmt.Errorf("serve the API: %w", err)
	}
	if cfg.Domain.Listen != "" {
		if err = l.listenDomain(ctx, cfg.Domain, log); err != nil {
			l.close()
			return nil, fmt.Errorf("serve the domain %s: %w", cfg.Domain.Name, err)
		}
	}
	if cfg.MetricsListen == "" {
		return l, nil
	}
	if l.metrics, err = new(net.ListenConfig).Listen(ctx, "tcp", cfg.MetricsListen); err != nil {
		l.close()
		return nil, fmt.Errorf("serve the metrics: %w", err)
	}
	return l, nil
}

// listenDomain listens for the domain. At localhost it serves both loopback
// addresses, because resolvers return both for names below localhost, and some
// clients try the first one alone.
func (l *listeners) listenDomain(ctx context.Context, d Domain, log *slog.Logger) error {
	addresses := []string{d.Listen}
	if host, port, _ := net.SplitHostPort(d.Listen); host == "localhost" { // was checked
		addresses = []string{net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("::1", port)}
	}
	certificate, err := l.certificate(d, log)
	if err != nil {
		return err
	}
	for i, address := range addresses {
		one, err := listenWith(ctx, address, certificate)
		if err != nil && i > 0 && errors.Is(err, syscall.EADDRNOTAVAIL) {
			continue // a machine without IPv6
		}
		if err != nil {
			return err
		}
		l.domain = append(l.domain, one)
	}
	return nil
}

// certificate returns the domain's certificate for each handshake.
func (l *listeners) certificate(d Domain, log *slog.Logger) (getCertificate, error) {
	if !d.ACME.Enabled() {
		return d.getCertificate(log)
	}
	domain, err := wrenn.ParseDomain(d.Name)
	if err != nil {
		return nil, err
	}
	if l.acme, err = acme.Open(d.ACME, domain.Name, log); err != nil {
		return nil, fmt.Errorf("acme: %w", err)
	}
	return l.acme.Certificate, nil
}

// getCertificate is that of a tls.Config.
type getCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// getCertificate returns nil if the pair is not set.
func (c *Certificate) getCertificate(log *slog.Logger) (getCertificate, error) {
	identity, err := c.open("", log)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	if identity == nil {
		return nil, nil //nolint:nilnil // not set is no error
	}
	return identity.Certificate, nil
}

func listenTLS(ctx context.Context, address string, with Certificate, log *slog.Logger) (net.Listener, error) {
	certificate, err := with.getCertificate(log)
	if err != nil {
		return nil, err
	}
	return listenWith(ctx, address, certificate)
}

// listenWith listens with the certificate, without TLS if it is nil. Clients of
// WebSockets ask for HTTP/1.1, all others may have HTTP/2.
func listenWith(ctx context.Context, address string, certificate getCertificate) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil || certificate == nil {
		return l, err
	}
	return tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certificate, NextProtos: []string{"h2", "http/1.1"}}), nil
}

// public are the listeners for clients.
func (l *listeners) public() []net.Listener { return append([]net.Listener{l.api}, l.domain...) }

func (l *listeners) addresses() Addresses {
	a := Addresses{API: l.api.Addr()}
	if l.metrics != nil {
		a.Metrics = l.metrics.Addr()
	}
	return a
}

func (l *listeners) close() {
	_ = l.api.Close()
	for _, one := range l.domain {
		_ = one.Close()
	}
	if l.metrics != nil {
		_ = l.metrics.Close()
	}
}
