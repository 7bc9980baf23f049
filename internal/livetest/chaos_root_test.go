//go:build root

package livetest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/livetest"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/run"
	"wrenn.dev/internal/testkit"
)

// planeConfig is the environment variable with which this program is a control plane.
const planeConfig = "WRENN_TEST_CHAOS_PLANE"

const (
	planes  = 2
	agents  = 3
	clients = 3
)

func TestMain(m *testing.M) {
	if raw := os.Getenv(planeConfig); raw != "" {
		run.Main(func(ctx context.Context, _ []string) error { return servePlane(ctx, raw) })
	}
	pgtest.Main(m)
}

// servePlane is the process of a control plane, which raw configures.
func servePlane(ctx context.Context, raw string) error {
	cfg := controlplane.Defaults()
	if err := json.Unmarshal([]byte(raw), &cfg); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return controlplane.Run(ctx, cfg, log, nil)
}

// plane is a control plane in its own process.
type plane struct {
	cfg controlplane.Config
	api *client.Client
	cmd *exec.Cmd
}

func (p *plane) start(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	testkit.Must(t, err)
	raw, err := json.Marshal(p.cfg)
	testkit.Must(t, err)
	p.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), self)
	p.cmd.Env = append(os.Environ(), planeConfig+"="+string(raw))
	p.cmd.Stderr = t.Output()
	testkit.Must(t, p.cmd.Start())
}

// kill ends the process as a crash does.
func (p *plane) kill(t *testing.T) {
	t.Helper()
	testkit.Must(t, p.cmd.Process.Kill())
	_ = p.cmd.Wait() // it was killed
}

// fleet is all that the faults hit.
type fleet struct {
	planes  []*plane
	agents  []*agenttest.Agent
	stopDB  func()
	startDB func()
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	url, stopDB, startDB := pgtest.Server(t)
	f := newFleetOn(t, url)
	f.stopDB, f.startDB = stopDB, startDB
	return f
}

// newFleetOn is newFleet on a database of the caller.
func newFleetOn(t *testing.T, url string) *fleet {
	t.Helper()
	f := &fleet{}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	cfg := controlplane.Defaults()
	cfg.MetricsListen = ""
	cfg.Database.URL = url
	cfg.Secrets.KeyFiles = []string{filepath.Join(t.TempDir(), "secrets.key")}
	testkit.Must(t, vault.Create(cfg.Secrets.KeyFiles[0]))
	for i := range agents {
		a := agenttest.New(t, agenttest.Config{Log: log, Slots: 2 * clients})
		f.agents = append(f.agents, a)
		cfg.Hosts = append(cfg.Hosts, controlplane.Host{ID: fmt.Sprintf("h%d", i+1), URL: a.URL()})
	}
	key := livetest.MakeKey(t, cfg, log)
	for range planes {
		p := &plane{cfg: cfg}
		p.cfg.Listen = testkit.FreeAddress(t)
		api, err := client.New(client.Config{URL: "http://" + p.cfg.Listen, Key: key})
		testkit.Must(t, err)
		p.api = api
		p.start(t)
		t.Cleanup(func() { p.kill(t) })
		f.planes = append(f.planes, p)
	}
	f.ready(t)
	return f
}

// ready waits until every control plane answers and has reached the database.
func (f *fleet) ready(t *testing.T) {
	t.Helper()
	for _, p := range f.planes {
		testkit.WaitNoError(t, "a control plane is ready", func() error { return p.api.Ready(t.Context()) })
	}
}

// fault does one fault, chosen by r, and undoes it.
func (f *fleet) fault(t *testing.T, r *rand.Rand) {
	t.Helper()
	kind, one, lasts := r.IntN(4), r.IntN(planes*agents), time.Duration(r.IntN(2000))*time.Millisecond
	p, a := f.planes[one%planes], f.agents[one%agents]
	switch kind {
	case 0:
		t.Logf("fault: kill control plane %d, start it after %s", one%planes, lasts)
		p.kill(t)
		time.Sleep(lasts) // how long the fault lasts
		p.start(t)
	case 1:
		t.Logf("fault: stop control plane %d for %s by SIGSTOP", one%planes, lasts)
		testkit.Must(t, p.cmd.Process.Signal(syscall.SIGSTOP))
		time.Sleep(lasts) // how long the fault lasts
		testkit.Must(t, p.cmd.Process.Signal(syscall.SIGCONT))
	case 2:
		t.Logf("fault: restart host agent %d after %s", one%agents, lasts)
		a.Stop(t)
		time.Sleep(lasts) // how long the fault lasts
		a.Start(t)
	case 3:
		t.Logf("fault: restart PostgreSQL after %s", lasts)
		f.stopDB()
		time.Sleep(lasts) // how long the fault lasts
		f.startDB()
	}
}

// setting returns the value of an environment variable, or usual.
func setting(t *testing.T, name string, usual uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.ParseUint(text, 10, 64)
	testkit.Must(t, err)
	return n
}

// TestChaos has clients that retry use two control planes with three hosts, while
// processes are killed, stopped and restarted. Then every sandbox is what its client
// knows of it, and after their deletion nothing is left on the hosts. Guests are
// processes of this machine, so disks and memory are not compared.
// WRENN_TEST_CHAOS_SEED repeats the order of faults.
func TestChaos(t *testing.T) {
	seed := setting(t, "WRENN_TEST_CHAOS_SEED", rand.Uint64())
	lasts := time.Duration(setting(t, "WRENN_TEST_CHAOS_SECONDS", 30)) * time.Second
	t.Logf("WRENN_TEST_CHAOS_SEED=%d", seed)
	f := newFleet(t)
	loaded, stop := context.WithTimeout(t.Context(), lasts)
	defer stop()
	users := make([]*user, clients)
	var load sync.WaitGroup
	for i := range users {
		users[i] = &user{fleet: f, random: rand.New(rand.NewPCG(seed, uint64(i+1))), name: fmt.Sprint("user", i)}
		load.Go(func() { users[i].work(t, loaded) })
	}
	faults, r := 0, rand.New(rand.NewPCG(seed, 0))
	for pause(loaded, time.Duration(500+r.IntN(2500))*time.Millisecond) {
		f.fault(t, r)
		faults++
	}
	load.Wait()
	f.ready(t)
	calls, repeated := 0, 0
	for _, u := range users {
		u.check(t)
		calls, repeated = calls+u.calls, repeated+u.repeated
	}
	t.Logf("%d faults, %d calls, %d of them repeated", faults, calls, repeated)
	f.empty(t)
}

// pause waits, and reports whether ctx still holds.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// empty deletes what creates made whose answers were lost, and checks that the hosts
// have nothing left.
func (f *fleet) empty(t *testing.T) {
	t.Helper()
	api := f.planes[0].api
	testkit.WaitNoError(t, "all sandboxes are deleted", func() error {
		var left error
		for sb, err := range api.Sandboxes(t.Context(), client.ListSandboxes{}) {
			if err != nil {
				return err
			}
			if sb.State != client.Stopped && sb.State != client.Failed {
				left = errors.Join(left, fmt.Errorf("%s is %s", sb.ID, sb.State), api.DeleteSandbox(t.Context(), sb.ID))
			}
		}
		return left
	})
	for i, a := range f.agents {
		testkit.WaitNoError(t, fmt.Sprintf("host %d is empty", i), func() error {
			journals, err := filepath.Glob(a.Journal("*"))
			if n := len(a.World.Running()); err == nil && (n > 0 || len(journals) > 0) {
				err = fmt.Errorf("it has %d machines, and the journals %q", n, journals)
			}
			return err
		})
	}
}
