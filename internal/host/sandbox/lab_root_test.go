//go:build root

package sandbox

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/fakeguest"
	"wrenn.dev/internal/host/sandbox/testhost"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/vmfake"
)

// patience bounds what must happen, on a busy machine too.
const patience = 20 * time.Second

var small = wrenn.Size{VCPUs: 1, MemoryMiB: 64}

// lab is a host: directories, network slots in their own namespace, and
// a world in which fake machines run the real agent.
type lab struct {
	cfg     Config
	network network.Config
	world   *vmfake.World
	agent   agent
	noSweep bool                    // as an agent with sandboxes in quarantine
	hook    func(vmfake.Step) error // the driver's
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{}
	h := testhost.New(t, testhost.Config{Boot: l.agent.boot, Hook: func(s vmfake.Step) error {
		if l.hook == nil {
			return nil
		}
		return l.hook(s)
	}})
	l.network, l.world = h.Network, h.World
	l.cfg = Config{
		StateDir: h.StateDir, RunDir: h.RunDir, ReadyTimeout: patience, Log: h.Log,
		Driver: h.Driver, Guest: Guest{RootFS: h.Image, Kernel: vm.Kernel{Image: h.Image}},
	}
	return l
}

// script makes a program in its own directory, which it returns.
func script(t *testing.T, name, body string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body+"\n"), 0o755))
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open opens the pool and the manager, as an agent does when it starts.
func (l *lab) open(t *testing.T) *Manager {
	t.Helper()
	m, err := l.tryOpen(t)
	must(t, err)
	return m
}

func (l *lab) tryOpen(t *testing.T) (*Manager, error) {
	t.Helper()
	pool, err := network.Open(t.Context(), l.network)
	must(t, err)
	l.cfg.Slots = pool
	t.Cleanup(func() { must(t, pool.Close(context.WithoutCancel(t.Context()))) })
	m, err := Open(t.Context(), l.cfg)
	if !l.noSweep {
		must(t, pool.Sweep(t.Context()))
	}
	return m, err
}

// crash is the end of an agent: its sandboxes are not destroyed, and another
// agent can have the pool. The directories and the machines stay.
func (l *lab) crash(t *testing.T) {
	t.Helper()
	must(t, l.cfg.Slots.Close(t.Context()))
}

// wantClean fails when anything of a sandbox is left.
func (l *lab) wantClean(t *testing.T, m *Manager) {
	t.Helper()
	left, err := m.Leftovers()
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if running := l.world.Running(); len(running) != 0 {
		t.Errorf("still running: %v", running)
	}
	if s := l.cfg.Slots.Stats(); s.Used+s.Leftover+s.Broken != 0 {
		t.Errorf("slots: %+v", s)
	}
	staged, err := filepath.Glob(filepath.Join(snapshotDir(m), ".*"))
	if err != nil || len(staged) != 0 {
		t.Errorf("left of a snapshot: %v, %v", staged, err)
	}
}

// create makes a sandbox that is destroyed when t ends, at the latest.
func create(t *testing.T, m *Manager) *Sandbox {
	t.Helper()
	sb, err := m.Create(t.Context(), wrenn.NewSandboxID(), small)
	must(t, err)
	destroyLater(t, sb)
	return sb
}

func destroyLater(t *testing.T, sb *Sandbox) {
	t.Helper()
	t.Cleanup(func() {
		if err := sb.Destroy(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
}

// agent says how the agents of the lab's guests behave.
type agent struct {
	// mute agents do not exist; stuck ones are healthy but never done with /init.
	mute, stuck bool
	silent      atomic.Bool // see fakeguest.Config
}

// boot serves an agent in a guest.
func (a *agent) boot(cfg fakeguest.Config) (stop func(), err error) {
	if a.mute {
		return nil, nil
	}
	cfg.Stuck, cfg.Silent = a.stuck, &a.silent
	return fakeguest.Boot(cfg)
}
