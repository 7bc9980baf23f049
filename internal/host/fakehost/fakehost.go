// Package fakehost makes hosts whose agent is a process that can be killed, and whose
// machines outlive it: they are processes, too, see vmproc. Manager, network slots, RPC,
// snapshot store and the agent in the guest are the real ones. It is for tests and
// benchmarks, and needs root but no VMM.
package fakehost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"wrenn.dev/internal/child"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/host/server"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/network"
)

// Config says what a host is like. Dir, Network.Prefix, Network.Range, Network.Max and
// Listen are needed; New sets the rest of Network.
type Config struct {
	Dir     string // empty, for state, and for sockets below run; its path is short
	Network network.Config
	Listen  server.Listen
	Limits  sandbox.Limits
	// Store is the URL of a snapshot store, and Credentials the path of its file, see
	// objects.Open. "" is none.
	Store, Credentials string
	LogLevel           slog.Level
	// Keeper is the PID of the process with which machines end. New sets it.
	Keeper int
	// Output gets the agent's log.
	Output io.Writer    `json:"-"`
	Log    *slog.Logger `json:"-"` // of the agent's process
}

func (c Config) stateDir() string { return filepath.Join(c.Dir, "state") }
func (c Config) image() string    { return filepath.Join(c.Dir, "image") }

// DiskBytes is the size of the disk of a machine, and ImageText what a new one begins
// with; the rest is zeros.
const (
	DiskBytes = 4 << 20
	ImageText = "image"
)

// Host is a host and, between Start and Kill or Stop, its agent. Close it.
type Host struct {
	cfg   Config
	agent *child.Process
}

// New makes a host without an agent. The program that calls it must be able to be an
// agent and a machine, see Part.
func New(cfg Config) (*Host, error) {
	cfg.Keeper = os.Getpid()
	cfg.Network.RunDir = filepath.Join(cfg.Dir, "run")
	for _, dir := range []string{cfg.Network.RunDir, cfg.stateDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // machines may run as other users
			return nil, err
		}
	}
	err := errors.Join(os.WriteFile(cfg.image(), []byte(ImageText), 0o600), os.Truncate(cfg.image(), DiskBytes))
	if err != nil {
		return nil, err
	}
	cfg.Network.HostNamespace, err = netns.Create(cfg.Network.Prefix + "host")
	return &Host{cfg: cfg}, err
}

// RunDir is that of the agent, for sockets.
func (h *Host) RunDir() string { return h.cfg.Network.RunDir }

// StateDir is that of the agent.
func (h *Host) StateDir() string { return h.cfg.stateDir() }

// Journals returns the paths of the journals of sandboxes.
func (h *Host) Journals() ([]string, error) {
	return filepath.Glob(filepath.Join(h.cfg.stateDir(), "sandboxes", "*", "sandbox.json"))
}

// Slots returns the names of the network slots.
func (h *Host) Slots() ([]string, error) { return netns.List(h.cfg.Network.Prefix + "-") }

// Start starts an agent, which adopts the sandboxes of the last one, and returns when it
// answers.
func (h *Host) Start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	config, err := json.Marshal(h.cfg)
	if err != nil {
		return err
	}
	cmd := exec.Command(self) //nolint:noctx // Kill and Stop end it
	cmd.Env = append(os.Environ(), agentVariable+"="+string(config))
	cmd.Stdout, cmd.Stderr = h.cfg.Output, h.cfg.Output
	if h.agent, err = child.Start(cmd); err != nil {
		return err
	}
	return h.await(ctx)
}

// await returns when the agent answers.
func (h *Host) await(ctx context.Context) error {
	family, address := "tcp", h.cfg.Listen.Address
	if path, ok := h.cfg.unixSocket(); ok {
		family, address = "unix", path
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, family, address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-h.agent.Done():
			return fmt.Errorf("the agent of %s has ended: see its log", h.cfg.Network.Prefix)
		case <-ctx.Done():
			return fmt.Errorf("the agent of %s does not answer: %w", h.cfg.Network.Prefix, err)
		}
	}
}

// Kill ends the agent as a crash does. Its machines run on.
func (h *Host) Kill() error { return h.agent.Kill() }

// Stop ends the agent as an upgrade does. Its machines run on.
func (h *Host) Stop(ctx context.Context) error { return h.agent.Stop(ctx) }

// Signal sends the agent a signal.
func (h *Host) Signal(s os.Signal) error { return h.agent.Signal(s) }

// Machines returns the number of machines that run.
func (h *Host) Machines() (int, error) {
	slots, err := h.Slots()
	if err != nil {
		return 0, err
	}
	var paths []string
	for _, name := range slots {
		paths = append(paths, netns.Path(name))
	}
	found, err := netns.Processes(paths)
	n := 0
	for _, pids := range found {
		n += len(pids)
	}
	return n, err
}

// Close ends the host as a power cut does, agent and machines, and removes its network.
// What is in Dir stays. Twice is allowed.
func (h *Host) Close(ctx context.Context) error {
	var errs []error
	if h.agent != nil {
		errs = append(errs, h.agent.Kill())
	}
	slots, err := h.Slots()
	errs = append(errs, err)
	for _, name := range slots {
		_, err := netns.Kill(ctx, netns.Path(name))
		errs = append(errs, err)
	}
	if _, err := os.Stat(h.cfg.Network.HostNamespace); err == nil {
		errs = append(errs, h.sweep(ctx))
	}
	return errors.Join(append(errs, netns.Delete(h.cfg.Network.Prefix+"host"))...)
}

// sweep removes the slots, in which nothing runs.
func (h *Host) sweep(ctx context.Context) error {
	cfg := h.cfg.Network
	cfg.Log = slog.New(slog.DiscardHandler)
	pool, err := network.Open(ctx, cfg)
	if err != nil {
		return err
	}
	return errors.Join(pool.Sweep(ctx), pool.Close(ctx))
}
