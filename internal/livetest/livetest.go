// Package livetest runs a whole control plane for tests, with a host whose guests are
// processes of this machine: see agenttest. It needs root and PostgreSQL, but no VMM.
package livetest

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/testkit"
)

// Server is where the control plane answers, and a key of a team in it.
type Server struct {
	URL string
	Key string
}

// New starts a control plane that is ready to create sandboxes, of which it can have
// four at a time. Everything goes with the test. The package's tests need pgtest.Main.
func New(t *testing.T) Server {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	agent := agenttest.New(t, agenttest.Config{Log: log, Slots: 4})
	cfg := controlplane.Defaults()
	cfg.Listen, cfg.MetricsListen = "127.0.0.1:0", ""
	cfg.Database.URL = pgtest.New(t)
	cfg.Hosts = []controlplane.Host{{ID: "h1", URL: agent.URL()}}
	cfg.Secrets.KeyFiles = []string{filepath.Join(t.TempDir(), "secrets.key")}
	testkit.Must(t, vault.Create(cfg.Secrets.KeyFiles[0]))
	s := Server{Key: MakeKey(t, cfg, log), URL: "http://" + run(t, cfg, log)}
	api, err := client.New(client.Config{URL: s.URL, Key: s.Key})
	testkit.Must(t, err)
	testkit.WaitNoError(t, "a sandbox can be created", func() error {
		sb, err := api.CreateSandbox(t.Context(), client.CreateSandbox{})
		if err == nil {
			err = api.DeleteSandbox(t.Context(), sb.ID)
		}
		return err
	})
	return s
}

// MakeKey makes a team in the database of cfg, and returns a key of it, which may also do
// what operators do.
func MakeKey(t *testing.T, cfg controlplane.Config, log *slog.Logger) string {
	t.Helper()
	svc, closeStore, err := controlplane.Open(t.Context(), cfg, log)
	testkit.Must(t, err)
	defer closeStore()
	team, err := svc.EnsureTeam(t.Context(), "team")
	testkit.Must(t, err)
	_, key, err := svc.CreateKey(t.Context(), service.Caller{Team: team}, service.NewKey{Name: "key", Scopes: wrenn.OperatorScopes})
	testkit.Must(t, err)
	return key
}

// run starts a control plane, which ends with the test, and returns its address.
func run(t *testing.T, cfg controlplane.Config, log *slog.Logger) string {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended, ready := make(chan error, 1), make(chan controlplane.Addresses, 1)
	go func() { ended <- controlplane.Run(ctx, cfg, log, func(at controlplane.Addresses) { ready <- at }) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case at := <-ready:
		return at.API.String()
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
		return ""
	}
}
