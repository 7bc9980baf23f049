//go:build root

package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/vmfake"
)

// inside is the guest of a sandbox.
func (l *lab) inside(sb *Sandbox) *vmfake.Guest { return l.world.Guest(sb.instance.Slot.Namespace()) }

func TestSnapshotAndRestore(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb := create(t, m)
	g := l.inside(sb)
	must(t, g.Fill(t.Context(), "f", 'a'))
	must(t, g.WriteDisk(t.Context(), "then"))
	must(t, sb.Snapshot(t.Context(), "snap"))
	must(t, g.Fill(t.Context(), "f", 'b'))
	must(t, g.WriteDisk(t.Context(), "later"))
	wantAlive(t, sb)

	restored, err := m.Restore(t.Context(), wrenn.NewSandboxID(), "snap")
	must(t, err)
	destroyLater(t, restored)
	wantAlive(t, restored)
	if same, err := l.inside(restored).Filled(t.Context(), "f", 'a'); err != nil || !same {
		t.Errorf("the restored memory is another: %v", err)
	}
	if text, err := l.inside(restored).ReadDisk(t.Context()); err != nil || text != "then" {
		t.Errorf("the restored disk holds %q, %v", text, err)
	}
	must(t, restored.Snapshot(t.Context(), "second")) // of the size that the first one's manifest says
	must(t, errors.Join(sb.Destroy(t.Context()), restored.Destroy(t.Context())))
	l.wantClean(t, m)

	must(t, m.RemoveSnapshot(t.Context(), "snap", ""))
	if _, err := m.Restore(t.Context(), wrenn.NewSandboxID(), "snap"); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("Restore() of a removed snapshot = %v, want NotFound", err)
	}
	must(t, m.RemoveSnapshot(t.Context(), "second", ""))
	wantSnapshots(t, m)
}

func snapshotDir(m *Manager) string { return filepath.Join(m.cfg.StateDir, "snapshots") }

// wantSnapshots checks what is in the directory of snapshots, hidden things too.
func wantSnapshots(t *testing.T, m *Manager, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(snapshotDir(m))
	must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("snapshots: %q, want %q", got, want)
	}
}

func TestSnapshotNames(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb := create(t, m)
	for _, name := range []string{"", "-a", "A", "a/b", "..", ".staged-1", "a b", "a\n", strings.Repeat("a", 64)} {
		if err := sb.Snapshot(t.Context(), name); wrenn.CodeOf(err) != wrenn.Invalid {
			t.Errorf("Snapshot(%q) = %v, want Invalid", name, err)
		}
		if _, err := m.Restore(t.Context(), wrenn.NewSandboxID(), name); wrenn.CodeOf(err) != wrenn.NotFound {
			t.Errorf("Restore(%q) = %v, want NotFound", name, err)
		}
		if err := m.RemoveSnapshot(t.Context(), name, ""); wrenn.CodeOf(err) != wrenn.NotFound {
			t.Errorf("RemoveSnapshot(%q) = %v, want NotFound", name, err)
		}
	}
	longest := strings.Repeat("a", 63)
	must(t, sb.Snapshot(t.Context(), longest))
	if err := sb.Snapshot(t.Context(), longest); wrenn.CodeOf(err) != wrenn.AlreadyExists {
		t.Errorf("a second Snapshot() = %v, want AlreadyExists", err)
	}
	wantSnapshots(t, m, longest)
}

func TestRestoreOfNothing(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	if _, err := m.Restore(t.Context(), wrenn.NewSandboxID(), "none"); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("Restore() = %v, want NotFound", err)
	}
	l.wantClean(t, m)
}

// A snapshot is whole or not there, and the sandbox goes on either way.
func TestSnapshotFailuresLeaveNothing(t *testing.T) {
	for _, step := range append(vmfake.SnapshotSteps(), vmfake.StepPause) {
		t.Run(step, func(t *testing.T) {
			l := newLab(t)
			m := l.open(t)
			sb := create(t, m)
			failAt(step)(l)
			if err := sb.Snapshot(t.Context(), "snap"); err == nil || !strings.Contains(err.Error(), "injected") {
				t.Errorf("Snapshot() = %v, want the driver's error", err)
			}
			wantSnapshots(t, m)
			wantRunning(t, l, sb)
			l.hook = nil
			must(t, sb.Snapshot(t.Context(), "snap"))
		})
	}
}

// wantRunning fails when the sandbox's machine is paused.
func wantRunning(t *testing.T, l *lab, sb *Sandbox) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := l.inside(sb).WaitReady(ctx, nil); err != nil {
		t.Errorf("the machine does not run: %v", err)
	}
}

func TestACanceledSnapshotLeavesNothing(t *testing.T) {
	why := errors.New("enough")
	for _, step := range append(vmfake.SnapshotSteps(), vmfake.StepPause) {
		t.Run(step, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			l := newLab(t)
			m := l.open(t)
			sb := create(t, m)
			l.hook = func(now vmfake.Step) error {
				if now == step {
					cancel(why)
					return why
				}
				return nil
			}
			if err := sb.Snapshot(ctx, "snap"); !errors.Is(err, why) {
				t.Errorf("Snapshot() = %v, want the context's cause", err)
			}
			wantSnapshots(t, m)
			wantRunning(t, l, sb)
		})
	}
}

// letGoOnNow has Run do now what is due some seconds later, and reports whether it was.
func letGoOnNow(m *Manager, sb *Sandbox) (wasDue bool) {
	defer m.notify()
	sb.state.mu.Lock()
	defer sb.state.mu.Unlock()
	wasDue = !sb.state.stalled.IsZero()
	sb.state.stalled = time.Now()
	return wasDue
}

// A machine that does not go on when its snapshot is given up goes on later.
func TestAMachineThatIsLeftStandingStill(t *testing.T) {
	for name, do := range map[string]func(context.Context, *Sandbox) error{
		"checkpoint": func(ctx context.Context, sb *Sandbox) error {
			_, err := sb.Checkpoint(ctx, "one", "")
			return err
		},
		"pause": func(ctx context.Context, sb *Sandbox) error { return sb.Pause(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			why := errors.New("enough")
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			l := newLab(t)
			m := l.open(t)
			run(t, m)
			sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
			machine := sb.instance.Machine
			var refused atomic.Bool
			l.hook = func(now vmfake.Step) error {
				switch {
				case now == vmfake.StepMemory:
					cancel(why)
					return why
				case now == vmfake.StepResume && refused.CompareAndSwap(false, true):
					return errors.Join(machine.Pause(t.Context()), errors.New("injected")) // as if it had never gone on
				}
				return nil
			}
			if err := do(ctx, sb); !errors.Is(err, why) {
				t.Errorf("got %v, want the context's cause", err)
			}
			wantStatus(t, sb, StatusRunning, "")
			if !letGoOnNow(m, sb) {
				t.Error("nothing would let it run again")
			}
			wantRunning(t, l, sb)
			wantAlive(t, sb)
		})
	}
}

// An agent that died in a snapshot may have left a VMM that still writes it, and
// answers nothing else: the next agent has the sandbox all the same.
func TestAdoptOfAMachineThatStillWrites(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Size: small})
	must(t, err)
	must(t, sb.journal.commit("frozen", func(j *journal.Journal) { j.Frozen = true }))
	must(t, sb.instance.Machine.Pause(t.Context()))
	l.hook = func(now vmfake.Step) error {
		if now == vmfake.StepResume {
			return errors.New("busy")
		}
		return nil
	}
	m = l.restart(t, m)
	run(t, m)
	sb, err = m.Get(sb.ID())
	must(t, err)
	destroyLater(t, sb)
	wantStatus(t, sb, StatusRunning, "")
	l.hook = nil
	if !letGoOnNow(m, sb) {
		t.Error("nothing would let it run again")
	}
	wantRunning(t, l, sb)
	wantAlive(t, sb)
}

// Destroy does not wait for a VMM that keeps writing, even if a caller still waits for that.
func TestDestroyEndsAWriteThatCannotBeGivenUp(t *testing.T) {
	for name, left := range map[string]bool{"its caller waits": false, "its caller has left": true} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			m := l.open(t)
			t.Cleanup(m.Close)
			sb := create(t, m)
			machine, entered := sb.instance.Machine, make(chan struct{})
			l.hook = func(now vmfake.Step) error {
				if now == vmfake.StepMemory {
					close(entered)
					return errors.Join(machine.Wait(context.WithoutCancel(t.Context())), errors.New("the VMM is gone"))
				}
				return nil
			}
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			snapped := make(chan error, 1)
			go func() { snapped <- sb.Snapshot(ctx, "snap") }()
			<-entered
			if left {
				leave()
			}
			must(t, sb.Destroy(t.Context()))
			if err := <-snapped; !errors.Is(err, errDestroyed) {
				t.Errorf("Snapshot() = %v, want to hear that the sandbox is destroyed", err)
			}
			l.wantClean(t, m)
			wantSnapshots(t, m)
		})
	}
}

// silent is a machine whose VMM does not answer.
type silent struct {
	vm.Machine
	asked chan struct{} // closed when it is asked to go on
}

func (m silent) Resume(ctx context.Context) error {
	close(m.asked)
	<-ctx.Done()
	return context.Cause(ctx)
}

// Who destroys a sandbox does not wait for a VMM that does not answer when it is to go on.
func TestDestroyOfAMachineThatNeverGoesOn(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	run(t, m)
	sb, err := m.Create(t.Context(), wrenn.NewSandboxID(), small)
	must(t, err)
	mute := silent{sb.instance.Machine, make(chan struct{})}
	sb.instance.Machine = mute
	letGoOnNow(m, sb)
	<-mute.asked
	must(t, sb.Destroy(t.Context()))
	l.wantClean(t, m)
}

// A disk that the guest could not write would not boot.
func TestSnapshotOfAGuestThatCannotSync(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb := create(t, m)
	t.Setenv("PATH", script(t, "sync", "echo no space >&2; exit 1")+":"+os.Getenv("PATH"))
	err := sb.Snapshot(t.Context(), "snap")
	if wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "no space") {
		t.Errorf("Snapshot() = %v, want FailedPrecondition with what sync said", err)
	}
	wantSnapshots(t, m)
	wantRunning(t, l, sb)
}

// Two snapshots of one sandbox must not resume each other's machine.
func TestSnapshotsAtOnce(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb := create(t, m)
	var taken []vmfake.Step // guarded by the sandbox: one at a time
	var inside atomic.Int32
	l.hook = func(now vmfake.Step) error {
		taken = append(taken, now)
		switch now {
		case vmfake.StepPause:
			inside.Add(1)
		case vmfake.StepResume:
			inside.Add(-1)
		case vmfake.StepMemory:
			time.Sleep(50 * time.Millisecond) // an operation that is not kept out gets the time to begin
			if n := inside.Load(); n != 1 {
				t.Errorf("%d have paused the machine", n)
			}
		}
		return nil
	}
	names := []string{"a", "b", "c"}
	var want []vmfake.Step
	var wg sync.WaitGroup
	for _, name := range names {
		want = append(want, vmfake.StepPause, vmfake.StepMemory, vmfake.StepManifest, vmfake.StepResume)
		wg.Go(func() {
			if err := sb.Snapshot(t.Context(), name); err != nil {
				t.Errorf("snapshot %s: %v", name, err)
			}
		})
	}
	wg.Wait()
	if diff := cmp.Diff(want, taken); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	l.hook = nil
	wantSnapshots(t, m, names...)
	wantRunning(t, l, sb)
}

// Two that want one name: the slower one hears so, and spoils nothing.
func TestASnapshotNameThatIsTakenMeanwhile(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	slow, fast := create(t, m), create(t, m)
	must(t, l.inside(fast).Fill(t.Context(), "who", 'f'))
	var started atomic.Bool
	var published error
	l.hook = func(now vmfake.Step) error {
		if now == vmfake.StepMemory && started.CompareAndSwap(false, true) {
			published = fast.Snapshot(t.Context(), "snap")
		}
		return nil
	}
	if err := slow.Snapshot(t.Context(), "snap"); wrenn.CodeOf(err) != wrenn.AlreadyExists {
		t.Errorf("Snapshot() = %v, want AlreadyExists", err)
	}
	must(t, published)
	wantSnapshots(t, m, "snap")
	must(t, slow.Destroy(t.Context())) // of two slots, one for the restored
	restored, err := m.Restore(t.Context(), wrenn.NewSandboxID(), "snap")
	must(t, err)
	destroyLater(t, restored)
	if same, err := l.inside(restored).Filled(t.Context(), "who", 'f'); err != nil || !same {
		t.Errorf("the snapshot is not the faster one's: %v", err)
	}
}

// Who destroys a sandbox does not wait for its snapshot, which is given up.
func TestDestroyEndsASnapshot(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb := create(t, m)
	entered, leave := make(chan struct{}), make(chan struct{})
	l.hook = func(now vmfake.Step) error {
		if now == vmfake.StepMemory {
			close(entered)
			<-leave
		}
		return nil
	}
	snapped, gone := make(chan error, 1), make(chan error, 1)
	go func() { snapped <- sb.Snapshot(t.Context(), "snap") }()
	<-entered
	go func() { gone <- sb.Destroy(t.Context()) }()
	for deadline := time.Now().Add(patience); !unwanted(sb); time.Sleep(time.Millisecond) { // polling with a deadline
		if time.Now().After(deadline) {
			t.Fatal("Destroy does not give the snapshot up")
		}
	}
	close(leave)
	if err := <-snapped; !errors.Is(err, errDestroyed) {
		t.Errorf("Snapshot() = %v, want to hear that the sandbox is destroyed", err)
	}
	must(t, <-gone)
	l.wantClean(t, m)
	wantSnapshots(t, m)
}

// A destroy that is given up before its turn came changes nothing.
func TestADestroyThatIsGivenUp(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := create(t, m)
	must(t, sb.op.Lock(t.Context())) // as who is at work with it
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sb.Destroy(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Destroy() = %v", err)
	}
	sb.op.Unlock()
	_, err := sb.Checkpoint(t.Context(), "one", "")
	must(t, err)
}

func unwanted(sb *Sandbox) bool {
	sb.cancel.mu.Lock()
	defer sb.cancel.mu.Unlock()
	return sb.cancel.wanted > 0
}

// A named snapshot is what templates are made of. One that is removed stays for
// those that run from it, and for no other.
func TestEnsureFromASnapshot(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	maker := create(t, m)
	must(t, l.mark(t.Context(), maker, 'a'))
	must(t, maker.Snapshot(t.Context(), "template"))
	must(t, maker.Destroy(t.Context()))
	spec := wrenn.SandboxSpec{Template: "mine", Size: small, Build: "template"}
	sb := ensure(t, m, spec)
	l.wantMark(t, sb, 'a')
	must(t, m.RemoveSnapshot(t.Context(), "template", ""))
	wantSnapshots(t, m, "template")
	wantRemoved := func() {
		t.Helper()
		if _, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), spec); wrenn.CodeOf(err) != wrenn.NotFound {
			t.Errorf("Ensure() from a snapshot that was removed = %v, want NotFound", err)
		}
		if _, err := m.Restore(t.Context(), wrenn.NewSandboxID(), "template"); wrenn.CodeOf(err) != wrenn.NotFound {
			t.Errorf("Restore() of a snapshot that was removed = %v, want NotFound", err)
		}
	}
	wantRemoved()
	_, err := sb.Checkpoint(t.Context(), "one", "") // which looks at what the machine came from
	must(t, err)
	must(t, sb.Destroy(t.Context()))
	must(t, m.Collect(t.Context()))
	wantSnapshots(t, m)
	wantRemoved()
	l.wantClean(t, m)
}

// An agent that is rolled back finds the base that the newer one has let go, and keeps it.
func TestWarmOfAnAgentThatIsRolledBack(t *testing.T) {
	l := newLab(t)
	l.cfg.Guest.Name = "old"
	m := l.open(t)
	must(t, m.Warm(t.Context(), small))
	base := m.baseName(small)
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Size: small})
	must(t, err)
	l.cfg.Guest.Name = "new"
	m = l.restart(t, m)
	must(t, m.Warm(t.Context(), small))
	if !m.snapshots.Has(base) || slices.Contains(m.KeptSnapshots(), base) {
		t.Fatalf("%s is not one that only a sandbox needs: %v", base, m.KeptSnapshots())
	}
	l.cfg.Guest.Name = "old"
	m = l.restart(t, m)
	must(t, m.Warm(t.Context(), small))
	sb, err = m.Get(sb.ID())
	must(t, err)
	must(t, sb.Destroy(t.Context()))
	must(t, m.Collect(t.Context()))
	wantSnapshots(t, m, base)
	l.wantClean(t, m)
}
