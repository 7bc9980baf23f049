// Package up runs all of Wrenn on one machine: a private PostgreSQL, the host
// agent as a child process, and the control plane in this one. It starts them
// in this order, waits for each, and stops them in the other.
package up

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"wrenn"
	"wrenn/internal/controlplane"
	"wrenn/internal/controlplane/service"
	"wrenn/internal/pgserver"
	"wrenn/internal/rollback"
)

const (
	database    = "wrenn"
	hostID      = "local"
	stopTimeout = time.Minute // of each part
	atOnce      = 8           // sandboxes that are destroyed at the same time
	readyPoll   = 20 * time.Millisecond
)

// Config says what to run. StateDir, RunDir, Listen, Agent and Team are needed.
type Config struct {
	StateDir string // everything that must survive; others may enter, so that the database's user can
	RunDir   string // sockets; short
	Listen   string // of the public API
	Metrics  string // of the control plane; "" is nowhere
	// DatabaseURL is a server of the caller; "" starts a private one.
	DatabaseURL string
	Agent       AgentConfig
	Team        string // whose keys Key makes
	// Destroy ends all sandboxes at the stop. Otherwise they keep running, without an agent that
	// ends them in time, until the next start.
	Destroy bool
	Say     func(line string) // progress, for people; also called by several at a time
	Log     io.Writer         // what the control plane logs besides its file; nil is nothing
}

// Running is what Run started.
type Running struct {
	URL string

	cfg     controlplane.Config
	team    string
	lentKey string // path of the record
	log     *slog.Logger
}

// Key returns old when it is a key of the team that works, else a new one.
func (r *Running) Key(ctx context.Context, old, name string) (secret string, err error) {
	err = r.withService(ctx, func(svc *service.Service, team wrenn.TeamID) error {
		if caller, err := svc.Authenticate(ctx, old); err == nil && caller.Team == team {
			secret = old
			return nil
		}
		_, secret, err = svc.CreateKey(ctx, service.Caller{Team: team}, name)
		return err
	})
	return secret, err
}

// withService lends the use cases to what has no key.
func (r *Running) withService(ctx context.Context, do func(*service.Service, wrenn.TeamID) error) error {
	cfg := r.cfg
	cfg.Hosts = nil // the control plane talks to them
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

// machine is a run of Run.
type machine struct {
	cfg    Config
	cp     controlplane.Config
	log    *slog.Logger
	fail   context.CancelCauseFunc // a part ended that nobody stopped
	undo   rollback.Stack
	at     net.Addr
	socket string // of the agent
}

// Run starts everything, calls ready, and serves until ctx ends or a part
// fails. Everything that it started is gone when it returns, sandboxes only
// when that was asked for.
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
		m.lock, m.checkListen, m.prepare, m.startDatabase, m.migrate, m.awaitEarlierAgent, m.startAgent, m.startControlPlane, m.returnLoan,
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

// whyEnded is why Run ends: because a part failed, because it was told to,
// which is no error, or because of err.
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
		at = net.JoinHostPort("127.0.0.1", strconv.Itoa(tcp.Port)) // "everywhere" is nowhere to connect to
	}
	return &Running{URL: "http://" + at, cfg: m.cp, team: m.cfg.Team, lentKey: filepath.Join(m.cfg.StateDir, lentKeyFile), log: m.log}
}

// checkListen finds a taken port before anything is started.
func (m *machine) checkListen(ctx context.Context) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", m.cfg.Listen)
	if err != nil {
		return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the API cannot be served there, give another address by --listen", Err: err}
	}
	if tcp, ok := l.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		m.cfg.Say("API keys travel in the clear to " + m.cfg.Listen + ": put a proxy with TLS in front, and listen on 127.0.0.1")
	}
	return l.Close()
}

// prepare makes the directories and the log.
func (m *machine) prepare(context.Context) error {
	// x: the database's user and the machines' go through these to what is theirs.
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

// startDatabase starts the private server, or takes the caller's.
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

// keepDatabase starts the server again when it ends by itself, which costs
// the requests of that moment and no sandbox, and stops it when ctx ends. One
// that cannot be started again has its reason in the error.
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
			return nil // it was to stop, and does not run
		}
		if err != nil {
			return err
		}
		server = next
	}
}

// reachable says whether other users may go through dir: the database's has to.
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

// startAgent returns when the agent takes requests.
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

// startControlPlane returns when the API takes requests.
func (m *machine) startControlPlane(ctx context.Context) error {
	m.cp.Listen, m.cp.MetricsListen = m.cfg.Listen, m.cfg.Metrics
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

// start runs a part until it is undone. One that ends before ends everything.
func (m *machine) start(name string, run func(context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	var part sync.WaitGroup
	var err error
	part.Go(func() {
		if err = run(ctx); ctx.Err() == nil {
			m.fail(fmt.Errorf("%s: %w", name, cmp.Or(err, errEnded)))
			err = nil // told
		}
	})
	m.undo.Add(func(context.Context) error {
		stop()
		part.Wait()
		return err
	})
}

var errEnded = errors.New("it ended by itself")

// destroySandboxes ends the team's sandboxes. What the control plane cannot end the agent does.
func (m *machine) destroySandboxes(ctx context.Context) {
	m.cfg.Say("destroying the sandboxes")
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := m.running().destroyAll(ctx); err != nil {
		m.log.LogAttrs(ctx, slog.LevelWarn, "not every sandbox was destroyed by the control plane", slog.Any("err", err))
	}
}
