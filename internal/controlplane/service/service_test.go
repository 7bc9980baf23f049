package service_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/testkit"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const (
	pingTimeout = testkit.Timeout // a ping takes milliseconds unless the machine is busy
	never       = 24 * time.Hour
)

// world is a database and hosts, for replicas of the control plane.
type world struct {
	url     string
	store   *postgres.Store // of the test
	agents  []*hosttest.Agent
	servers []*hosttest.Server
	caller  service.Caller
}

// newWorld returns a world with a team and a host for each agent: h1, h2, …
func newWorld(t *testing.T, agents ...*hosttest.Agent) *world {
	t.Helper()
	return worldOn(t, pgtest.New(t), agents...)
}

func worldOn(t *testing.T, url string, agents ...*hosttest.Agent) *world {
	t.Helper()
	w := &world{url: url, store: pgtest.Open(t, url), agents: agents}
	for _, agent := range agents {
		server, err := hosttest.Serve(t.Context(), agent)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(server.Stop)
		w.servers = append(w.servers, server)
	}
	w.caller = w.team(t, "team")
	return w
}

func (w *world) team(t *testing.T, name string) service.Caller {
	t.Helper()
	team, err := w.store.EnsureTeam(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return service.Caller{Team: team}
}

func (w *world) config() service.Config {
	cfg := service.Config{ReconcileEvery: never, PingEvery: 20 * time.Millisecond, Deadlines: hostclient.Deadlines{Ping: pingTimeout}}
	for i, server := range w.servers {
		cfg.Hosts = append(cfg.Hosts, service.Host{ID: hostID(i), URL: server.URL()})
	}
	return cfg
}

func hostID(i int) wrenn.HostID { return wrenn.HostID("h" + string(rune('1'+i))) }

// replica runs a service until the test ends, or stop is called.
func (w *world) replica(t *testing.T, change func(*service.Config)) (s *service.Service, stop func()) {
	t.Helper()
	cfg := w.config()
	if change != nil {
		change(&cfg)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	s, err := service.New(cfg, pgtest.Open(t, w.url), log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return s, stop
}

// sql changes rows without the service.
func (w *world) sql(t *testing.T, statement string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), statement, args...); err != nil {
		t.Fatal(err)
	}
}

// dump reads a text without the service.
func (w *world) dump(t *testing.T, query string) (text string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), query).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}

func create(t *testing.T, s *service.Service, c service.Caller) *wrenn.Sandbox {
	t.Helper()
	sb, err := s.CreateSandbox(t.Context(), c, service.CreateSandbox{})
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

// reaches waits until the row is in the state, and returns it.
func (w *world) reaches(t *testing.T, id wrenn.SandboxID, state wrenn.State) *wrenn.Sandbox {
	t.Helper()
	var sb *wrenn.Sandbox
	testkit.WaitUntil(t, string(id)+" is "+string(state), func() bool {
		var err error
		sb, err = w.store.Sandbox(t.Context(), id)
		return err == nil && sb.State == state
	})
	return sb
}

// checkEvents checks that the events of a row are complete: each begins in the state
// in which the one before ended, by an allowed transition, and the row has the state
// of the last one.
func (w *world) checkEvents(t *testing.T, sb *wrenn.Sandbox) {
	t.Helper()
	events, err := w.store.Events(t.Context(), sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	var at wrenn.State
	for i, e := range events {
		same := e.From == e.To && (e.From == wrenn.Starting || e.From == wrenn.Paused || e.From == wrenn.Running) // another host, another timeout
		if e.Version != int64(i+1) || e.From != at || i > 0 && !at.Can(e.To) && !same {
			t.Errorf("%s: event %d is %+v after %q", sb.ID, i, e, at)
		}
		at = e.To
	}
	if at != sb.State {
		t.Errorf("%s: the row is %s, its events end with %q", sb.ID, sb.State, at)
	}
}
