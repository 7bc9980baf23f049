//go:build root

package sandbox

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/vmfake"
)

// abandon brings a sandbox as far as an agent did that was killed before a step of
// its instance; "" is after all: it ran.
func abandon(t *testing.T, m *Manager, before string) *Sandbox {
	t.Helper()
	sb, err := enter(m, wrenn.NewSandboxID())
	must(t, err)
	sb.other = m.instances.New(&sb.owner, journal.Instance{Start: 1})
	for _, step := range sb.other.Steps(m.guestSource(m.cfg.Guest), false) {
		if step.Name == before {
			return sb
		}
		must(t, step.Do(t.Context()))
	}
	must(t, (locked{sb}).moveIn(func(*journal.Journal) {}))
	sb.state.set(StatusRunning, "")
	return sb
}

// enter begins a sandbox as launch does.
func enter(m *Manager, id wrenn.SandboxID) (*Sandbox, error) {
	sb, _, err := m.register(request{id: id, SandboxSpec: wrenn.SandboxSpec{Size: small}})
	if err != nil {
		return nil, err
	}
	defer sb.op.Unlock()
	return sb, (locked{sb}).enter()
}

func TestOpenRemovesWhatAKilledAgentLeft(t *testing.T) {
	for _, tc := range []struct {
		name string
		kill func(*testing.T, *lab, *Manager)
	}{
		{"before the journal", func(t *testing.T, _ *lab, m *Manager) {
			t.Helper()
			_, err := enter(m, wrenn.NewSandboxID())
			must(t, err)
		}},
		{"while the journal is written", func(t *testing.T, _ *lab, m *Manager) {
			t.Helper()
			sb, err := enter(m, wrenn.NewSandboxID())
			must(t, err)
			must(t, os.WriteFile(filepath.Join(sb.dir(), "."+journal.Name+".123"), []byte(`{"for`), 0o600))
		}},
		{"before the slot", func(t *testing.T, _ *lab, m *Manager) { t.Helper(); abandon(t, m, "slot") }},
		{"before the slot is in the journal", func(t *testing.T, l *lab, m *Manager) {
			t.Helper()
			sb := abandon(t, m, "slot")
			_, err := l.cfg.Slots.Acquire(t.Context(), string(sb.ID()))
			must(t, err)
		}},
		{"before the disk", func(t *testing.T, _ *lab, m *Manager) { t.Helper(); abandon(t, m, "disk") }},
		{"before the machine", func(t *testing.T, _ *lab, m *Manager) { t.Helper(); abandon(t, m, "machine") }},
		{"before the agent answers", func(t *testing.T, _ *lab, m *Manager) { t.Helper(); abandon(t, m, "ready") }},
		{"of a running sandbox", func(t *testing.T, _ *lab, m *Manager) { t.Helper(); abandon(t, m, "") }},
		{"and its machine ended too", func(t *testing.T, l *lab, m *Manager) {
			t.Helper()
			l.world.Kill(abandon(t, m, "").instance.Machine.Ref())
		}},
		{"while it destroyed: before all", func(t *testing.T, _ *lab, m *Manager) {
			t.Helper()
			(locked{abandon(t, m, "")}).decide(t.Context(), journal.StepDestroy, nil)
		}},
		{"while it destroyed: the machine is gone", func(t *testing.T, _ *lab, m *Manager) {
			t.Helper()
			sb := abandon(t, m, "")
			(locked{sb}).decide(t.Context(), journal.StepDestroy, nil)
			must(t, errors.Join(sb.instance.Machine.Stop(t.Context())))
		}},
		{"while it destroyed: the slot is given back", func(t *testing.T, _ *lab, m *Manager) {
			t.Helper()
			sb := abandon(t, m, "")
			(locked{sb}).decide(t.Context(), journal.StepDestroy, nil)
			must(t, errors.Join(sb.instance.Machine.Stop(t.Context()), sb.instance.Slot.Release(t.Context())))
		}},
		{"while it destroyed: the journal is removed", func(t *testing.T, _ *lab, m *Manager) {
			t.Helper()
			sb := abandon(t, m, "")
			must(t, errors.Join(sb.instance.Machine.Stop(t.Context()), sb.instance.Slot.Release(t.Context()),
				os.RemoveAll(sb.instance.Dir()), os.Remove(filepath.Join(sb.dir(), journal.Name))))
		}},
		{"with two sandboxes", func(t *testing.T, _ *lab, m *Manager) {
			t.Helper()
			abandon(t, m, "")
			abandon(t, m, "ready")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			tc.kill(t, l, l.open(t))
			l.crash(t)
			m := l.open(t)
			l.wantClean(t, m)
			wantAlive(t, create(t, m)) // nothing is in the way of the next
		})
	}
}

func TestOpenKeepsSnapshotsAndRemovesHalfOnes(t *testing.T) {
	l := newLab(t)
	l.cfg.StateDir = filepath.Join(l.cfg.StateDir, "of [some] *kind") // what a pattern would stumble over
	m := l.open(t)
	sb := abandon(t, m, "")
	must(t, sb.Snapshot(t.Context(), "whole"))
	staged, err := m.snapshots.Stage()
	must(t, err)
	must(t, os.WriteFile(staged.Disk(), []byte("half"), 0o600))
	l.crash(t)
	m = l.open(t)
	l.wantClean(t, m)
	wantSnapshots(t, m, "whole")
	restored, err := m.Restore(t.Context(), wrenn.NewSandboxID(), "whole")
	must(t, err)
	destroyLater(t, restored)
	wantAlive(t, restored)
}

// A sandbox whose journal cannot be read is reported, and the others are removed.
func TestAnUnreadableJournalKeepsNoOther(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	bad, err := enter(m, "i00000000000000000000") // the first in order
	must(t, err)
	must(t, os.WriteFile(filepath.Join(bad.dir(), journal.Name), []byte("{"), 0o600))
	good := abandon(t, m, "")
	l.crash(t)
	m, err = l.tryOpen(t)
	if err == nil || !strings.Contains(err.Error(), string(bad.ID())) || strings.Contains(err.Error(), string(good.ID())) {
		t.Errorf("Open() = %v, want to hear of %s alone", err, bad.ID())
	}
	left, err := m.Leftovers()
	if err != nil || len(left) != 1 || left[0] != bad.dir() {
		t.Errorf("Leftovers() = %v, %v; want the unreadable one", left, err)
	}
	wantAlive(t, create(t, m))
	must(t, os.RemoveAll(bad.dir()))
}

// A machine that cannot be stopped keeps its slot and its journal, for the next
// agent to try.
func TestOpenTriesAgain(t *testing.T) {
	l := newLab(t)
	sb := abandon(t, l.open(t), "")
	l.crash(t)
	l.hook = vmfake.FailAt(vmfake.StepStop)
	if _, err := l.tryOpen(t); err == nil || !strings.Contains(err.Error(), string(sb.ID())) {
		t.Errorf("Open() = %v, want to hear of %s", err, sb.ID())
	}
	if s := l.cfg.Slots.Stats(); s.Used != 1 {
		t.Errorf("slots: %+v, want the machine's still in use", s)
	}
	l.crash(t)
	l.hook = nil
	l.wantClean(t, l.open(t))
}

// An agent can be killed between the start of a VMM and the note of it, or
// come back with another driver: what runs in the slot ends all the same.
func TestOpenEndsAMachineThatNoJournalKnows(t *testing.T) {
	for name, journaled := range map[string]*vm.Ref{
		"not in the journal": nil,
		"of another driver":  {Driver: "qemu", ID: "x", PID: 1},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			sb := abandon(t, l.open(t), "machine")
			must(t, sb.journal.commit("a test", func(j *journal.Journal) {
				note := *j.Other
				note.Machine = journaled
				j.Other = &note
			}))
			dir := sb.other.Dir()
			must(t, errors.Join(os.Mkdir(dir, 0o711), os.WriteFile(filepath.Join(dir, "socket"), nil, 0o600)))
			vmm := exec.Command("sleep", "30")
			must(t, netns.Do(sb.other.Slot.Namespace(), vmm.Start))
			t.Cleanup(func() { _ = vmm.Process.Kill() }) // gone already when all went well
			l.crash(t)
			m := l.open(t)
			if err := vmm.Wait(); err == nil || err.Error() != "signal: killed" {
				t.Errorf("the VMM ended with %v", err)
			}
			l.wantClean(t, m)
		})
	}
}
