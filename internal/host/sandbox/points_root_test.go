//go:build root

package sandbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wrenn.dev"
)

// deed is something that an agent does for a sandbox.
type deed struct {
	name string
	do   func(context.Context, *Manager) error
}

// life is a sandbox whose agent may die at any point of what it does for it.
// Its memory and its disk say what they are, and by that when they are of.
type wholeLife struct {
	l        *lab
	id, copy wrenn.SandboxID
	memory   byte               // what is in the guest's memory after the last deed that changed it
	before   byte               // and what was before
	checked  wrenn.CheckpointID // a checkpoint
}

func newLife(l *lab) *wholeLife {
	return &wholeLife{l: l, id: wrenn.NewSandboxID(), copy: wrenn.NewSandboxID(), checked: "checked"}
}

func (w *wholeLife) deeds() []deed {
	ensure := func(ctx context.Context, m *Manager) error {
		_, err := m.Ensure(ctx, w.id, wrenn.SandboxSpec{Template: "base", Size: small})
		return err
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
	mark := func(b byte) func(context.Context, *Manager) error {
		return with(func(sb *Sandbox, ctx context.Context) error {
			w.memory, w.before = b, b
			return w.l.mark(ctx, sb, b)
		})
	}
	return []deed{
		{"create", ensure},
		{"", mark('a')},
		{"pause", with((*Sandbox).Pause)},
		{"resume", with((*Sandbox).Resume)},
		{"checkpoint", with(func(sb *Sandbox, ctx context.Context) error {
			_, err := sb.Checkpoint(ctx, w.checked, "")
			return err
		})},
		{"", mark('b')},
		{"fork", with(func(sb *Sandbox, ctx context.Context) error {
			copies, err := sb.Fork(ctx, []wrenn.SandboxID{w.copy}, nil)
			if err != nil {
				return err
			}
			return copies[0].Err
		})},
		{"destroy the fork", func(ctx context.Context, m *Manager) error {
			sb, err := m.Get(w.copy)
			if err != nil {
				return err
			}
			return sb.Destroy(ctx)
		}},
		{"restore", with(func(sb *Sandbox, ctx context.Context) error {
			w.memory, w.before = 'a', 'b'
			return sb.RestoreCheckpoint(ctx, w.checked)
		})},
		{"pause again", with((*Sandbox).Pause)},
		{"collect", func(ctx context.Context, m *Manager) error { return m.Collect(ctx) }},
		{"delete the checkpoint", with(func(sb *Sandbox, ctx context.Context) error { return sb.DeleteCheckpoint(ctx, w.checked) })},
		{"destroy while paused", with((*Sandbox).Destroy)},
		{"create again", ensure},
		{"end", with(func(sb *Sandbox, ctx context.Context) error {
			if err := sb.op.Lock(ctx); err != nil {
				return err
			}
			defer sb.op.Unlock()
			return (locked{sb}).end(ctx, Verdict{Status: StatusStopped, Reason: "a test"})
		})},
		{"destroy", with((*Sandbox).Destroy)},
	}
}

// mark makes memory and disk say b.
func (l *lab) mark(ctx context.Context, sb *Sandbox, b byte) error {
	g := l.inside(sb)
	return errors.Join(g.Fill(ctx, "mark", b), g.WriteDisk(ctx, string(b)))
}

// wantMark fails unless memory and disk say the same, and one of what is wanted.
func (l *lab) wantMark(t *testing.T, sb *Sandbox, want ...byte) {
	t.Helper()
	g := l.inside(sb)
	disk, err := g.ReadDisk(t.Context())
	must(t, err)
	for _, b := range want {
		if same, err := g.Filled(t.Context(), "mark", b); err == nil && same && disk == string(b) {
			return
		}
	}
	t.Errorf("the disk says %q, and that or the memory is not one of %q", disk, want)
}

// point is a crash point of a deed.
type point struct {
	deed int
	name string
}

// points returns the crash points of the deeds, in order, as often as they come.
func points(t *testing.T, deeds func(*wholeLife) []deed) (all []point) {
	t.Helper()
	l := newLab(t)
	now := 0
	l.cfg.Hook = func(name string) error {
		all = append(all, point{now, name})
		return nil
	}
	m := l.open(t)
	t.Cleanup(m.Close)
	for i, d := range deeds(newLife(l)) {
		now = i
		must(t, d.do(t.Context(), m))
	}
	l.wantClean(t, m)
	return all
}

// An agent stops for good at a point; the next one finds the sandbox as it was
// before the deed or after it, whole, and it can be used, or it is gone without a trace.
func TestTheNextAgentGoesOnAfterEveryPoint(t *testing.T) {
	atEveryPoint(t, 80, (*wholeLife).deeds, func(t *testing.T, m *Manager) {
		t.Helper()
		wantSnapshots(t, m)
	})
}

// atEveryPoint lets an agent die at each point of the deeds, of which there are
// least or more, and checks what the next one finds, at last by also.
func atEveryPoint(t *testing.T, least int, deeds func(*wholeLife) []deed, also func(*testing.T, *Manager)) {
	t.Helper()
	var all []point
	t.Run("none", func(t *testing.T) { all = points(t, deeds) })
	if len(all) < least {
		t.Fatalf("points = %v", all)
	}
	names := deeds(newLife(nil))
	for n, at := range all {
		t.Run(names[at.deed].name+"/"+at.name, func(t *testing.T) {
			l := newLab(t)
			life := newLife(l)
			m, done := l.dieAt(t, n, deeds(life))
			if strings.HasSuffix(at.name, "machine started") || strings.HasSuffix(at.name, "machine to be recorded") {
				// A real VMM would be found in the slot, as TestOpenEndsAMachineThatNoJournalKnows shows; a fake is no process.
				running := l.world.Running()
				l.world.Kill(running[len(running)-1])
			}
			m = l.restart(t, m)
			life.wantGoesOn(t, m, names[done].name)
			l.wantClean(t, m)
			must(t, m.Collect(t.Context()))
			also(t, m)
		})
	}
}

// dieAt does the deeds with an agent that stops for good at the point of that
// number, and says how many were done.
func (l *lab) dieAt(t *testing.T, n int, deeds []deed) (*Manager, int) {
	t.Helper()
	died := make(chan struct{})
	var passed, done atomic.Int32
	l.cfg.Hook = func(string) error {
		if passed.Add(1) == int32(n)+1 {
			close(died)
			select {} // nothing of what it began is ever finished or undone
		}
		return nil
	}
	m := l.open(t)
	go func() {
		for _, d := range deeds {
			if err := d.do(context.Background(), m); err != nil {
				t.Errorf("%s: %v", d.name, err)
				return
			}
			done.Add(1)
		}
	}()
	select {
	case <-died:
	case <-time.After(patience):
		t.Fatal("the point was not reached")
	}
	return m, int(done.Load())
}

// wantGoesOn checks what is left of the sandbox after an agent that died in the
// deed, and that it can be used or made again.
func (w *wholeLife) wantGoesOn(t *testing.T, m *Manager, deed string) {
	t.Helper()
	sb, err := m.Get(w.id)
	mortal := []string{"create", "destroy while paused", "create again", "end", "destroy", "warm", "pool", "end the pool"}
	if err != nil && !slices.Contains(mortal, deed) {
		t.Fatalf("the sandbox is lost: %v", err)
	}
	if fork, err := m.Get(w.copy); err == nil { // whole, or it would not be there
		wantAlive(t, fork)
		w.l.wantMark(t, fork, 'b')
		must(t, fork.Destroy(t.Context()))
	}
	if err == nil && sb.Info().Status == StatusStopped { // its end is known, and acknowledged now
		must(t, sb.Destroy(t.Context()))
	}
	w.wantRunningOrPaused(t, m)
	sb, err = m.Ensure(t.Context(), w.id, wrenn.SandboxSpec{Template: "base", Size: small})
	must(t, err)
	must(t, sb.Resume(t.Context()))
	wantAlive(t, sb)
	if w.memory != 0 && !slices.Contains(mortal, deed) {
		w.l.wantMark(t, sb, w.memory, w.before)
	}
	wantTree(t, sb)
	must(t, sb.Destroy(t.Context()))
}

// wantRunningOrPaused fails unless each sandbox that runs has a machine, and
// no other sandbox has.
func (w *wholeLife) wantRunningOrPaused(t *testing.T, m *Manager) {
	t.Helper()
	running := 0
	for _, info := range m.listed() {
		switch info.Status {
		case StatusRunning:
			running++
		case StatusPaused:
		default:
			t.Errorf("sandbox %s is %s", info.ID, info.Status)
		}
	}
	if n := len(w.l.world.Running()); n != running {
		t.Errorf("%d machines for %d sandboxes that run", n, running)
	}
	if used := w.l.cfg.Slots.Stats().Used; used != running {
		t.Errorf("%d slots for %d sandboxes that run", used, running)
	}
}

// wantTree checks that each checkpoint can be gone back to.
func wantTree(t *testing.T, sb *Sandbox) {
	t.Helper()
	list := sb.Checkpoints().List
	for _, c := range list {
		must(t, sb.RestoreCheckpoint(t.Context(), c.ID))
		wantAlive(t, sb)
	}
}
