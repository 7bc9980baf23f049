package fakehost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/host/sandbox/fakeguest"
	"wrenn.dev/internal/host/server"
	"wrenn.dev/internal/host/template"
	"wrenn.dev/internal/image"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/vmproc"
	"wrenn.dev/internal/volume"
)

// The environment variables with which a program is a host agent or a machine.
const (
	agentVariable   = "WRENN_FAKE_HOST"
	machineVariable = "WRENN_FAKE_MACHINE"
)

// Part returns what this process does if a Host or an agent started it. Programs that
// make hosts call it first.
func Part() (part func(context.Context, []string) error, ok bool) {
	if text := os.Getenv(agentVariable); text != "" {
		return func(ctx context.Context, _ []string) error { return serveAgent(ctx, text) }, true
	}
	if os.Getenv(machineVariable) != "" {
		return func(ctx context.Context, _ []string) error { return serveMachine(ctx) }, true
	}
	return nil, false
}

// keeperFD is the descriptor of a machine that is readable when the program that made
// the host has ended.
const keeperFD = 3

// serveMachine is the process of a machine.
func serveMachine(ctx context.Context) error {
	if err := vmproc.Enter(); err != nil {
		return err
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	go func() {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: keeperFD, Events: unix.POLLIN}}, -1)
			if n == 1 || !errors.Is(err, unix.EINTR) { // the keeper has ended
				end()
				return
			}
		}
	}()
	return fakeguest.Serve(ctx, slog.New(slog.DiscardHandler))
}

// serveAgent is the process of an agent.
func serveAgent(ctx context.Context, text string) error {
	var cfg Config
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.LogLevel})).With(slog.String("host", cfg.Network.Prefix))
	return (&agent{cfg: cfg}).run(ctx)
}

// agent is a host agent.
type agent struct {
	cfg       Config
	undo      rollback.Stack
	driver    vm.Driver
	pool      *network.Pool
	volumes   *volume.Store
	manager   *sandbox.Manager
	templates *template.Builder
}

func (a *agent) run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.undo.Run(ctx)) }()
	for _, step := range []func(context.Context) error{a.openSlots, a.openManager, a.openTemplates} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return a.serve(ctx)
}

func (a *agent) openSlots(ctx context.Context) (err error) {
	a.cfg.Network.Log = a.cfg.Log
	if a.pool, err = network.Open(ctx, a.cfg.Network); err != nil {
		return err
	}
	a.undo.Add(a.pool.Close)
	a.volumes, err = volume.Open(filepath.Join(a.cfg.stateDir(), "volumes"))
	return err
}

func (a *agent) openManager(ctx context.Context) error {
	if err := a.openDriver(); err != nil {
		return err
	}
	store, err := a.objects()
	if err != nil {
		return err
	}
	a.manager, err = sandbox.Open(ctx, sandbox.Config{
		StateDir: a.cfg.stateDir(), RunDir: a.cfg.Network.RunDir, ReadyTimeout: time.Minute, Log: a.cfg.Log, Adopt: true, Limits: a.cfg.Limits,
		Slots: a.pool, Volumes: a.volumes, Driver: a.driver, Objects: store,
		Guest: sandbox.Guest{RootFS: a.cfg.image(), Kernel: vm.Kernel{Image: a.cfg.image()}},
	})
	if err != nil {
		return err
	}
	a.undo.AddFunc(a.manager.Close)
	return a.pool.Sweep(ctx)
}

// openDriver makes the driver, whose machines are processes of this program.
func (a *agent) openDriver() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	keeper, err := unix.PidfdOpen(a.cfg.Keeper, 0)
	if err != nil {
		return fmt.Errorf("the program that made the host: %w", err)
	}
	file := os.NewFile(uintptr(keeper), "keeper")
	a.undo.Add(func(context.Context) error { return file.Close() })
	a.driver = vmproc.New(vmproc.Config{Program: self, Env: []string{machineVariable + "=1"}, Files: []*os.File{file}})
	return nil
}

func (a *agent) objects() (objects.Store, error) {
	if a.cfg.Store == "" {
		return nil, nil //nolint:nilnil // no store
	}
	return objects.Open(a.cfg.Store, a.cfg.Credentials, objects.Policy{})
}

func (a *agent) openTemplates(context.Context) (err error) {
	a.templates, err = template.New(template.Config{
		Manager: a.manager, Store: &storage.Store{Dir: a.cfg.stateDir()}, Images: image.Config{StateDir: a.cfg.stateDir()},
		Kernel: vm.Kernel{Image: a.cfg.image()}, Log: a.cfg.Log,
	})
	return err
}

func (a *agent) serve(ctx context.Context) error {
	l, err := a.cfg.Listen.Open(ctx, a.cfg.Log)
	if err != nil {
		return err
	}
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return a.manager.Run(ctx) })
	parts.Go(func() error {
		return server.Serve(ctx, server.Config{
			Manager: a.manager, Templates: a.templates, Volumes: a.volumes, Driver: vmproc.Name,
			Facts: wrenn.HostFacts{Platform: a.driver.Platform()}, Version: "fake", Log: a.cfg.Log,
		}, l)
	})
	return parts.Wait()
}

// unixSocket returns the path of a socket, if the agent serves on one.
func (c Config) unixSocket() (path string, ok bool) {
	return strings.CutPrefix(c.Listen.Address, "unix:")
}
