//go:build root

package sandbox

import (
	"context"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/vm"
)

// quarantined returns the reasons of what is in quarantine, by name.
func quarantined(m *Manager) map[string]string {
	reasons := map[string]string{}
	for _, info := range m.listed() {
		if info.Status == StatusQuarantined {
			reasons[string(info.ID)] = info.Reason
		}
	}
	return reasons
}

// newQuarantine is a lab in which something may be left at the end of the test.
func newQuarantine(t *testing.T) *lab {
	t.Helper()
	l := newLab(t)
	t.Cleanup(func() { // after the last pool was closed
		for _, ref := range l.world.Running() {
			l.world.Kill(ref)
		}
		ctx := context.WithoutCancel(t.Context())
		pool, err := network.Open(ctx, l.network)
		must(t, err)
		must(t, errors.Join(pool.Sweep(ctx), pool.Close(ctx)))
	})
	return l
}

// lodger is a process that is called like a sandbox's VMM, in a namespace or "" for outside.
func lodger(t *testing.T, namespace, name string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.Args[0] = name
	start := cmd.Start
	if namespace != "" {
		start = func() error { return netns.Do(namespace, cmd.Start) }
	}
	must(t, start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // gone already when all went well
		_ = cmd.Wait()         // killed
	})
	return cmd
}

// noteMachine changes what the journal says of the machine.
func noteMachine(t *testing.T, sb *Sandbox, ref *vm.Ref) {
	t.Helper()
	must(t, sb.journal.commit("a test", func(j *journal.Journal) {
		note := *j.Instance
		note.Machine = ref
		j.Instance = &note
	}))
}

// Whatever is not understood is reported, with its name and why, and is left
// alone; what only looks like it is removed.
func TestQuarantine(t *testing.T) {
	for _, tc := range []struct {
		name string
		// spoil makes a mess of a sandbox whose machine has a process in its slot, and says what is reported of it.
		spoil func(t *testing.T, sb *Sandbox) (as, reason string)
	}{
		{"journal that cannot be read", func(t *testing.T, sb *Sandbox) (string, string) {
			t.Helper()
			must(t, os.WriteFile(filepath.Join(sb.dir(), journal.Name), []byte("{"), 0o600))
			return string(sb.ID()), "its journal cannot be read"
		}},
		{"journal of a newer agent", func(t *testing.T, sb *Sandbox) (string, string) {
			t.Helper()
			must(t, sb.journal.commit("a test", func(j *journal.Journal) { j.Format++ }))
			return string(sb.ID()), "its journal cannot be read"
		}},
		{"directory without a journal", func(t *testing.T, sb *Sandbox) (string, string) {
			t.Helper()
			must(t, os.Remove(filepath.Join(sb.dir(), journal.Name)))
			return string(sb.ID()), "it runs but has no journal"
		}},
		{"machine without a directory", func(t *testing.T, sb *Sandbox) (string, string) {
			t.Helper()
			must(t, os.RemoveAll(sb.dir()))
			return string(sb.ID()), "it runs but has no journal"
		}},
		{"machine of which only the slot is known", func(t *testing.T, sb *Sandbox) (string, string) {
			t.Helper()
			must(t, errors.Join(os.RemoveAll(sb.dir()), os.RemoveAll(sb.instance.Dir())))
			return filepath.Base(sb.instance.Slot.Namespace()), "belong to no sandbox"
		}},
		{"machine of another driver", func(t *testing.T, sb *Sandbox) (string, string) {
			t.Helper()
			noteMachine(t, sb, &vm.Ref{Driver: "qemu", ID: string(sb.ID()), PID: 1})
			return string(sb.ID()), "of driver qemu"
		}},
		{"journal that names no machine", func(t *testing.T, sb *Sandbox) (string, string) {
			t.Helper()
			noteMachine(t, sb, nil)
			return string(sb.ID()), "names no machine"
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newQuarantine(t)
			m := l.open(t)
			sb := abandon(t, m, "")
			vmm := lodger(t, sb.instance.Slot.Namespace(), string(sb.ID()))
			as, reason := tc.spoil(t, sb)
			m = l.restart(t, m)
			got := quarantined(m)
			if len(got) != 1 || !strings.Contains(got[as], reason) {
				t.Errorf("in quarantine: %v; want %s alone: %q", got, as, reason)
			}
			if s := l.cfg.Slots.Stats(); s.Leftover != 1 {
				t.Errorf("slots: %+v, want the machine's kept", s)
			}
			if err := vmm.Process.Signal(syscall.Signal(0)); err != nil {
				t.Errorf("the machine is gone: %v", err)
			}
			q, err := m.Get(wrenn.SandboxID(as))
			must(t, err)
			if err := q.Destroy(t.Context()); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
				t.Errorf("Destroy() = %v, want FailedPrecondition", err)
			}
			must(t, m.DestroyAll(t.Context()))
			if again := quarantined(l.restart(t, m)); !maps.Equal(again, got) {
				t.Errorf("the next agent's quarantine: %v, want %v", again, got)
			}
		})
	}
}

// A process elsewhere that has the id in its command line, such as a person's
// editor, is no machine.
func TestANamesakeIsNoMachine(t *testing.T) {
	for name, remove := range map[string]func(*Sandbox) error{
		"no journal":   func(sb *Sandbox) error { return os.Remove(filepath.Join(sb.dir(), journal.Name)) },
		"no directory": func(sb *Sandbox) error { return os.RemoveAll(sb.dir()) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newQuarantine(t)
			m := l.open(t)
			sb := abandon(t, m, "")
			must(t, errors.Join(sb.instance.Machine.Stop(t.Context()), remove(sb)))
			lodger(t, "", string(sb.ID()))
			m = l.restart(t, m)
			if got := quarantined(m); len(got) != 0 {
				t.Errorf("in quarantine: %v", got)
			}
			l.wantClean(t, m)
		})
	}
}

// One in quarantine costs the others nothing, and slots without processes are removed.
func TestQuarantineKeepsOneSlotAlone(t *testing.T) {
	l := newQuarantine(t)
	l.network.Max = 3
	m := l.open(t)
	bad, good, gone := abandon(t, m, ""), abandon(t, m, ""), abandon(t, m, "")
	lodger(t, bad.instance.Slot.Namespace(), string(bad.ID()))
	must(t, errors.Join(os.WriteFile(filepath.Join(bad.dir(), journal.Name), nil, 0o600),
		gone.instance.Machine.Stop(t.Context()), os.RemoveAll(gone.dir()), os.RemoveAll(gone.instance.Dir())))
	m = l.restart(t, m)
	if got := slices.Collect(maps.Keys(quarantined(m))); !slices.Equal(got, []string{string(bad.ID())}) {
		t.Errorf("in quarantine: %v", got)
	}
	if s := l.cfg.Slots.Stats(); s.Leftover != 1 || s.Used != 1 {
		t.Errorf("slots: %+v", s)
	}
	adopted, err := m.Get(good.ID())
	must(t, err)
	wantAlive(t, adopted)
	must(t, adopted.Destroy(t.Context()))
}
