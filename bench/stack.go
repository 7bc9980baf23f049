package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"

	"wrenn/client"
	"wrenn/internal/controlplane/hostclient/hosttest"
	"wrenn/internal/envdclient"
	"wrenn/internal/netns"
	"wrenn/internal/network"
	"wrenn/internal/pgserver"
	"wrenn/internal/rollback"
	"wrenn/internal/vm"
)

const (
	startWait   = 2 * time.Minute // includes the boot of the first guest
	stopWait    = time.Minute
	boxMemoryMB = 512 // the shape that the agent has a snapshot of
)

// stack is Wrenn as it is installed: a database, a control plane and maybe a
// host agent, each a process of its own, so that each can be measured.
type stack struct {
	dir    string
	net    network.Config // of the agent's slots
	db     *pgserver.Server
	agent  *daemon // nil when hosts are simulated
	plane  *daemon
	agents []*hosttest.Agent // simulated
	key    string
	url    string
	api    *client.Client
	gauges string // where the agent's metrics are
	undo   rollback.Stack
}

// hostOf names a host agent to the control plane.
type hostOf struct {
	ID  string `toml:"id"`
	URL string `toml:"url"`
}

// settings are keys of the agent's configuration.
type settings map[string]any

// newStack starts one with a real host agent, whose configuration is what more
// says besides the usual; close it.
func newStack(ctx context.Context, b *bench, more settings) (*stack, error) {
	return started(ctx, b, func(s *stack) ([]hostOf, error) {
		socket, err := s.startAgent(ctx, more)
		return []hostOf{{"here", "unix://" + socket}}, err
	})
}

// started starts a database, what hosts returns, and a control plane that uses them.
func started(ctx context.Context, b *bench, hosts func(*stack) ([]hostOf, error)) (_ *stack, err error) {
	s := &stack{}
	s.net, _ = b.networks()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(ctx))
		}
	}()
	b.stacks++
	s.dir = filepath.Join(b.dir, fmt.Sprintf("s%d", b.stacks)) // short: machines have sockets below it
	if err := os.Mkdir(s.dir, 0o711); err != nil {             // other users go through it
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
func (s *stack) startAgent(ctx context.Context, more settings) (socket string, err error) {
	run := filepath.Join(s.dir, "run")
	socket = filepath.Join(run, "agent.sock")
	metrics, err := freeAddress(ctx)
	if err != nil {
		return "", err
	}
	s.gauges = "http://" + metrics + "/metrics"
	all := settings{
		"state": s.state(), "run": run, "images": "/var/lib/wrenn", "metrics": metrics,
		"limits":  settings{"sandboxes": 1000},
		"network": settings{"prefix": s.net.Prefix, "range": s.net.Range.String()},
		"warm":    settings{"memory_mb": boxMemoryMB},
		"ready":   settings{"machines": 0},
	}
	maps.Copy(all, more)
	config, err := s.write("agent.toml", all)
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
	config, err := s.write("plane.toml", settings{
		"listen": address, "metrics_listen": "",
		"database": settings{"url": s.db.URL("wrenn")},
		"limits":   settings{"sandboxes": 1_000_000, "team_memory_mb": 1 << 40, "requests_per_second": 1e6, "request_burst": 1_000_000},
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

func (s *stack) write(name string, config settings) (path string, err error) {
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

// note is what the agent's journal says of a sandbox that runs.
type note struct {
	Slot    *network.SlotRef
	Machine *vm.Ref
}

func (s *stack) note(id string) (note, error) {
	store, err := s.store()
	if err != nil {
		return note{}, err
	}
	return readNote(store, id)
}

func readNote(store, id string) (note, error) {
	journal, err := os.ReadFile(filepath.Join(store, "sandboxes", id, "sandbox.json"))
	if err != nil {
		return note{}, err
	}
	var of struct{ Body note }
	if err := json.Unmarshal(journal, &of); err != nil {
		return note{}, err
	}
	n := of.Body
	if n.Slot == nil || n.Machine == nil {
		return n, fmt.Errorf("the journal of %s names no slot or no machine: %s", id, journal)
	}
	return n, nil
}

// envd returns a client that goes straight to a sandbox's agent, from inside
// the slot; close it.
func (s *stack) envd(ctx context.Context, box *client.Sandbox) (*envdclient.Client, error) {
	of, err := s.note(box.ID)
	if err != nil {
		return nil, err
	}
	namespace := netns.Path(fmt.Sprintf("%s-%d", s.net.Prefix, of.Slot.Index))
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

// step reads from the agent's metrics how often it took a step so far, and how
// long that took in all, in seconds.
func (s *stack) step(ctx context.Context, name string) (count, sum float64, err error) {
	lines, err := s.metrics(ctx)
	if err != nil {
		return 0, 0, err
	}
	for _, line := range lines {
		for of, into := range map[string]*float64{"count": &count, "sum": &sum} {
			if rest, ok := strings.CutPrefix(line, fmt.Sprintf("wrenn_sandbox_step_seconds_%s{step=%q} ", of, name)); ok {
				if _, err := fmt.Sscan(rest, into); err != nil {
					return 0, 0, err
				}
			}
		}
	}
	return count, sum, nil
}

// metrics are the lines of the agent's.
func (s *stack) metrics(ctx context.Context) ([]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.gauges, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return strings.Split(string(text), "\n"), err
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
