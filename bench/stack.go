package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"

	"wrenn/client"
	"wrenn/internal/envdclient"
	"wrenn/internal/hostclient/hosttest"
	"wrenn/internal/netns"
	"wrenn/internal/network"
	"wrenn/internal/pgserver"
	"wrenn/internal/rollback"
)

const (
	slotPrefix  = "wbe2"
	slotRange   = "10.224.0.0/16"
	startWait   = 2 * time.Minute // includes the boot of the first guest
	stopWait    = time.Minute
	boxMemoryMB = 512 // the shape that the agent has a snapshot of
)

// stack is Wrenn as it is installed: a database, a control plane and maybe a
// host agent, each a process of its own, so that each can be measured.
type stack struct {
	dir     string
	db      *pgserver.Server
	agent   *daemon // nil when hosts are simulated
	plane   *daemon
	agents  []*hosttest.Agent // simulated
	key     string
	url     string
	metrics string // address of the agent's
	api     *client.Client
	undo    rollback.Stack
}

// hostOf names a host agent to the control plane.
type hostOf struct {
	ID  string `toml:"id"`
	URL string `toml:"url"`
}

// newStack starts one with a real host agent; close it.
func newStack(ctx context.Context, b *bench) (*stack, error) { return newStackWith(ctx, b, 0) }

// newStackWith has an agent that makes machines ahead of need.
func newStackWith(ctx context.Context, b *bench, ready int) (*stack, error) {
	return started(ctx, b, func(s *stack) ([]hostOf, error) {
		socket, err := s.startAgent(ctx, ready)
		return []hostOf{{"here", "unix://" + socket}}, err
	})
}

// started starts a database, what hosts returns, and a control plane that uses them.
func started(ctx context.Context, b *bench, hosts func(*stack) ([]hostOf, error)) (_ *stack, err error) {
	s := &stack{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(ctx))
		}
	}()
	if s.dir, err = os.MkdirTemp(b.dir, "s"); err != nil {
		return nil, err
	}
	if err := os.Chmod(s.dir, 0o711); err != nil { // other users go through it
		return nil, err
	}
	s.undo.Add(func(context.Context) error { return os.RemoveAll(s.dir) })
	if s.db, err = pgserver.Start(ctx, pgserver.Config{Dir: filepath.Join(s.dir, "pg"), DieWithParent: true}); err != nil {
		return nil, err
	}
	s.undo.Add(s.db.Stop)
	if err := s.db.EnsureDatabase(ctx, "wrenn"); err != nil {
		return nil, err
	}
	all, err := hosts(s)
	if err != nil {
		return nil, err
	}
	return s, s.startPlane(ctx, all)
}

func (s *stack) close(ctx context.Context) error { return s.undo.Run(ctx) }

// startAgent returns the agent's socket when it answers, which is when it has
// a snapshot to make sandboxes of.
func (s *stack) startAgent(ctx context.Context, ready int) (socket string, err error) {
	if s.metrics, err = freeAddress(ctx); err != nil {
		return "", err
	}
	run := filepath.Join(s.dir, "run")
	socket = filepath.Join(run, "agent.sock")
	config, err := s.write("agent.toml", map[string]any{
		"state": s.state(), "run": run, "images": "/var/lib/wrenn", "metrics": s.metrics,
		"limits":  map[string]any{"sandboxes": 1000},
		"network": map[string]any{"prefix": slotPrefix, "range": slotRange},
		"warm":    map[string]any{"memory_mb": boxMemoryMB},
		"ready":   map[string]any{"machines": ready},
	})
	if err != nil {
		return "", err
	}
	s.agent, err = s.start("bin/host-agent", "serve", "--config", config, "--drain")
	if err != nil {
		return "", err
	}
	return socket, s.agent.wait(ctx, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

func (s *stack) state() string { return filepath.Join(s.dir, "state") }

// startPlane brings the database up to date, makes a key and waits until the
// control plane answers.
func (s *stack) startPlane(ctx context.Context, hosts []hostOf) error {
	address, err := freeAddress(ctx)
	if err != nil {
		return err
	}
	config, err := s.write("plane.toml", map[string]any{
		"listen": address, "metrics_listen": "",
		"database": map[string]any{"url": s.db.URL("wrenn")},
		"limits":   map[string]any{"sandboxes": 1_000_000, "team_memory_mb": 1 << 40, "requests_per_second": 1e6, "request_burst": 1_000_000},
		"host":     hosts,
	})
	if err != nil {
		return err
	}
	if _, err := output(ctx, "bin/control-plane", "--config", config, "migrate"); err != nil {
		return err
	}
	if s.key, err = output(ctx, "bin/control-plane", "--config", config, "key", "bench", "bench"); err != nil {
		return err
	}
	if s.plane, err = s.start("bin/control-plane", "--config", config); err != nil {
		return err
	}
	s.url = "http://" + address
	if s.api, err = s.client(); err != nil {
		return err
	}
	return s.plane.wait(ctx, s.api.Ready)
}

// client returns a client with connections of its own.
func (s *stack) client() (*client.Client, error) {
	return client.New(client.Config{URL: s.url, Key: s.key})
}

// output runs a program and returns what it printed.
func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return strings.TrimSpace(string(out)), nil
}

func (s *stack) write(name string, config map[string]any) (path string, err error) {
	text, err := toml.Marshal(config)
	if err != nil {
		return "", err
	}
	path = filepath.Join(s.dir, name)
	return path, os.WriteFile(path, text, 0o600)
}

// daemon is a process of a stack.
type daemon struct {
	pid  int
	log  string
	done chan struct{} // closed when it has ended
}

// start starts a daemon that the stack's end stops, or ours, however it comes.
func (s *stack) start(name string, args ...string) (*daemon, error) {
	d := &daemon{log: filepath.Join(s.dir, filepath.Base(name)+".log"), done: make(chan struct{})}
	log, err := os.Create(d.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// Not ended by a context: it has sandboxes to give back.
	cmd := exec.Command(name, args...) //nolint:noctx // see above
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	failed := make(chan error, 1)
	go func() {
		defer close(d.done)
		runtime.LockOSThread() // Pdeathsig comes when the thread that forked ends, see prctl(2)
		err := cmd.Start()
		failed <- err
		if err == nil {
			_ = cmd.Wait() // its log says why; who needs it finds it gone
		}
	}()
	if err := <-failed; err != nil {
		return nil, err
	}
	d.pid = cmd.Process.Pid
	s.undo.Add(func(context.Context) error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-d.done:
			return nil
		case <-time.After(stopWait):
			return errors.Join(fmt.Errorf("%s does not stop: see %s", name, d.log), cmd.Process.Kill())
		}
	})
	return d, nil
}

// wait returns when answers is nil; an error has the last words of the daemon.
func (d *daemon) wait(ctx context.Context, answers func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := answers(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
			continue
		case <-d.done:
		case <-ctx.Done():
		}
		words, _ := os.ReadFile(d.log) // better than nothing
		return fmt.Errorf("%w; it said: %s", err, words[max(0, len(words)-2000):])
	}
}

// box makes a sandbox that lives as long as the stack.
func (s *stack) box(ctx context.Context) (*client.Sandbox, error) {
	return s.api.CreateSandbox(ctx, client.CreateSandbox{MemoryMB: boxMemoryMB, Timeout: client.Never})
}

// store is the directory of the agent's disks and snapshots.
func (s *stack) store() (string, error) {
	for _, dir := range []string{filepath.Join(s.state(), "store"), s.state()} {
		if _, err := os.Stat(filepath.Join(dir, "sandboxes")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("the host agent has no store in " + s.state())
}

// envd returns a client that goes straight to a sandbox's agent, from inside
// the slot; close it.
func (s *stack) envd(ctx context.Context, box *client.Sandbox) (*envdclient.Client, error) {
	store, err := s.store()
	if err != nil {
		return nil, err
	}
	journal, err := os.ReadFile(filepath.Join(store, "sandboxes", box.ID, "sandbox.json"))
	if err != nil {
		return nil, err
	}
	var of struct {
		Body struct{ Slot *network.SlotRef }
	}
	if err := json.Unmarshal(journal, &of); err != nil {
		return nil, err
	}
	if of.Body.Slot == nil {
		return nil, fmt.Errorf("the journal of %s names no slot", box.ID)
	}
	namespace := netns.Path(fmt.Sprintf("%s-%d", slotPrefix, of.Body.Slot.Index))
	direct := envdclient.New(envdclient.Config{Address: network.EnvdAddress, Dial: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = netns.Do(namespace, func() error {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}})
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	return direct, direct.WaitReady(ctx, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
}

// pids are those of the control plane and the host agent.
func (s *stack) pids() []int { return []int{s.plane.pid, s.agent.pid} }

// eachMiB reads a figure of the control plane and of the host agent.
func (s *stack) eachMiB(read func(pid int) (float64, error)) (plane, agent float64, err error) {
	plane, err = read(s.plane.pid)
	if err == nil {
		agent, err = read(s.agent.pid)
	}
	return plane, agent, err
}
