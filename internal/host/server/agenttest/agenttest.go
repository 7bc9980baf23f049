// Package agenttest runs a host agent for tests: the real manager, network slots
// and RPC, with machines of vmfake in which the real guest agent runs. It needs
// root, but no VMM.
package agenttest

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"wrenn.dev"
	"wrenn.dev/internal/budget"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/host/sandbox/testhost"
	"wrenn.dev/internal/host/server"
	"wrenn.dev/internal/host/template"
	"wrenn.dev/internal/image"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/vmfake"
	"wrenn.dev/internal/volume"
)

// Config says what the host is like. The zero value logs to the test's output.
type Config struct {
	Log    *slog.Logger
	Limits sandbox.Limits
	Slots  int // network slots at a time; default 2
	// Hook, if set, is that of vmfake.
	Hook rollback.Hook
	// Registries are those of template.Config.
	Registries template.Registries
	// Memory, if set, is that of server.Config.
	Memory *budget.Budget
	// StateDir, if set, is copied: the host begins with it.
	StateDir string
	// Listen, if set, is where the agent serves instead of its socket.
	Listen server.Listen
	// Traces, if set, is that of server.Config.
	Traces trace.TracerProvider
	// Facts are what the agent says of its host besides.
	Facts wrenn.HostFacts
	// Objects, if set, are the snapshot store.
	Objects objects.Store
}

// Agent is a host and, between Start and Stop, its agent.
type Agent struct {
	Manager   *sandbox.Manager // of the agent that runs
	Templates *template.Builder
	World     *vmfake.World

	cfg        sandbox.Config
	registries template.Registries
	memory     *budget.Budget
	network    network.Config
	socket     string
	listen     server.Listen
	facts      wrenn.HostFacts
	traces     trace.TracerProvider
	stop       func(testing.TB)
}

// New makes a host and starts its agent. Everything goes with the test.
func New(t *testing.T, cfg Config) *Agent {
	t.Helper()
	h := testhost.New(t, testhost.Config{Slots: cfg.Slots, Hook: cfg.Hook, Log: cfg.Log})
	a := &Agent{socket: filepath.Join(h.RunDir, "agent.sock"), registries: cfg.Registries, memory: cfg.Memory, network: h.Network, World: h.World, facts: cfg.Facts, traces: cfg.Traces}
	a.facts.Platform = h.Driver.Platform()
	a.listen = cfg.Listen
	if a.listen.Address == "" {
		a.listen.Address = "unix:" + a.socket
	}
	a.cfg = sandbox.Config{
		StateDir: h.StateDir, RunDir: h.RunDir, ReadyTimeout: time.Minute, Log: h.Log, Adopt: true, Limits: cfg.Limits, Objects: cfg.Objects,
		Driver: h.Driver, Guest: sandbox.Guest{RootFS: h.Image, Kernel: vm.Kernel{Image: h.Image}},
	}
	if cfg.StateDir != "" {
		testkit.Must(t, os.CopyFS(a.cfg.StateDir, os.DirFS(cfg.StateDir)))
	}
	t.Cleanup(func() { a.tearDown(t) })
	a.Start(t)
	return a
}

// URL is where the agent answers, for hostclient, unless Config.Listen is set.
func (a *Agent) URL() string { return "unix://" + a.socket }

// Journal is the path of a sandbox's journal.
func (a *Agent) Journal(id string) string {
	return filepath.Join(a.cfg.StateDir, "sandboxes", id, "sandbox.json")
}

// Start starts the next agent, which adopts the sandboxes of the last one.
func (a *Agent) Start(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background()) // until Stop
	pool, err := network.Open(ctx, a.network)
	testkit.Must(tb, err)
	a.cfg.Slots = pool
	a.cfg.Volumes, err = volume.Open(filepath.Join(a.cfg.StateDir, "volumes"))
	testkit.Must(tb, err)
	a.Manager, err = sandbox.Open(ctx, a.cfg)
	testkit.Must(tb, err)
	testkit.Must(tb, pool.Sweep(ctx))
	l, err := a.listen.Open(ctx, a.cfg.Log)
	testkit.Must(tb, err)
	manager := a.Manager
	a.Templates, err = template.New(template.Config{
		Manager: manager, Store: &storage.Store{Dir: a.cfg.StateDir}, Images: image.Config{StateDir: a.cfg.StateDir},
		Kernel: a.cfg.Guest.Kernel, Registries: a.registries, Log: a.cfg.Log,
	})
	testkit.Must(tb, err)
	ended := make(chan error, 2)
	go func() { ended <- manager.Run(ctx) }()
	go func() {
		ended <- server.Serve(ctx, server.Config{Manager: manager, Templates: a.Templates, Volumes: a.cfg.Volumes, Driver: vmfake.Name, Facts: a.facts, Version: "test", Log: a.cfg.Log, Memory: a.memory, Traces: a.traces}, l)
	}()
	a.stop = func(tb testing.TB) {
		tb.Helper()
		cancel()
		testkit.Must(tb, <-ended)
		testkit.Must(tb, <-ended)
		manager.Close()
		testkit.Must(tb, pool.Close(context.Background()))
	}
}

// Stop ends the agent. Its sandboxes live on. Twice is allowed.
func (a *Agent) Stop(tb testing.TB) {
	tb.Helper()
	if a.stop != nil {
		a.stop(tb)
	}
	a.stop = nil
}

// tearDown ends all machines, also those in quarantine.
func (a *Agent) tearDown(tb testing.TB) {
	tb.Helper()
	a.Stop(tb)
	for _, ref := range a.World.Running() {
		a.World.Kill(ref)
	}
	pool, err := network.Open(context.Background(), a.network)
	testkit.Must(tb, err)
	testkit.Must(tb, pool.Sweep(context.Background()))
	testkit.Must(tb, pool.Close(context.Background()))
}
