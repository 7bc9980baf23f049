//go:build root

package sandbox

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wrenn.dev"
)

var diskOnly = wrenn.PauseOptions{DiskOnly: true}

// wantBooted checks that the sandbox has the disk that says b, not the memory that
// says so, and the environment that it was created with.
func (l *lab) wantBooted(t *testing.T, sb *Sandbox, b byte) {
	t.Helper()
	g := l.inside(sb)
	disk, err := g.ReadDisk(t.Context())
	must(t, err)
	if filled, err := g.Filled(t.Context(), "mark", b); disk != string(b) || err == nil && filled {
		t.Errorf("the disk says %q, and the memory is that of before: %v", disk, filled)
	}
	res, err := sb.Guest().Exec(t.Context(), wrenn.ExecCommand{Cmd: "sh", Args: []string{"-c", "echo $A"}})
	if err != nil || string(res.Stdout) != "of the sandbox\n" {
		t.Errorf("echo $A prints %q, %v", res.Stdout, err)
	}
}

// withEnv is a sandbox that is told apart by its environment.
func (l *lab) withEnv(t *testing.T, m *Manager, end wrenn.EndOfLife) *Sandbox {
	t.Helper()
	return ensure(t, m, wrenn.SandboxSpec{Size: small, Env: map[string]string{"A": "of the sandbox"}, EndOfLife: end})
}

func TestAPauseOfTheDiskBoots(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := l.withEnv(t, m, wrenn.EndOfLife{Timeout: time.Hour})
	for _, mark := range []byte{'a', 'b'} {
		must(t, l.mark(t.Context(), sb, mark))
		for range 2 {
			must(t, sb.PauseBy(t.Context(), diskOnly))
			wantStatus(t, sb, StatusPaused, "")
		}
		if left, err := filepath.Glob(filepath.Join(snapshotDir(m), "*", "machine", "*")); err != nil || len(left) > 0 {
			t.Errorf("it keeps %q of its machine, %v", left, err)
		}
		must(t, m.Collect(t.Context()))
		must(t, sb.Resume(t.Context()))
		wantStatus(t, sb, StatusRunning, "")
		l.wantBooted(t, sb, mark)
	}
	must(t, m.Collect(t.Context()))
	wantSnapshots(t, m) // a machine that booted needs none
	must(t, sb.Destroy(t.Context()))
	l.wantClean(t, m)
}

// A sandbox whose memory was saved can boot all the same.
func TestBootOfAPausedSandbox(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := l.withEnv(t, m, wrenn.EndOfLife{Timeout: time.Hour})
	must(t, l.mark(t.Context(), sb, 'a'))
	must(t, sb.Pause(t.Context()))
	must(t, sb.Boot(t.Context(), ""))
	l.wantBooted(t, sb, 'a')
	must(t, sb.Boot(t.Context(), "")) // it runs: nothing happens
	must(t, l.mark(t.Context(), sb, 'b'))
	must(t, sb.Pause(t.Context()))
	must(t, sb.Resume(t.Context()))
	l.wantMark(t, sb, 'b')
}

func TestAnAutoPauseOfTheDisk(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb := l.withEnv(t, m, wrenn.EndOfLife{Timeout: time.Hour, OnTimeout: wrenn.PauseDiskOnTimeout})
	must(t, l.mark(t.Context(), sb, 'a'))
	run(t, m)
	must(t, sb.Extend(t.Context(), time.Millisecond))
	wantStatus(t, sb, StatusPaused, "")
	must(t, sb.Extend(t.Context(), time.Hour))
	must(t, sb.Resume(t.Context()))
	l.wantBooted(t, sb, 'a')
}

// What a guest that does not answer has not written to its disk is in its memory alone.
func TestAPauseOfTheDiskNeedsTheGuest(t *testing.T) {
	l := newLab(t)
	l.cfg.SilentAfter, l.cfg.FreezeTimeout = quick, quick
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
	forced := wrenn.PauseOptions{DiskOnly: true, Guest: wrenn.PauseForced}
	if err := sb.PauseBy(t.Context(), forced); wrenn.CodeOf(err) != wrenn.Invalid {
		t.Errorf("PauseBy(%+v) = %v, want Invalid", forced, err)
	}
	l.agent.silent.Store(true)
	wantUnresponsive(t, sb, true)
	for _, options := range []wrenn.PauseOptions{{}, diskOnly, {DiskOnly: true, Guest: wrenn.PauseIfAble}} {
		if err := sb.PauseBy(t.Context(), options); wrenn.CodeOf(err) != wrenn.NotResponding {
			t.Errorf("PauseBy(%+v) = %v, want NotResponding", options, err)
		}
	}
	must(t, sb.PauseBy(t.Context(), wrenn.PauseOptions{Guest: wrenn.PauseIfAble}))
	wantStatus(t, sb, StatusPaused, "")
	l.agent.silent.Store(false)
	must(t, sb.Resume(t.Context()))
	wantAlive(t, sb)
}

func TestSnapshotOfTheDisk(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := l.withEnv(t, m, wrenn.EndOfLife{Timeout: time.Hour})
	must(t, l.mark(t.Context(), sb, 'a'))
	must(t, sb.SnapshotDisk(t.Context(), "disk"))
	must(t, l.mark(t.Context(), sb, 'b'))
	l.wantMark(t, sb, 'b') // it continues
	child, err := m.Restore(t.Context(), wrenn.NewSandboxID(), "disk")
	must(t, err)
	destroyLater(t, child)
	l.wantBooted(t, child, 'a')
	must(t, sb.PauseBy(t.Context(), diskOnly))
	copies, err := sb.Fork(t.Context(), []wrenn.SandboxID{wrenn.NewSandboxID()}, nil)
	must(t, err)
	must(t, copies[0].Err)
	destroyLater(t, copies[0].Sandbox)
	l.wantBooted(t, copies[0].Sandbox, 'b')
	text, err := os.ReadFile(filepath.Join(snapshotDir(m), "disk", "settings.json"))
	if err != nil || !strings.Contains(string(text), "of the sandbox") {
		t.Errorf("the settings are %q, %v", text, err)
	}
}

// diskDeeds are those of a life without memory.
func (w *wholeLife) diskDeeds() []deed {
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
		{"create", func(ctx context.Context, m *Manager) error {
			_, err := m.Ensure(ctx, w.id, wrenn.SandboxSpec{Template: "base", Size: small})
			return err
		}},
		{"pause the disk", with(func(sb *Sandbox, ctx context.Context) error { return sb.PauseBy(ctx, diskOnly) })},
		{"resume", with((*Sandbox).Resume)},
		{"pause", with((*Sandbox).Pause)},
		{"boot", with(func(sb *Sandbox, ctx context.Context) error { return sb.Boot(ctx, "") })},
		{"destroy", with((*Sandbox).Destroy)},
	}
}

func TestTheNextAgentGoesOnWithoutMemory(t *testing.T) {
	atEveryPoint(t, 60, (*wholeLife).diskDeeds, func(t *testing.T, m *Manager) {
		t.Helper()
		wantSnapshots(t, m)
	})
}
