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

	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/pgserver"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/vm"
)

const (
	startWait   = 2 * time.Minute // includes the boot of the first guest
	stopWait    = time.Minute
	boxMemoryMB = 512 // the agent has a snapshot of this size
)

// stack is Wrenn as users install it: a database, a control plane and maybe a host
// agent, each in its own process, so that each can be measured.
type stack struct {
	dir    string
	net    network.Config // the agent's network
	db     *pgserver.Server
	agent  *daemon // nil when hosts are simulated
	plane  *daemon
	agents []*hosttest.Agent // simulated agents
	key    string
	url    string
	api    *client.Client
	gauges string // address of the agent's metrics

	planeConfig string   // the path of the control plane's configuration
	configured  []hostOf // the hosts in it

	undo rollback.Stack
}

// hostOf names a host agent to the control plane.
type hostOf struct {
	ID  string `toml:"id"`
	URL string `toml:"url"`
}

// settings are keys of the agent's configuration.
type settings map[string]any

// newStack starts a stack with a real host agent, whose usual configuration is
// extended by more; the caller closes it.
func newStack(ctx context.Context, b *bench, more settings) (*stack, error) {
	return started(ctx, b, func(s *stack) ([]hostOf, error) {
		socket, err := s.startAgent(ctx, more)
		return []hostOf{{"here", "unix://" + socket}}, err
	})
}

// started starts a database, the hosts, and a control plane that uses them.
func started(ctx context.Context, b *bench, hosts func(*stack) ([]hostOf, error)) (_ *stack, err error) {
	s := &stack{}
	s.net, _ = b.networks()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(ctx))
		}
	}()
	b.stacks++
	s.dir = filepath.Join(b.dir, fmt.Sprintf("s%d", b.stacks)) // short, because machines have sockets below it
	if err := os.Mkdir(s.dir, 0o711); err != nil {             // other users pass through it
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

// startAgent starts the agent and returns its socket when it answers, which it does
// when it has a snapshot to create sandboxes from.
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
	return socket, s.agent.wait(ctx, func(ctx context.Context) error { return answersAt(ctx, socket) })
}

func (s *stack) state() string { return filepath.Join(s.dir, "state") }

// startPlane brings the database up to date, makes a key and waits until the
// control plane answers.
func (s *stack) startPlane(ctx context.Context, hosts []hostOf) error {
	address, err := freeAddress(ctx)
	if err != nil {
		return err
	}
	config, err := s.writePlane("plane.toml", address, hosts)
	if err != nil {
		return err
	}
	s.planeConfig, s.configured = config, hosts
	if _, err := output(ctx, "bin/control-plane", "--config", config, "migrate"); err != nil {
		return err
	}
	if s.key, err = output(ctx, "bin/control-plane", "--config", config, "key", "--operator", "bench", "bench"); err != nil {
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

// writePlane writes the configuration of a control plane.
func (s *stack) writePlane(name, address string, hosts []hostOf) (path string, err error) {
	return s.write(name, settings{
		"listen": address, "metrics_listen": "",
		"database": settings{"url": s.db.URL("wrenn")},
		"limits":   settings{"sandboxes": 1_000_000, "team_memory_mb": 1 << 40, "requests_per_second": 1e6, "request_burst": 1_000_000, "open_requests": 1_000_000},
		"host":     hosts,
	})
}

// client returns a client with its own connections.
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
	pid     int
	process *os.Process
	log     string
	done    chan struct{} // closed when it has ended
}

// start starts a daemon, which stops with the stack, and when this process ends for
// any reason.
func (s *stack) start(name string, args ...string) (*daemon, error) {
	d := &daemon{log: filepath.Join(s.dir, filepath.Base(name)+".log"), done: make(chan struct{})}
	log, err := os.Create(d.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// Not stopped by a context, because the agent must first destroy its sandboxes.
	cmd := exec.Command(name, args...) //nolint:noctx // see above
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	failed := make(chan error, 1)
	go func() {
		defer close(d.done)
		runtime.LockOSThread() // Pdeathsig is sent when the thread that forked ends, see prctl(2)
		err := cmd.Start()
		failed <- err
		if err == nil {
			_ = cmd.Wait() // the reason is in its log, which wait prints
		}
	}()
	if err := <-failed; err != nil {
		return nil, err
	}
	d.pid, d.process = cmd.Process.Pid, cmd.Process
	s.undo.Add(d.stop)
	return d, nil
}

// stop ends the daemon in order. Twice is allowed.
func (d *daemon) stop(context.Context) error {
	_ = d.process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-d.done:
		return nil
	case <-time.After(stopWait):
		return errors.Join(fmt.Errorf("a program does not stop: see %s", d.log), d.process.Kill())
	}
}

// wait waits until answers returns nil; its error includes the daemon's last output.
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
		output, _ := os.ReadFile(d.log) // without it the error is still useful
		return fmt.Errorf("%w; its last output: %s", err, output[max(0, len(output)-2000):])
	}
}

// box creates a sandbox, which is destroyed with the stack.
func (s *stack) box(ctx context.Context) (*client.Sandbox, error) {
	return s.api.CreateSandbox(ctx, client.CreateSandbox{MemoryMB: boxMemoryMB, Timeout: client.Never})
}

// store returns the directory of the agent's disks and snapshots.
func (s *stack) store() (string, error) {
	for _, dir := range []string{filepath.Join(s.state(), "store"), s.state()} {
		if _, err := os.Stat(filepath.Join(dir, "sandboxes")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("the host agent has no store in " + s.state())
}

// record has the fields of the agent's journal for a running sandbox.
type record struct {
	Slot    *network.SlotRef
	Machine *vm.Ref

	token string // of the agent in the sandbox
}

func (s *stack) record(id string) (record, error) {
	store, err := s.store()
	if err != nil {
		return record{}, err
	}
	return readRecord(store, id)
}

func readRecord(store, id string) (record, error) {
	journal, err := os.ReadFile(filepath.Join(store, "sandboxes", id, "sandbox.json"))
	if err != nil {
		return record{}, err
	}
	var of struct {
		Instance    record
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(journal, &of); err != nil {
		return record{}, err
	}
	n := of.Instance
	n.token = of.AccessToken
	if n.Slot == nil || n.Machine == nil {
		return n, fmt.Errorf("the journal of %s has no slot or no machine: %s", id, journal)
	}
	return n, nil
}

// envd returns a client that connects directly to a sandbox's agent, from inside
// the slot; the caller closes it.
func (s *stack) envd(ctx context.Context, box *client.Sandbox) (*envdclient.Client, error) {
	of, err := s.record(box.ID)
	if err != nil {
		return nil, err
	}
	namespace := netns.Path(fmt.Sprintf("%s-%d", s.net.Prefix, of.Slot.Index))
	direct := envdclient.New(envdclient.Config{Address: network.EnvdAddress, Token: of.token, Dial: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
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

// step reads from the agent's metrics how often a step ran so far, and how many
// seconds it took in total.
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

// metrics returns the lines of the agent's metrics.
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

// pids returns the process IDs of the control plane and the host agent.
func (s *stack) pids() []int { return []int{s.plane.pid, s.agent.pid} }

// eachMiB returns a figure of the control plane and of the host agent.
func (s *stack) eachMiB(read func(pid int) (float64, error)) (plane, agent float64, err error) {
	plane, err = read(s.plane.pid)
	if err == nil {
		agent, err = read(s.agent.pid)
	}
	return plane, agent, err
}
