// Package up runs all of Wrenn on one machine: a private PostgreSQL, the host
// agent as a child process, and the control plane in this process. It starts them
// in this order, waits for each, and stops them in the reverse order.
package up

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/acme"
	"wrenn.dev/internal/certs"
	"wrenn.dev/internal/controlplane"
	"wrenn.dev/internal/controlplane/authority"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/pgserver"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/tracing"
)

const (
	database    = "wrenn"
	hostID      = "local"
	stopTimeout = time.Minute // for each part
	atOnce      = 8           // sandboxes destroyed at the same time
	readyPoll   = 20 * time.Millisecond
)

// Config is what to run. StateDir, RunDir, Listen, Agent, Team and Say are required.
type Config struct {
	StateDir string // directory of all persistent state; mode 711, so that the database's user can enter
	RunDir   string // directory of sockets; its path must be short
	Listen   string // address of the public API
	// PlainHTTP allows Listen to be reachable from other machines: it has no TLS.
	PlainHTTP bool
	Metrics   string // address of the control plane's metrics; "" means none
	// AgentMetrics is the address of the host agent's metrics; "" means none.
	AgentMetrics string
	// Traces is where the spans of all requests are sent to; without an endpoint nowhere.
	Traces tracing.Export
	// WebhookAllow are addresses at which webhooks are reached, by http, too, although they
	// are not public.
	WebhookAllow []netip.Prefix
	// Domain is where the same is served by TLS and names; the zero value is nowhere.
	Domain wrenn.Domain
	// DomainListen is the address for Domain; "" is its port, of this machine only
	// for a local domain.
	DomainListen string
	// Certificate is that of Domain; without files one of the machine's own authority.
	Certificate certs.Files
	// ACME, unless it is the zero value, gets the certificate. By default its state is
	// in StateDir.
	ACME acme.Config
	// DatabaseURL is a PostgreSQL server of the caller; "" starts a private one.
	DatabaseURL string
	Agent       AgentConfig
	Team        string // the team for which Key makes keys
	// Destroy destroys all sandboxes when Run stops. Otherwise they keep running until the next
	// start; until then no agent enforces their timeouts.
	Destroy bool
	Say     func(line string) // called with lines of progress for the user, also concurrently
	Log     io.Writer         // gets a copy of the control plane's log; may be nil
}

// Running is what Run started.
type Running struct {
	URL    string
	Domain *RunningDomain // nil without one

	cfg     controlplane.Config
	team    string
	lentKey string // path of lentKeyFile
	log     *slog.Logger
}

// RunningDomain is how the domain is served.
type RunningDomain struct {
	wrenn.Domain
	// Authority is the path of the certificate that clients must trust; "" when a
	// public authority has signed the domain's.
	Authority string
}

// Key returns old when it is a valid key of the team that may be used for everything,
// also for hosts, and otherwise a new one.
func (r *Running) Key(ctx context.Context, old, name string) (secret string, err error) {
	err = r.withService(ctx, func(svc *service.Service, team wrenn.TeamID) error {
		if caller, err := svc.Authenticate(ctx, old); err == nil && caller.Team == team && caller.Scopes == wrenn.OperatorScopes {
			secret = old
			return nil
		}
		_, secret, err = svc.CreateKey(ctx, service.Caller{Team: team}, service.NewKey{Name: name, Scopes: wrenn.OperatorScopes})
		return err
	})
	return secret, err
}

// withService calls do with the service itself, for which no key is needed.
func (r *Running) withService(ctx context.Context, do func(*service.Service, wrenn.TeamID) error) error {
	cfg := r.cfg
	cfg.Hosts = nil // only the control plane connects to hosts
	svc, closeStore, err := controlplane.Open(ctx, cfg, r.log)
	if err != nil {
		return err
	}
	defer closeStore()
	team, err := svc.EnsureTeam(ctx, r.team)
	if err != nil {
		return fmt.Errorf("team %s: %w", r.team, err)
	}
	return do(svc, team)
}

// machine is the state of one Run.
type machine struct {
	cfg    Config
	cp     controlplane.Config
	log    *slog.Logger
	fail   context.CancelCauseFunc // called when a part ends that was not stopped
	undo   rollback.Stack
	at     net.Addr
	domain *RunningDomain
	socket string // path of the agent's socket
}

// Run starts everything, calls ready, and serves until ctx ends or a part fails.
// When it returns, everything that it started has stopped; sandboxes only with
// Config.Destroy. The end of ctx is not an error.
func Run(ctx context.Context, cfg Config, ready func(context.Context, *Running) error) (err error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	m := &machine{cfg: cfg, fail: fail, cp: controlplane.Defaults()}
	defer func() {
		if m.log != nil { // else nothing was started
			cfg.Say("stopping")
		}
		err = errors.Join(err, m.undo.Run(context.WithoutCancel(ctx)))
	}()
	for _, step := range []func(context.Context) error{
		m.lock, m.checkListen, m.prepare, m.startDatabase, m.migrate, m.awaitEarlierAgent, m.startAgent, m.openDomain, m.makeKey, m.startControlPlane, m.returnLoan,
	} {
		if err := step(ctx); err != nil {
			return whyEnded(ctx, err)
		}
	}
	if err := ready(ctx, m.running()); err != nil {
		return whyEnded(ctx, err)
	}
	<-ctx.Done()
	if m.cfg.Destroy {
		m.destroySandboxes(context.WithoutCancel(ctx))
	}
	return whyEnded(ctx, nil)
}

// whyEnded returns the error of Run: nil when its context was canceled, the part's
// error when a part failed, and otherwise err.
func whyEnded(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if cause == nil {
		return err
	}
	if errors.Is(cause, context.Canceled) {
		return nil
	}
	return cause
}

func (m *machine) running() *Running {
	at := m.at.String()
	if tcp, ok := m.at.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		at = net.JoinHostPort("127.0.0.1", strconv.Itoa(tcp.Port)) // the unspecified address cannot be connected to
	}
	return &Running{URL: "http://" + at, Domain: m.domain, cfg: m.cp, team: m.cfg.Team, lentKey: filepath.Join(m.cfg.StateDir, lentKeyFile), log: m.log}
}

// checkListen fails when a port is in use, before anything is started.
func (m *machine) checkListen(ctx context.Context) error {
	if m.cfg.Domain.Name != "" {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", m.domainListen())
		if err != nil {
			return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the domain cannot be served there, give another address by --domain-listen", Err: err}
		}
		_ = l.Close() // nothing has connected
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", m.cfg.Listen)
	if err != nil {
		return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the API cannot be served there, give another address by --listen", Err: err}
	}
	if tcp, ok := l.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() && !m.cfg.PlainHTTP {
		return errors.Join(l.Close(), wrenn.Errorf(wrenn.FailedPrecondition,
			"other machines would reach %s without TLS, and API keys would travel unencrypted: listen on 127.0.0.1 and serve others by --domain, or give --plain-http if a proxy in front speaks TLS", m.cfg.Listen))
	}
	return l.Close()
}

// prepare makes the directories and the log.
func (m *machine) prepare(context.Context) error {
	// Mode x for all: the users of the database and of the machines pass through to their own directories.
	for _, dir := range []string{m.cfg.StateDir, m.cfg.RunDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	logs := filepath.Join(m.cfg.StateDir, "logs")
	if err := os.MkdirAll(logs, 0o700); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(logs, "control-plane.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	m.undo.Add(func(context.Context) error { return file.Close() })
	out := io.Writer(file)
	if m.cfg.Log != nil {
		out = io.MultiWriter(file, m.cfg.Log)
	}
	m.log, err = controlplane.NewLogger(out, m.cp.Log)
	return err
}

// startDatabase starts the private server, or uses the caller's.
func (m *machine) startDatabase(ctx context.Context) error {
	m.cp.Database.URL = m.cfg.DatabaseURL
	if m.cfg.DatabaseURL != "" {
		return nil
	}
	m.cfg.Say("starting the database")
	if err := reachable(m.cfg.StateDir); err != nil {
		return err
	}
	cfg := pgserver.Config{Dir: filepath.Join(m.cfg.StateDir, "postgres"), DieWithParent: true}
	server, err := pgserver.Start(ctx, cfg)
	if err != nil {
		return err
	}
	m.start("the database", func(ctx context.Context) error { return m.keepDatabase(ctx, cfg, server) })
	m.cp.Database.URL = server.URL(database)
	return server.EnsureDatabase(ctx, database)
}

// keepDatabase restarts the server when it ends by itself, and stops it when ctx
// ends. While the server is down, requests fail and sandboxes keep running. It
// returns an error when the server cannot be restarted.
func (m *machine) keepDatabase(ctx context.Context, cfg pgserver.Config, server *pgserver.Server) error {
	for {
		select {
		case <-server.Done():
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
			defer cancel()
			return server.Stop(ctx)
		}
		m.cfg.Say("the database ended by itself and is started again; its log is in " + cfg.Dir)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(restartAfter):
		}
		next, err := pgserver.Start(ctx, cfg)
		if err != nil && ctx.Err() != nil {
			return nil // the server was to stop, and is not running
		}
		if err != nil {
			return err
		}
		server = next
	}
}

// reachable returns an error unless other users may enter dir, which the database's user must.
func reachable(dir string) error {
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode()&0o001 == 0 {
			return wrenn.Errorf(wrenn.FailedPrecondition, "the database runs as another user, who may not enter %s: chmod o+x it, or put --state elsewhere", dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

func (m *machine) migrate(ctx context.Context) error {
	if err := controlplane.Migrate(ctx, m.cp); err != nil {
		return fmt.Errorf("bring the database up to date: %w", err)
	}
	return nil
}

// startAgent returns when the agent accepts requests.
func (m *machine) startAgent(ctx context.Context) error {
	m.cfg.Say("starting the host agent")
	a, err := newAgent(m.cfg)
	if err != nil {
		return err
	}
	m.socket = a.socket
	m.start("the host agent", a.run)
	return a.ready(ctx)
}

// makeKey makes the key of the secrets in the database, beside it, and the authority of
// hosts that join, unless they exist.
func (m *machine) makeKey(context.Context) error {
	path := filepath.Join(m.cfg.StateDir, "secrets.key")
	m.cp.Secrets.KeyFiles = []string{path}
	m.cp.Fleet.Authority = filepath.Join(m.cfg.StateDir, "fleet.pem")
	return errors.Join(vault.Create(path), authority.Create(m.cp.Fleet.Authority))
}

// startControlPlane returns when the API accepts requests.
func (m *machine) startControlPlane(ctx context.Context) error {
	m.cp.Listen, m.cp.MetricsListen = m.cfg.Listen, m.cfg.Metrics
	m.cp.Traces = controlplane.Traces{Export: m.cfg.Traces, Sample: 1}
	m.cp.Webhooks.AllowAddresses, m.cp.Webhooks.PlainHTTP = m.cfg.WebhookAllow, len(m.cfg.WebhookAllow) > 0
	m.cp.Hosts = []controlplane.Host{{ID: hostID, URL: "unix://" + m.socket}}
	bound := make(chan controlplane.Addresses, 1)
	m.start("the control plane", func(ctx context.Context) error {
		return controlplane.Run(ctx, m.cp, m.log, func(at controlplane.Addresses) { bound <- at })
	})
	select {
	case at := <-bound:
		m.at = at.API
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// start runs a part until undo stops it. A part that ends earlier makes Run fail.
func (m *machine) start(name string, run func(context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	var part sync.WaitGroup
	var err error
	part.Go(func() {
		if err = run(ctx); ctx.Err() == nil {
			m.fail(fmt.Errorf("%s: %w", name, cmp.Or(err, errEnded)))
			err = nil // reported by m.fail
		}
	})
	m.undo.Add(func(context.Context) error {
		stop()
		part.Wait()
		return err
	})
}

var errEnded = errors.New("it ended by itself")

// destroySandboxes destroys the team's sandboxes. The agent destroys those that the control plane cannot, when it stops.
func (m *machine) destroySandboxes(ctx context.Context) {
	m.cfg.Say("destroying the sandboxes")
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := m.running().destroyAll(ctx); err != nil {
		m.log.LogAttrs(ctx, slog.LevelWarn, "not every sandbox was destroyed by the control plane", slog.Any("err", err))
	}
}
