// Package agenttest runs a host agent for tests: the real manager, network slots
// and RPC, with machines of vmfake in which the real guest agent runs. It needs
// root, but no VMM.
package agenttest

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"wrenn/internal/host/sandbox"
	"wrenn/internal/host/sandbox/fakeguest"
	"wrenn/internal/host/server"
	"wrenn/internal/host/template"
	"wrenn/internal/image"
	"wrenn/internal/netns"
	"wrenn/internal/network"
	"wrenn/internal/storage"
	"wrenn/internal/testkit"
	"wrenn/internal/vm"
	"wrenn/internal/vm/vmfake"
)

// Config says what the host is like. The zero value logs to the test's output.
type Config struct {
	Log    *slog.Logger
	Limits sandbox.Limits
	Slots  int // network slots at a time; default 2
	// Fault, if set, is that of vmfake.
	Fault func(vmfake.Step) error
	// Registries are those of template.Config.
	Registries template.Registries
	// StateDir, if set, is copied: the host begins with it.
	StateDir string
}

// Agent is a host and, between Start and Stop, its agent.
type Agent struct {
	Manager   *sandbox.Manager // of the agent that runs
	Templates *template.Builder
	World     *vmfake.World

	cfg        sandbox.Config
	registries template.Registries
	network    network.Config
	socket     string
	stop       func(testing.TB)
}

var agents atomic.Int32

// New makes a host and starts its agent. Everything goes with the test.
func New(t *testing.T, cfg Config) *Agent {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this needs root")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if cfg.Slots == 0 {
		cfg.Slots = 2
	}
	run := shortDir(t)
	a := &Agent{socket: filepath.Join(run, "agent.sock"), registries: cfg.Registries}
	prefix := fmt.Sprintf("a%05x%02x", os.Getpid()&0xfffff, agents.Add(1)&0xff) // 8 letters, the most that a pool takes
	a.network = network.Config{
		Prefix: prefix, Range: netip.MustParsePrefix("10.221.0.0/24"), Max: cfg.Slots, RunDir: run,
		HostNamespace: namespace(t, prefix+"host"), Log: cfg.Log,
	}
	a.World = &vmfake.World{Boot: func(g *vmfake.Guest) (func(), error) {
		spec, err := g.Spec()
		if err != nil {
			return nil, err
		}
		return fakeguest.Boot(fakeguest.Config{Slot: spec.Net.Namespace, Log: cfg.Log})
	}}
	image := filepath.Join(t.TempDir(), "image")
	testkit.Must(t, os.WriteFile(image, []byte("image"), 0o600))
	a.cfg = sandbox.Config{
		StateDir: t.TempDir(), RunDir: run, ReadyTimeout: time.Minute, Log: cfg.Log, Adopt: true, Limits: cfg.Limits,
		Driver: vmfake.New(vmfake.Config{World: a.World, Hook: cfg.Fault}),
		Guest:  sandbox.Guest{RootFS: image, Kernel: vm.Kernel{Image: image}},
	}
	if cfg.StateDir != "" {
		testkit.Must(t, os.CopyFS(a.cfg.StateDir, os.DirFS(cfg.StateDir)))
	}
	// Guests find a sync that does not write the disks of this machine.
	bin := t.TempDir()
	testkit.Must(t, os.WriteFile(filepath.Join(bin, "sync"), []byte("#!/bin/sh\nexit 0\n"), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Cleanup(func() { a.tearDown(t) })
	a.Start(t)
	return a
}

// URL is where the agent answers, for hostclient.
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
	a.Manager, err = sandbox.Open(ctx, a.cfg)
	testkit.Must(tb, err)
	testkit.Must(tb, pool.Sweep(ctx))
	l, err := server.Listen{Address: "unix:" + a.socket}.Open(ctx, a.cfg.Log)
	testkit.Must(tb, err)
	manager := a.Manager
	a.Templates = template.New(template.Config{
		Manager: manager, Store: &storage.Store{Dir: a.cfg.StateDir}, Images: image.Config{StateDir: a.cfg.StateDir},
		Kernel: a.cfg.Guest.Kernel, Registries: a.registries, Log: a.cfg.Log,
	})
	ended := make(chan error, 2)
	go func() { ended <- manager.Run(ctx) }()
	go func() {
		ended <- server.Serve(ctx, server.Config{Manager: manager, Templates: a.Templates, Driver: vmfake.Name, Version: "test", Log: a.cfg.Log}, l)
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

func namespace(tb testing.TB, name string) string {
	tb.Helper()
	path, err := netns.Create(name)
	testkit.Must(tb, err)
	tb.Cleanup(func() { testkit.Must(tb, netns.Delete(name)) })
	return path
}

func shortDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "ha") //nolint:usetesting // t.TempDir's names are too long for sockets
	testkit.Must(tb, err)
	tb.Cleanup(func() { testkit.Must(tb, os.RemoveAll(dir)) })
	return dir
}
