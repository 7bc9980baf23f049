//go:build root

package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/vm/vmfake"
)

// pooling opens a manager with a base snapshot, whose loop keeps n machines in the pool.
func (l *lab) pooling(t *testing.T, n int) *Manager {
	t.Helper()
	l.cfg.Pool = n
	m := l.open(t)
	must(t, m.Warm(t.Context(), small))
	run(t, m)
	return m
}

// wantPool waits until so many machines are in the pool.
func wantPool(t *testing.T, m *Manager, ready int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for m.Pool().Ready != ready {
		if time.Now().After(deadline) {
			t.Fatalf("Pool() = %+v, want %d ready", m.Pool(), ready)
		}
		time.Sleep(5 * time.Millisecond) // polling with a deadline
	}
}

func wantHits(t *testing.T, m *Manager, hits, misses uint64) {
	t.Helper()
	if s := m.Pool(); s.Hits != hits || s.Misses != misses {
		t.Errorf("Pool() = %+v, want %d hits and %d misses", s, hits, misses)
	}
}

// only is the one machine in the pool.
func only(t *testing.T, m *Manager) *Sandbox {
	t.Helper()
	boxes := m.pool.machines()
	if len(boxes) != 1 {
		t.Fatalf("%d machines in the pool", len(boxes))
	}
	return boxes[0]
}

var poolable = wrenn.SandboxSpec{Template: "base", Size: small}

func TestASandboxClaimsAPooledMachine(t *testing.T) {
	l := newLab(t)
	m := l.pooling(t, 1)
	wantPool(t, m, 1)
	if inv := m.Inventory(); len(inv.Sandboxes) != 0 {
		t.Errorf("the pool is in the inventory: %+v", inv.Sandboxes)
	}
	if c, err := m.Capacity(); err != nil || c.SandboxesUsed != 0 || c.MemoryMiBUsed != 0 {
		t.Errorf("the pool counts: %+v, %v", c, err)
	}
	machine := only(t, m).other.Machine.Ref()

	sb := ensure(t, m, poolable)
	wantHits(t, m, 1, 0)
	if got := sb.instance.Machine.Ref(); got.PID != machine.PID {
		t.Errorf("the sandbox runs in %+v, want the machine %+v", got, machine)
	}
	wantAlive(t, sb)
	must(t, l.mark(t.Context(), sb, 'a'))
	wantPool(t, m, 1)
	if used := l.cfg.Slots.Stats().Used; used != 2 {
		t.Errorf("%d slots are used by a sandbox and a pooled machine", used)
	}

	must(t, errors.Join(sb.Pause(t.Context()), sb.Resume(t.Context())))
	l.wantMark(t, sb, 'a')
	must(t, sb.Destroy(t.Context()))
	wantHits(t, m, 1, 0) // a resume uses its own snapshot
}

// The machine and the disk of a sandbox that claimed a pooled one are found by the next
// agent although the machine has its own name.
func TestASandboxThatClaimedAMachineIsAdopted(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	must(t, m.Warm(t.Context(), small))
	k := kind{m.baseName(small), small}
	m.pool.size = 1
	m.pool.want(k)
	must(t, m.pool.add(t.Context(), k))
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), poolable)
	must(t, errors.Join(err, l.mark(t.Context(), sb, 'a')))
	wantHits(t, m, 1, 0)
	dir := sb.instance.Dir()
	if strings.Contains(dir, string(sb.ID())) {
		t.Fatalf("the machine's directory %s was renamed", dir)
	}
	m = l.restart(t, m)
	sb, err = m.Get(sb.ID())
	must(t, err)
	wantAlive(t, sb)
	l.wantMark(t, sb, 'a')
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("the directory of a living machine is gone: %v", err)
	}
	must(t, sb.Destroy(t.Context()))
	l.wantClean(t, m)
}

func TestNothingOfThePoolIsLeftWhenRunEnds(t *testing.T) {
	l := newLab(t)
	l.cfg.Pool = 2
	m := l.open(t)
	must(t, m.Warm(t.Context(), small))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	wantPool(t, m, 2)
	stop()
	must(t, <-done)
	l.wantClean(t, m)
}

func TestThePoolGivesWay(t *testing.T) {
	other := wrenn.Size{VCPUs: 1, MemoryMiB: 128}
	for name, limit := range map[string]func(*lab){
		"slots":  func(*lab) {}, // there are two
		"memory": func(l *lab) { l.cfg.Limits.MemoryMiB = 64 + 128; l.network.Max = 3 },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			limit(l)
			m := l.pooling(t, 1)
			wantPool(t, m, 1)
			wantAlive(t, ensure(t, m, poolable))
			wantPool(t, m, 1)
			wantAlive(t, ensure(t, m, wrenn.SandboxSpec{Template: "base", Size: other}))
			wantPool(t, m, 0)
			wantHits(t, m, 1, 0) // a sandbox of another size misses nothing
		})
	}
}

func TestThePoolEndsWhenMemoryIsLow(t *testing.T) {
	l := newLab(t)
	l.cfg.Pool = 1
	m := l.open(t)
	low := make(chan bool, 1)
	low <- false
	m.pool.memory = func() (memory, error) {
		now := <-low
		low <- now
		if now {
			return memory{totalKiB: 1000, availableKiB: 50}, nil
		}
		return memory{totalKiB: 1000, availableKiB: 500}, nil
	}
	must(t, m.Warm(t.Context(), small))
	run(t, m)
	wantPool(t, m, 1)
	<-low
	low <- true
	m.pool.wake.Notify()
	wantPool(t, m, 0)
	sb := ensure(t, m, poolable)
	wantAlive(t, sb)
	wantHits(t, m, 0, 1)
}

func TestAPooledMachineThatEndsIsReplaced(t *testing.T) {
	l := newLab(t)
	m := l.pooling(t, 1)
	wantPool(t, m, 1)
	dead := only(t, m)
	l.world.Kill(dead.other.Machine.Ref())
	deadline := time.Now().Add(patience)
	for { // until another exists
		if boxes := m.pool.machines(); len(boxes) == 1 && boxes[0] != dead && boxes[0].Info().Status == statusPooled {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("Pool() = %+v", m.Pool())
		}
		time.Sleep(5 * time.Millisecond) // polling with a deadline
	}
	wantAlive(t, ensure(t, m, poolable))
	wantHits(t, m, 1, 0)
}

// A sandbox that claims a machine which does not work gets another.
func TestAPooledMachineThatDoesNotRun(t *testing.T) {
	l := newLab(t)
	m := l.pooling(t, 1)
	wantPool(t, m, 1)
	bad := only(t, m)
	failAt(vmfake.StepResume)(l)
	sb := ensure(t, m, poolable)
	wantAlive(t, sb)
	wantHits(t, m, 0, 1)
	if sb.journal.Starts != 2 {
		t.Errorf("the sandbox's instance has number %d, want 2", sb.journal.Starts)
	}
	if _, err := os.Stat(bad.dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the machine is still in the pool: %v", err)
	}
	l.hook = nil
}

func TestThePoolGoesWithItsSnapshot(t *testing.T) {
	l := newLab(t)
	m := l.pooling(t, 1)
	wantPool(t, m, 1)
	must(t, m.RemoveSnapshot(t.Context(), m.baseName(small), ""))
	wantPool(t, m, 0)
	wantSnapshots(t, m)
	wantAlive(t, ensure(t, m, poolable)) // it boots
	wantHits(t, m, 0, 0)
}

func TestNoMachineIsPooledWhileACallerWaits(t *testing.T) {
	l := newLab(t)
	l.cfg.Pool = 1
	m := l.open(t)
	must(t, m.Warm(t.Context(), small))
	sb, err := enter(m, wrenn.NewSandboxID())
	must(t, err)
	if k, ok := m.pool.shortage(); ok {
		t.Errorf("shortage() = %+v while a sandbox is being made", k)
	}
	must(t, sb.Destroy(t.Context()))
	if k, ok := m.pool.shortage(); !ok || k != (kind{m.baseName(small), small}) {
		t.Errorf("shortage() = %+v, %v, want a machine from the base snapshot", k, ok)
	}
}

// poolDeeds are the life of pooled machines and of a sandbox that claims one.
func (w *wholeLife) poolDeeds() []deed {
	pool := func(ctx context.Context, m *Manager) error {
		return m.pool.add(ctx, kind{m.baseName(small), small})
	}
	with := func(do func(*Sandbox, context.Context) error) func(context.Context, *Manager) error {
		return func(ctx context.Context, m *Manager) error {
			sb, err := m.Get(w.id)
			if err != nil {
				return err
			}
			return do(sb, ctx)
		}
	}
	return []deed{
		{"warm", func(ctx context.Context, m *Manager) error {
			m.pool.size = 1
			return m.Warm(ctx, small)
		}},
		{"pool", pool},
		{"create", func(ctx context.Context, m *Manager) error {
			_, err := m.Ensure(ctx, w.id, wrenn.SandboxSpec{Template: "base", Size: small})
			if m.Pool().Hits != 1 {
				return errors.New("it did not claim a pooled machine")
			}
			return err
		}},
		{"", with(func(sb *Sandbox, ctx context.Context) error {
			w.memory, w.before = 'a', 'a'
			return w.l.mark(ctx, sb, 'a')
		})},
		{"pause", with((*Sandbox).Pause)},
		{"resume", with((*Sandbox).Resume)},
		{"destroy", with((*Sandbox).Destroy)},
		{"pool", pool},
		{"end the pool", func(ctx context.Context, m *Manager) error {
			m.pool.remove(ctx, m.pool.machines())
			return nil
		}},
	}
}

// An agent that dies leaves no machine in the pool, and never one to two sandboxes.
func TestTheNextAgentGoesOnAfterEveryPointOfThePool(t *testing.T) {
	atEveryPoint(t, 40, (*wholeLife).poolDeeds, func(t *testing.T, m *Manager) {
		t.Helper()
		left, err := filepath.Glob(filepath.Join(snapshotDir(m), "*"))
		must(t, err)
		if len(left) > 1 || len(left) == 1 && filepath.Base(left[0]) != m.baseName(small) {
			t.Errorf("snapshots: %q", left)
		}
	})
}
