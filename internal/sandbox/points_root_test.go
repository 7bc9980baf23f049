//go:build root

package sandbox

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"wrenn"
)

// deeds are what an agent does for a sandbox in its life; the agent may die at
// any point of each.
func deeds(l *lab, id wrenn.SandboxID) []func(context.Context, *Manager) error {
	with := func(do func(*Sandbox, context.Context) error) func(context.Context, *Manager) error {
		return func(ctx context.Context, m *Manager) error {
			sb, err := m.Get(id)
			if err != nil {
				return err
			}
			return do(sb, ctx)
		}
	}
	return []func(context.Context, *Manager) error{
		func(ctx context.Context, m *Manager) error {
			_, err := m.Ensure(ctx, Request{ID: id, Template: "base", Shape: shape})
			return err
		},
		with((*Sandbox).Pause),
		with((*Sandbox).Resume),
		with((*Sandbox).Destroy),
		func(ctx context.Context, m *Manager) error { // again, for another end
			_, err := m.Ensure(ctx, Request{ID: id, Template: "base", Shape: shape})
			return err
		},
		with(func(sb *Sandbox, ctx context.Context) error {
			if err := sb.lock(ctx); err != nil {
				return err
			}
			defer sb.unlock()
			return sb.end(ctx, Verdict{StatusStopped, "a test"})
		}),
		with((*Sandbox).Destroy),
	}
}

// points returns the crash points of a whole life, in order, as often as they come.
func points(t *testing.T) []string {
	t.Helper()
	l := newLab(t)
	var seen []string
	l.cfg.Crash = func(point string) { seen = append(seen, point) }
	m := l.open(t)
	t.Cleanup(m.Close)
	for _, do := range deeds(l, wrenn.NewSandboxID()) {
		must(t, do(t.Context(), m))
	}
	return seen
}

// An agent stops for good at a point; the next one finds the sandbox as it was
// before the deed or after it, and it can be used, or it is gone without a trace.
func TestTheNextAgentGoesOnAfterEveryPoint(t *testing.T) {
	var all []string
	t.Run("none", func(t *testing.T) { all = points(t) })
	if len(all) < 30 || !slices.Contains(all, "machine started") {
		t.Fatalf("points = %q", all)
	}
	for n, point := range all {
		t.Run(point, func(t *testing.T) {
			l := newLab(t)
			died := make(chan struct{})
			var passed atomic.Int32
			l.cfg.Crash = func(string) {
				if passed.Add(1) == int32(n)+1 {
					close(died)
					select {} // nothing of what it began is ever finished or undone
				}
			}
			m := l.open(t)
			id := wrenn.NewSandboxID()
			var done atomic.Int32
			go func() {
				for _, do := range deeds(l, id) {
					if err := do(context.Background(), m); err != nil {
						t.Error(err)
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
			if point == "machine started" {
				// A real VMM would be found in the slot, as TestOpenEndsAMachineThatNoJournalKnows shows; a fake is no process.
				l.world.Kill(l.world.Running()[0])
			}
			m = l.restart(t, m)
			wantGoesOn(t, m, id, int(done.Load()))
			l.wantClean(t, m)
		})
	}
}

// wantGoesOn checks what is left of the sandbox after so many deeds and a part
// of the next, and that it can be used or made anew.
func wantGoesOn(t *testing.T, m *Manager, id wrenn.SandboxID, done int) {
	t.Helper()
	sb, err := m.Get(id)
	if lives := done == 1 || done == 2; lives && err != nil { // it ran, and is being paused or resumed
		t.Fatalf("the sandbox is lost: %v", err)
	}
	if err == nil && sb.Info().Status == StatusStopped { // its end is known, and acknowledged now
		must(t, sb.Destroy(t.Context()))
	}
	sb, err = m.Ensure(t.Context(), Request{ID: id, Template: "base", Shape: shape})
	must(t, err)
	must(t, sb.Resume(t.Context()))
	wantAlive(t, sb)
	must(t, sb.Destroy(t.Context()))
}
