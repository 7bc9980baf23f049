//go:build root

package sandbox

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm/vmfake"
)

func TestPauseGivesEverythingBackAndResumeBringsItBack(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := ensure(t, m, wrenn.SandboxSpec{Size: small, EndOfLife: wrenn.EndOfLife{Timeout: time.Hour}})
	disk := sb.instance.Disk()
	for n := range 3 {
		mark := byte('a' + n)
		must(t, l.mark(t.Context(), sb, mark))
		for range 2 {
			must(t, sb.Pause(t.Context()))
			wantStatus(t, sb, StatusPaused, "")
		}
		if n, used := len(l.world.Running()), l.cfg.Slots.Stats().Used; n != 0 || used != 0 {
			t.Errorf("paused, it has %d machines and %d slots", n, used)
		}
		if _, err := os.Stat(disk); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("its disk is still there: %v", err)
		}
		if _, err := sb.Use(t.Context()); wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "resume it first") {
			t.Errorf("Use() = %v, want FailedPrecondition", err)
		}
		for range 2 {
			must(t, sb.Resume(t.Context()))
			wantStatus(t, sb, StatusRunning, "")
		}
		wantAlive(t, sb)
		l.wantMark(t, sb, mark)
		must(t, m.Collect(t.Context()))
		if ids := m.snapshots.IDs(); len(ids) != 1 { // over which its memory is mapped
			t.Errorf("snapshots: %q, want one", ids)
		}
		disk = sb.instance.Disk()
	}
	must(t, sb.Destroy(t.Context()))
	must(t, m.Collect(t.Context()))
	wantSnapshots(t, m)
	l.wantClean(t, m)
}

// Whatever goes wrong before the snapshot exists, the sandbox keeps running.
func TestAPauseThatFails(t *testing.T) {
	for name, spoil := range map[string]func(*testing.T, *lab, *Sandbox){
		vmfake.StepPause:    func(_ *testing.T, l *lab, _ *Sandbox) { failAt(vmfake.StepPause)(l) },
		vmfake.StepMemory:   func(_ *testing.T, l *lab, _ *Sandbox) { failAt(vmfake.StepMemory)(l) },
		vmfake.StepManifest: func(_ *testing.T, l *lab, _ *Sandbox) { failAt(vmfake.StepManifest)(l) },
		"disk": func(t *testing.T, _ *lab, sb *Sandbox) {
			t.Helper()
			must(t, os.Rename(sb.instance.Disk(), sb.instance.Disk()+".away"))
			t.Cleanup(func() { _ = os.Rename(sb.instance.Disk()+".away", sb.instance.Disk()) }) // for Destroy, which does without too
		},
		"sync": func(t *testing.T, _ *lab, _ *Sandbox) {
			t.Helper()
			t.Setenv("PATH", script(t, "sync", "exit 1")+":"+os.Getenv("PATH"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			m := l.open(t)
			t.Cleanup(m.Close)
			sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
			spoil(t, l, sb)
			if err := sb.Pause(t.Context()); err == nil {
				t.Error("Pause() succeeded")
			}
			l.hook = nil
			wantStatus(t, sb, StatusRunning, "")
			wantAlive(t, sb)
			wantSnapshots(t, m)
		})
	}
}

// A machine that does not go is no reason to run on: the sandbox is paused, and
// the rest is removed later.
func TestAPauseWhoseMachineCannotBeStopped(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
	must(t, l.mark(t.Context(), sb, 'a'))
	failAt(vmfake.StepStop)(l)
	if err := sb.Pause(t.Context()); err == nil {
		t.Error("Pause() succeeded")
	}
	wantStatus(t, sb, StatusPaused, "")
	if err := sb.Resume(t.Context()); err == nil { // never both
		t.Error("Resume() succeeded")
	}
	l.hook = nil
	must(t, sb.Pause(t.Context()))
	l.wantNoMachine(t)
	must(t, sb.Resume(t.Context()))
	l.wantMark(t, sb, 'a')
}

// wantNoMachine fails when a machine or a slot is left.
func (l *lab) wantNoMachine(t *testing.T) {
	t.Helper()
	if n, used := len(l.world.Running()), l.cfg.Slots.Stats().Used; n != 0 || used != 0 {
		t.Errorf("%d machines and %d slots are left", n, used)
	}
}

func TestAResumeThatFails(t *testing.T) {
	for name, spoil := range map[string]func(*lab){
		vmfake.StepLoad: failAt(vmfake.StepLoad),
		vmfake.StepBoot: failAt(vmfake.StepBoot),
		"no agent":      func(l *lab) { l.agent.mute = true },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			m := l.open(t)
			t.Cleanup(m.Close)
			sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
			must(t, l.mark(t.Context(), sb, 'a'))
			must(t, sb.Pause(t.Context()))
			spoil(l)
			ready := m.cfg.ReadyTimeout
			m.cfg.ReadyTimeout = 50 * time.Millisecond
			if err := sb.Resume(t.Context()); err == nil {
				t.Error("Resume() succeeded")
			}
			wantStatus(t, sb, StatusPaused, "")
			l.wantNoMachine(t)
			l.hook, l.agent.mute, m.cfg.ReadyTimeout = nil, false, ready
			must(t, sb.Resume(t.Context()))
			wantAlive(t, sb)
			l.wantMark(t, sb, 'a')
		})
	}
}

// To a control plane NotFound of these means that the sandbox is lost: what is
// missing in a guest, or of a snapshot, must not read so.
func TestWhatASandboxMissesDoesNotMakeItLost(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
	want := func(doing, text string, err error) {
		t.Helper()
		if wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want FailedPrecondition with %q", doing, err, text)
		}
	}
	fork := func() error {
		copies, err := sb.Fork(t.Context(), []wrenn.SandboxID{wrenn.NewSandboxID()}, nil)
		must(t, err)
		return copies[0].Err
	}
	path := os.Getenv("PATH")
	t.Setenv("PATH", t.TempDir())
	want("pause", "'sync' not found", sb.Pause(t.Context()))
	want("fork", "'sync' not found", fork())
	_, err := sb.Checkpoint(t.Context(), "one", "")
	want("checkpoint", "'sync' not found", err)
	t.Setenv("PATH", path)
	wantStatus(t, sb, StatusRunning, "")
	wantAlive(t, sb)

	must(t, sb.Pause(t.Context()))
	l.hook = func(vmfake.Step) error { return wrenn.Errorf(wrenn.NotFound, "404 from the guest") }
	want("resume", "404 from the guest", sb.Resume(t.Context()))
	l.hook = nil
	snapshot := sb.journal.Snapshot
	sb.journal.Snapshot, sb.journal.Checkpoints = "gone", []wrenn.Checkpoint{{ID: "gone"}}
	want("resume without its snapshot", "gone", sb.Resume(t.Context()))
	want("fork without its snapshot", "gone", fork())
	want("restore without its snapshot", "gone", sb.RestoreCheckpoint(t.Context(), "gone"))
	sb.journal.Snapshot, sb.journal.Checkpoints = snapshot, nil
	wantStatus(t, sb, StatusPaused, "")
	must(t, sb.Resume(t.Context()))
	wantAlive(t, sb)
}

// A snapshot that is damaged is refused by name, and harms nothing else.
func TestResumeOfADamagedSnapshot(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
	other := ensure(t, m, wrenn.SandboxSpec{Size: small})
	must(t, errors.Join(sb.Pause(t.Context()), other.Pause(t.Context())))
	memory := filepath.Join(snapshotDir(m), sb.journal.Snapshot, "machine", "memory")
	must(t, os.Truncate(memory, 1))
	for range 2 {
		err := sb.Resume(t.Context())
		if wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), sb.journal.Snapshot) || !strings.Contains(err.Error(), "machine/memory") {
			t.Errorf("Resume() = %v, want FailedPrecondition that names the file", err)
		}
		wantStatus(t, sb, StatusPaused, "")
	}
	must(t, other.Resume(t.Context()))
	wantAlive(t, other)
}

// What PauseAll leaves is on the disk alone, and the next agent resumes it.
func TestPauseAll(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	for n := range 3 {
		sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Size: small, EndOfLife: wrenn.EndOfLife{Timeout: time.Hour}})
		must(t, err)
		if n == 0 { // one is paused already
			must(t, sb.Pause(t.Context()))
		}
	}
	for range 2 {
		must(t, m.PauseAll(t.Context()))
		if n, live := len(l.world.Running()), m.Live(); n != 0 || live != 0 {
			t.Errorf("%d machines run, %d sandboxes are live", n, live)
		}
	}
	next := l.restart(t, m)
	all := next.listed()
	for _, info := range all {
		sb, err := next.Get(info.ID)
		must(t, err)
		must(t, sb.Resume(t.Context()))
		wantAlive(t, sb)
		must(t, sb.Destroy(t.Context()))
	}
	if len(all) != 3 {
		t.Errorf("%d sandboxes are left, want 3", len(all))
	}
}

func TestPausedSandboxesTakeNoMemory(t *testing.T) {
	l := newLab(t)
	l.cfg.Limits = Limits{Sandboxes: 2, MemoryMiB: small.MemoryMiB}
	m := l.open(t)
	t.Cleanup(m.Close)
	first := ensure(t, m, wrenn.SandboxSpec{Size: small})
	must(t, first.Pause(t.Context()))
	second := ensure(t, m, wrenn.SandboxSpec{Size: small})
	if err := first.Resume(t.Context()); wrenn.CodeOf(err) != wrenn.Exhausted || !strings.Contains(err.Error(), "stays paused") {
		t.Errorf("Resume() = %v, want Exhausted", err)
	}
	wantStatus(t, first, StatusPaused, "")
	must(t, second.Pause(t.Context()))
	must(t, first.Resume(t.Context()))
	if _, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Size: small}); wrenn.CodeOf(err) != wrenn.Exhausted {
		t.Errorf("Ensure() of a third = %v, want Exhausted", err)
	}
}

// A restore to a checkpoint has two machines until the new one answers.
func TestRestoreNeedsMemoryForASecondMachine(t *testing.T) {
	l := newLab(t)
	l.cfg.Limits = Limits{MemoryMiB: 2*small.MemoryMiB - 1}
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
	_, err := sb.Checkpoint(t.Context(), "one", "")
	must(t, err)
	if err := sb.RestoreCheckpoint(t.Context(), "one"); wrenn.CodeOf(err) != wrenn.Exhausted || !strings.Contains(err.Error(), "stays running") {
		t.Errorf("RestoreCheckpoint() = %v, want Exhausted", err)
	}
	wantAlive(t, sb)
	must(t, sb.Pause(t.Context()))
	must(t, sb.RestoreCheckpoint(t.Context(), "one")) // a paused one has none
}

func TestAutoPauseAndOneWakeForAll(t *testing.T) {
	l := newLab(t)
	var restores atomic.Int32
	l.hook = func(s vmfake.Step) error {
		if s == vmfake.StepLoad {
			restores.Add(1)
		}
		return nil
	}
	m := l.open(t)
	run(t, m)
	sb := ensure(t, m, wrenn.SandboxSpec{Size: small, EndOfLife: wrenn.EndOfLife{Timeout: 100 * time.Millisecond, OnTimeout: wrenn.PauseOnTimeout}, AutoResume: true})
	must(t, l.mark(t.Context(), sb, 'a'))
	wantStatus(t, sb, StatusPaused, "")
	restores.Store(0)

	// A caller that leaves ends the wait of no other caller.
	gone, leave := context.WithCancelCause(t.Context())
	why := errors.New("gone")
	leave(why)
	if _, err := sb.Use(gone); !errors.Is(err, why) {
		t.Errorf("Use() = %v, want the context's cause", err)
	}
	wantStatus(t, sb, StatusPaused, "")
	restores.Store(0)

	var callers sync.WaitGroup
	for range 100 {
		callers.Go(func() {
			release, err := sb.Use(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			defer release()
			wantAlive(t, sb)
		})
	}
	callers.Wait()
	if n := restores.Load(); n != 1 {
		t.Errorf("%d restores for a hundred callers", n)
	}
	wantStatus(t, sb, StatusPaused, "") // again
}

// A full disk must not cost a sandbox that is not used for a while.
func TestAnAutoPauseThatFailsDestroysNothing(t *testing.T) {
	l := newLab(t)
	failed := make(chan struct{})
	var once sync.Once
	l.hook = func(s vmfake.Step) error {
		if s == vmfake.StepMemory {
			defer once.Do(func() { close(failed) })
			return errors.New("no space")
		}
		return nil
	}
	m := l.open(t)
	run(t, m)
	sb := ensure(t, m, wrenn.SandboxSpec{Size: small, EndOfLife: wrenn.EndOfLife{Timeout: 50 * time.Millisecond, OnTimeout: wrenn.PauseOnTimeout}})
	select {
	case <-failed:
	case <-time.After(patience):
		t.Fatal("it is not tried to pause it")
	}
	wantStatus(t, sb, StatusRunning, "")
	wantAlive(t, sb)
	if at, ok := sb.state.dueAt(); !ok || time.Until(at) < pauseAgain/2 {
		t.Errorf("it is tried again at %v, %v", at, ok)
	}
}

func TestFork(t *testing.T) {
	l := newLab(t)
	l.network.Max = 4
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := ensure(t, m, wrenn.SandboxSpec{Template: "base", Size: small, EndOfLife: wrenn.EndOfLife{Timeout: time.Hour, OnTimeout: wrenn.PauseOnTimeout}, AutoResume: true})
	must(t, l.mark(t.Context(), sb, 'a'))
	ids := []wrenn.SandboxID{wrenn.NewSandboxID(), wrenn.NewSandboxID(), wrenn.NewSandboxID(), wrenn.NewSandboxID()}
	copies, err := sb.Fork(t.Context(), ids, nil)
	must(t, err)
	for i, c := range copies { // of four slots three are free
		if c.ID != ids[i] {
			t.Errorf("copy %d is %s, want %s", i, c.ID, ids[i])
		}
		if c.Err == nil {
			destroyLater(t, c.Sandbox)
		}
	}
	failed := slices.IndexFunc(copies, func(f Forked) bool { return f.Err != nil })
	if failed < 0 || wrenn.CodeOf(copies[failed].Err) != wrenn.Exhausted || len(l.world.Running()) != 4 {
		t.Fatalf("copies: %+v with %d machines, want three and one error for lack of a slot", copies, len(l.world.Running()))
	}
	if _, err := m.Get(ids[failed]); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("of the failed copy is left: %v", err)
	}
	must(t, l.mark(t.Context(), sb, 'b'))
	for _, c := range copies {
		if c.Err != nil {
			continue
		}
		wantAlive(t, c.Sandbox)
		l.wantMark(t, c.Sandbox, 'a')
		got, want := c.Sandbox.Info(), sb.Info()
		if got.Template != want.Template || got.Size != want.Size || got.Timeout != want.Timeout || c.Sandbox.request.OnTimeout != wrenn.PauseOnTimeout || !c.Sandbox.request.AutoResume {
			t.Errorf("copy is %+v, want it as %+v", got, want)
		}
	}
	wantAlive(t, sb)

	// Again, after a lost answer: those that exist stay.
	must(t, sb.Destroy(t.Context())) // makes room, and is not needed for existing copies
	ids = slices.Delete(ids, failed, failed+1)
	again, err := sb.Fork(t.Context(), ids, nil)
	must(t, err)
	for _, c := range again {
		if c.Err != nil {
			t.Errorf("repeated: %v", c.Err)
			continue
		}
		l.wantMark(t, c.Sandbox, 'a')
	}
	must(t, m.Collect(t.Context()))
	if n := len(m.snapshots.IDs()); n != 1 { // over which the copies' memory is mapped
		t.Errorf("%d snapshots, want one", n)
	}
	must(t, m.DestroyAll(t.Context()))
	must(t, m.Collect(t.Context()))
	wantSnapshots(t, m)
	l.wantClean(t, m)
}

func TestForkOfAPausedSandboxLetsItSleep(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
	must(t, l.mark(t.Context(), sb, 'a'))
	must(t, sb.Pause(t.Context()))
	copies, err := sb.Fork(t.Context(), []wrenn.SandboxID{wrenn.NewSandboxID()}, nil)
	must(t, errors.Join(err, copies[0].Err))
	destroyLater(t, copies[0].Sandbox)
	l.wantMark(t, copies[0].Sandbox, 'a')
	wantStatus(t, sb, StatusPaused, "")
}

// TestForkOfACheckpoint: the copies are as the sandbox was then, while it runs and while
// it is paused.
func TestForkOfACheckpoint(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := create(t, m)
	must(t, l.mark(t.Context(), sb, 'a'))
	cp, err := sb.Checkpoint(t.Context(), "", "then")
	must(t, err)
	must(t, l.mark(t.Context(), sb, 'b'))
	for range 2 {
		copies, err := sb.ForkBy(t.Context(), wrenn.ForkSpec{IDs: []wrenn.SandboxID{wrenn.NewSandboxID()}, Checkpoint: cp.ID})
		must(t, errors.Join(err, copies[0].Err))
		l.wantMark(t, copies[0].Sandbox, 'a')
		must(t, copies[0].Sandbox.Destroy(t.Context()))
		must(t, sb.Pause(t.Context()))
	}
	copies, err := sb.ForkBy(t.Context(), wrenn.ForkSpec{IDs: []wrenn.SandboxID{wrenn.NewSandboxID()}, Checkpoint: wrenn.NewCheckpointID()})
	must(t, err)
	if wrenn.CodeOf(copies[0].Err) != wrenn.NotFound {
		t.Errorf("a copy of no checkpoint: %v", copies[0].Err)
	}
	must(t, sb.Resume(t.Context()))
	l.wantMark(t, sb, 'b')
	must(t, sb.Destroy(t.Context()))
	must(t, m.Collect(t.Context()))
	wantSnapshots(t, m)
}

func TestForksThatCannotBe(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb, other := create(t, m), create(t, m)
	one := wrenn.NewSandboxID()
	for name, ids := range map[string][]wrenn.SandboxID{
		"none": nil, "twice": {one, one}, "itself": {sb.ID()}, "no id": {"x"}, "too many": make([]wrenn.SandboxID, wrenn.MaxForks+1),
	} {
		if _, err := sb.Fork(t.Context(), ids, nil); wrenn.CodeOf(err) != wrenn.Invalid {
			t.Errorf("%s: Fork() = %v, want Invalid", name, err)
		}
	}
	copies, err := sb.Fork(t.Context(), []wrenn.SandboxID{other.ID()}, nil)
	if err != nil || wrenn.CodeOf(copies[0].Err) != wrenn.AlreadyExists {
		t.Errorf("Fork() into another's id = %+v, %v; want AlreadyExists", copies, err)
	}
	failAt(vmfake.StepMemory)(l)
	copies, err = sb.Fork(t.Context(), []wrenn.SandboxID{one}, nil)
	if err != nil || copies[0].Err == nil {
		t.Errorf("Fork() whose snapshot fails = %+v, %v", copies, err)
	}
	l.hook = nil
	wantAlive(t, sb)
	must(t, m.Collect(t.Context()))
	wantSnapshots(t, m)
}

// Checkpoints are a tree: to go back keeps the other branch.
func TestCheckpoints(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Template: "base", Size: small})
	must(t, err)
	marks := map[wrenn.CheckpointID]byte{}
	check := func(id wrenn.CheckpointID, mark byte) {
		t.Helper()
		must(t, l.mark(t.Context(), sb, mark))
		c, err := sb.Checkpoint(t.Context(), id, "point "+string(id))
		must(t, err)
		if c.ID != id || c.CreatedAt.IsZero() || c.SizeBytes <= 0 {
			t.Errorf("checkpoint = %+v", c)
		}
		marks[id] = mark
	}
	back := func(id wrenn.CheckpointID) {
		t.Helper()
		must(t, sb.RestoreCheckpoint(t.Context(), id))
		wantAlive(t, sb)
		l.wantMark(t, sb, marks[id])
	}
	check("one", 'a')
	check("two", 'b')
	back("one")
	check("three", 'c')
	if again, err := sb.Checkpoint(t.Context(), "three", "another"); err != nil || again.Name != "point three" {
		t.Errorf("a repeated Checkpoint() = %+v, %v", again, err)
	}
	wantParents(t, sb, "three", map[string]string{"one": "", "two": "one", "three": "one"})
	back("two") // the other branch
	wantParents(t, sb, "two", map[string]string{"one": "", "two": "one", "three": "one"})

	m = l.restart(t, m)
	sb, err = m.Get(sb.ID())
	must(t, err)
	destroyLater(t, sb)
	wantParents(t, sb, "two", map[string]string{"one": "", "two": "one", "three": "one"})
	back("three")
	must(t, sb.DeleteCheckpoint(t.Context(), "one"))
	must(t, sb.DeleteCheckpoint(t.Context(), "one"))
	wantParents(t, sb, "three", map[string]string{"two": "", "three": ""})
	must(t, m.Collect(t.Context()))
	wantSnapshots(t, m, "three", "two")

	// A paused one stays paused.
	must(t, sb.Pause(t.Context()))
	must(t, sb.RestoreCheckpoint(t.Context(), "two"))
	wantStatus(t, sb, StatusPaused, "")
	must(t, sb.Resume(t.Context()))
	l.wantMark(t, sb, 'b')
	if err := sb.RestoreCheckpoint(t.Context(), "one"); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("RestoreCheckpoint() of a deleted one = %v, want NotFound", err)
	}
	must(t, sb.Destroy(t.Context()))
	must(t, m.Collect(t.Context()))
	wantSnapshots(t, m)
	l.wantClean(t, m)
}

// A checkpoint owns what no other has, and blocks that several have count once.
func TestCheckpointsAreMeasured(t *testing.T) {
	l := newLab(t)
	l.cfg.StateDir = testkit.XFS(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
	for _, id := range []wrenn.CheckpointID{"one", "two"} {
		_, err := sb.Checkpoint(t.Context(), id, "")
		must(t, err)
	}
	measure := func() wrenn.Checkpoints {
		t.Helper()
		all := sb.Checkpoints()
		sb.MeasureCheckpoints(t.Context(), &all)
		if all.DiskBytes == nil {
			t.Fatalf("not measured: %+v", all)
		}
		return all
	}
	all := measure()
	sizes, own := int64(0), int64(0)
	for _, c := range all.List {
		if c.OwnBytes == nil || *c.OwnBytes >= c.SizeBytes {
			t.Fatalf("it shares the disk, and owns less than its size: %+v", c)
		}
		sizes, own = sizes+c.SizeBytes, own+*c.OwnBytes
	}
	if n := *all.DiskBytes; n >= sizes || n <= own {
		t.Errorf("together they take %d bytes, of sizes %d and own %d", n, sizes, own)
	}
	must(t, sb.DeleteCheckpoint(t.Context(), "two"))
	must(t, m.Collect(t.Context()))
	if after := measure(); *all.DiskBytes-*after.DiskBytes < *all.List[1].OwnBytes {
		t.Errorf("the deletion of one that owns %d left %d of %d bytes", *all.List[1].OwnBytes, *after.DiskBytes, *all.DiskBytes)
	}
	must(t, sb.Destroy(t.Context()))
}

func wantParents(t *testing.T, sb *Sandbox, head string, want map[string]string) {
	t.Helper()
	all := sb.Checkpoints()
	list, got := all.List, all.Head
	parents := map[string]string{}
	for _, c := range list {
		parents[string(c.ID)] = string(c.Parent)
	}
	if diff := cmp.Diff(want, parents); diff != "" || string(got) != head {
		t.Errorf("it goes on from %q, want %q; parents (-want +got):\n%s", got, head, diff)
	}
}

// Who cannot go back goes on.
func TestARestoreThatFails(t *testing.T) {
	for name, spoil := range map[string]func(*testing.T, *lab, *Manager){
		"load": func(_ *testing.T, l *lab, _ *Manager) { failAt(vmfake.StepLoad)(l) },
		"no agent": func(_ *testing.T, l *lab, m *Manager) {
			l.agent.mute, m.cfg.ReadyTimeout = true, 50*time.Millisecond
		},
		"no slot": func(t *testing.T, _ *lab, m *Manager) {
			t.Helper()
			create(t, m)
		},
		"damaged": func(t *testing.T, _ *lab, m *Manager) {
			t.Helper()
			must(t, os.Truncate(filepath.Join(snapshotDir(m), "one", "root.ext4"), 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			m := l.open(t)
			t.Cleanup(m.Close)
			sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
			_, err := sb.Checkpoint(t.Context(), "one", "")
			must(t, err)
			must(t, l.mark(t.Context(), sb, 'z'))
			printed := l.world.Guest(sb.instance.Slot.Namespace())
			must(t, printed.Print("before\n"))
			spoil(t, l, m)
			if err := sb.RestoreCheckpoint(t.Context(), "one"); err == nil {
				t.Error("RestoreCheckpoint() succeeded")
			}
			l.hook = nil
			must(t, printed.Print("after\n"))
			wantConsole(t, m, sb.ID(), "before\nafter\n", true)
			wantStatus(t, sb, StatusRunning, "")
			wantAlive(t, sb)
			l.wantMark(t, sb, 'z')
		})
	}
}

func TestAdoptPaused(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Template: "base", Size: small, EndOfLife: wrenn.EndOfLife{Timeout: time.Hour, OnTimeout: wrenn.PauseOnTimeout}, AutoResume: true})
	must(t, err)
	must(t, l.mark(t.Context(), sb, 'a'))
	must(t, sb.Pause(t.Context()))
	m = l.restart(t, m)
	sb, err = m.Get(sb.ID())
	must(t, err)
	destroyLater(t, sb)
	wantStatus(t, sb, StatusPaused, "")
	if m.Live() != 0 {
		t.Errorf("%d live sandboxes, want none", m.Live())
	}
	release, err := sb.Use(t.Context()) // wakes it
	must(t, err)
	defer release()
	l.wantMark(t, sb, 'a')
	if sb.request.OnTimeout != wrenn.PauseOnTimeout || sb.Info().Timeout != time.Hour {
		t.Errorf("request = %+v", sb.request)
	}
}

// The disk is filled to the last byte at any moment of a pause: the sandbox
// runs on, and what was there still is.
func TestAPauseOnAFullDisk(t *testing.T) {
	for _, at := range []vmfake.Step{"before", vmfake.StepPause, vmfake.StepMemory, vmfake.StepManifest} {
		t.Run(at, func(t *testing.T) {
			l := newLab(t)
			l.cfg.StateDir = smallFileSystem(t)
			m := l.open(t)
			t.Cleanup(m.Close)
			sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
			other := ensure(t, m, wrenn.SandboxSpec{Size: small})
			must(t, l.mark(t.Context(), other, 'o'))
			must(t, other.Pause(t.Context()))
			must(t, l.mark(t.Context(), sb, 'a'))
			_, err := sb.Checkpoint(t.Context(), "one", "")
			must(t, err)
			before := m.snapshots.IDs()

			filler := filepath.Join(l.cfg.StateDir, "filler")
			fillAt := func(now vmfake.Step) error {
				if now == at {
					fill(t, filler)
				}
				return nil
			}
			must(t, fillAt("before"))
			l.hook = fillAt
			if err := sb.Pause(t.Context()); wrenn.CodeOf(err) != wrenn.Exhausted || !strings.Contains(err.Error(), "disk is full") {
				t.Errorf("Pause() = %v, want Exhausted", err)
			}
			wantStatus(t, sb, StatusRunning, "")
			wantAlive(t, sb)
			l.wantMark(t, sb, 'a')
			if diff := cmp.Diff(before, m.snapshots.IDs()); diff != "" {
				t.Errorf("snapshots (-before +after):\n%s", diff)
			}

			l.hook = nil
			must(t, os.Remove(filler))
			must(t, sb.Pause(t.Context()))
			must(t, errors.Join(sb.RestoreCheckpoint(t.Context(), "one"), sb.Resume(t.Context()), other.Resume(t.Context())))
			l.wantMark(t, sb, 'a')
			l.wantMark(t, other, 'o')
		})
	}
}

// What gives space back works when there is none: it must be noted first.
func TestRemovalsOnAFullDisk(t *testing.T) {
	l := newLab(t)
	l.cfg.StateDir = smallFileSystem(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
	_, err := sb.Checkpoint(t.Context(), "one", "")
	must(t, err)
	must(t, sb.Snapshot(t.Context(), "mine"))
	other := ensure(t, m, wrenn.SandboxSpec{Size: small})
	filler := filepath.Join(l.cfg.StateDir, "filler")
	for what, remove := range map[string]func() error{
		"a checkpoint": func() error { return sb.DeleteCheckpoint(t.Context(), "one") },
		"a snapshot":   func() error { return m.RemoveSnapshot(t.Context(), "mine", "") },
		"a sandbox":    func() error { return other.Destroy(t.Context()) },
	} {
		fill(t, filler)
		if err := remove(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		must(t, m.Collect(t.Context()))
		if _, err := os.Stat(filepath.Join(l.cfg.StateDir, "reserve")); err != nil {
			t.Errorf("after %s: no space is set aside again: %v", what, err)
		}
	}
	wantSnapshots(t, m)
	noted, err := journal.Read(sb.dir())
	must(t, err)
	if len(noted.Checkpoints) > 0 {
		t.Errorf("the journal says %v", noted.Checkpoints)
	}
	must(t, os.Remove(filler))
	wantAlive(t, sb)
}

// smallFileSystem mounts an XFS of the least size that mkfs makes.
func smallFileSystem(t *testing.T) string {
	t.Helper()
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 300<<20))
	for _, args := range [][]string{{"mkfs.xfs", "-q", "-m", "reflink=1", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// fill writes until nothing more fits.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	for _, size := range []int{1 << 20, 4096, 1} {
		for err = nil; err == nil; {
			if _, err = f.Write(make([]byte, size)); err == nil {
				err = f.Sync() // what is delayed may find no place
			}
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("fill: %v", err)
		}
	}
}
