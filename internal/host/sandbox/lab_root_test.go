//go:build root

package sandbox

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

	"wrenn"
	"wrenn/internal/host/sandbox/fakeguest"
	"wrenn/internal/netns"
	"wrenn/internal/network"
	"wrenn/internal/vm"
	"wrenn/internal/vm/vmfake"
)

// patience bounds what must happen, on a busy machine too.
const patience = 20 * time.Second

var (
	labs  atomic.Int32
	small = wrenn.Size{VCPUs: 1, MemoryMiB: 64}
)

// lab is a host: directories, network slots in their own namespace, and
// a world in which fake machines run the real agent.
type lab struct {
	cfg     Config
	network network.Config
	world   *vmfake.World
	agent   agent
	noSweep bool // as an agent with sandboxes in quarantine
	// fault is the driver's.
	fault func(vmfake.Step) error
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root")
	}
	prefix := fmt.Sprintf("f%05x%02x", os.Getpid()&0xfffff, labs.Add(1)&0xff) // 8 letters, the most that a pool takes
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	l := &lab{agent: agent{log: log}}
	l.network = network.Config{
		Prefix: prefix, Range: netip.MustParsePrefix("10.215.0.0/24"), Max: 2, RunDir: t.TempDir(),
		HostNamespace: newNamespace(t, prefix+"host"), Log: log,
	}
	l.world = &vmfake.World{Boot: func(g *vmfake.Guest) (func(), error) {
		spec, err := g.Spec()
		if err != nil {
			return nil, err
		}
		return l.agent.boot(spec.Net.Namespace)
	}}
	l.cfg = Config{
		StateDir: t.TempDir(), RunDir: shortDir(t), ReadyTimeout: patience, Log: log,
		Driver: vmfake.New(vmfake.Config{World: l.world, Hook: func(s vmfake.Step) error {
			if l.fault == nil {
				return nil
			}
			return l.fault(s)
		}}),
		Guest: Guest{RootFS: newFile(t, "rootfs"), Kernel: vm.Kernel{Image: newFile(t, "kernel")}},
	}
	// The agent's programs find a sync that does not write the disks of this machine.
	t.Setenv("PATH", script(t, "sync", "exit 0")+":"+os.Getenv("PATH"))
	return l
}

func newNamespace(t *testing.T, name string) string {
	t.Helper()
	path, err := netns.Create(name)
	must(t, err)
	t.Cleanup(func() {
		if err := netns.Delete(name); err != nil {
			t.Error(err)
		}
	})
	return path
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sbx") //nolint:usetesting // t.TempDir's names are too long for a machine
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte(content), 0o600))
	return path
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

// agent makes the agents of the lab's guests, and says how they behave.
type agent struct {
	log *slog.Logger
	// mute agents do not exist; stuck ones are healthy but never done with /init.
	mute, stuck bool
}

// boot serves an agent in the guest of the slot.
func (a *agent) boot(slot string) (stop func(), err error) {
	if a.mute {
		return nil, nil
	}
	return fakeguest.Boot(fakeguest.Config{Slot: slot, Stuck: a.stuck, Log: a.log})
}
