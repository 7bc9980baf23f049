package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/host/sandbox/fakeguest"
	"wrenn.dev/internal/host/server"
	templates "wrenn.dev/internal/host/template"
	"wrenn.dev/internal/image"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/vmfake"
	"wrenn.dev/internal/volume"
)

// fakeHostCommand is the argument with which this program is a host agent whose
// machines are not virtual: an emulated guest would be slower than all that is before
// it, and hide what that costs. The slots, their cards and the agent in the guest are real.
const fakeHostCommand = "fake-host"

// fakeHost is the configuration of that agent.
type fakeHost struct {
	Dir     string // for state, and sockets below run
	Network network.Config
}

func (f *fakeHost) socket() string { return filepath.Join(f.Dir, "run", "agent.sock") }
func (f *fakeHost) image() string  { return filepath.Join(f.Dir, "image") }

// startFakeHost starts the agent in its own process and returns its socket.
func (s *stack) startFakeHost(ctx context.Context) (socket string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	host := fakeHost{Dir: s.dir, Network: network.Config{Prefix: s.net.Prefix, Range: s.net.Range, Max: 2}}
	config, err := json.Marshal(host)
	if err != nil {
		return "", err
	}
	if s.agent, err = s.start(self, fakeHostCommand, string(config)); err != nil {
		return "", err
	}
	return host.socket(), s.agent.wait(ctx, func(ctx context.Context) error { return answersAt(ctx, host.socket()) })
}

func answersAt(ctx context.Context, socket string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return conn.Close()
}

// serveFakeHost is the agent's process.
func serveFakeHost(config string) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	f := &fakeHost{}
	if err := json.Unmarshal([]byte(config), f); err != nil {
		return err
	}
	undo := &rollback.Stack{}
	defer func() { err = errors.Join(err, undo.Run(context.WithoutCancel(ctx))) }()
	if err := f.prepare(undo); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	manager, err := f.open(ctx, undo, log)
	if err != nil {
		return err
	}
	return f.serve(ctx, manager, log)
}

// prepare makes what a host has before its agent starts.
func (f *fakeHost) prepare(undo *rollback.Stack) (err error) {
	name := f.Network.Prefix + "host"
	if f.Network.HostNamespace, err = netns.Create(name); err != nil {
		return err
	}
	undo.Add(func(context.Context) error { return netns.Delete(name) })
	f.Network.RunDir = filepath.Join(f.Dir, "run")
	bin := filepath.Join(f.Dir, "bin")
	for _, dir := range []string{f.Network.RunDir, bin} {
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the programs of guests run as other users
			return err
		}
	}
	// Guests find a sync that does not write the disks of this machine.
	if err := os.WriteFile(filepath.Join(bin, "sync"), []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil { //nolint:gosec // to be run
		return err
	}
	return errors.Join(os.Setenv("PATH", bin+":"+os.Getenv("PATH")), os.WriteFile(f.image(), []byte("image"), 0o600))
}

func (f *fakeHost) open(ctx context.Context, undo *rollback.Stack, log *slog.Logger) (*sandbox.Manager, error) {
	f.Network.Log = log
	pool, err := network.Open(ctx, f.Network)
	if err != nil {
		return nil, err
	}
	undo.Add(pool.Close)
	volumes, err := volume.Open(filepath.Join(f.Dir, "state", "volumes"))
	if err != nil {
		return nil, err
	}
	world := &vmfake.World{Boot: func(g *vmfake.Guest) (func(), error) {
		spec, err := g.Spec()
		if err != nil {
			return nil, err
		}
		return fakeguest.Boot(fakeguest.Config{Slot: spec.Net.Namespace, Log: log})
	}}
	manager, err := sandbox.Open(ctx, sandbox.Config{
		StateDir: filepath.Join(f.Dir, "state"), RunDir: f.Network.RunDir, ReadyTimeout: time.Minute, Log: log, Slots: pool, Volumes: volumes,
		Driver: vmfake.New(vmfake.Config{World: world}), Guest: sandbox.Guest{RootFS: f.image(), Kernel: vm.Kernel{Image: f.image()}},
	})
	if err != nil {
		return nil, err
	}
	undo.AddFunc(manager.Close)
	undo.Add(manager.DestroyAll)
	return manager, pool.Sweep(ctx)
}

func (f *fakeHost) serve(ctx context.Context, manager *sandbox.Manager, log *slog.Logger) error {
	l, err := server.Listen{Address: "unix:" + f.socket()}.Open(ctx, log)
	if err != nil {
		return err
	}
	builder, err := templates.New(templates.Config{
		Manager: manager, Store: &storage.Store{Dir: filepath.Join(f.Dir, "state")}, Images: image.Config{StateDir: f.Dir},
		Kernel: vm.Kernel{Image: f.image()}, Log: log,
	})
	if err != nil {
		return err
	}
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return manager.Run(ctx) })
	parts.Go(func() error {
		return server.Serve(ctx, server.Config{Manager: manager, Templates: builder, Driver: vmfake.Name, Version: "bench", Log: log}, l)
	})
	return parts.Wait()
}
