//go:build root

package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/vmfake"
)

func TestLife(t *testing.T) {
	l := newLab(t)
	var steps []string
	l.cfg.Trace = func(_ context.Context, _ wrenn.SandboxID, step string, _ time.Duration) { steps = append(steps, step) }
	m := l.open(t)
	id := wrenn.NewSandboxID()
	sb, err := m.Create(t.Context(), id, small)
	must(t, err)
	if sb.ID() != id {
		t.Errorf("ID() = %s, want %s", sb.ID(), id)
	}
	res, err := sb.Guest().Exec(t.Context(), wrenn.ExecCommand{Cmd: "/bin/sh", Args: []string{"-c", "echo hello; exit 3"}})
	must(t, err)
	if got := string(res.Stdout); got != "hello\n" || res.ExitCode != 3 {
		t.Errorf("Exec() = %q, %d", got, res.ExitCode)
	}
	j, err := journal.Read(sb.dir())
	must(t, err)
	if j.Step != journal.StepRunning || j.Instance == nil || j.Other != nil || j.Instance.Slot.Owner != string(id) || j.Instance.Machine.ID != string(id) {
		t.Errorf("journal = %+v", j)
	}
	if left, err := m.Leftovers(); err != nil || len(left) != 2 {
		t.Errorf("Leftovers() of a running sandbox = %v, %v", left, err)
	}
	for range 2 {
		must(t, sb.Destroy(t.Context()))
	}
	l.wantClean(t, m)
	if got := strings.Join(steps, " "); got != "slot disk machine ready destroy" {
		t.Errorf("traced %q", got)
	}
}

func TestMalformedIDs(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	for _, id := range []wrenn.SandboxID{"", ".", "../up", "i/../../../x", "no-id"} {
		if _, err := m.Create(t.Context(), id, small); wrenn.CodeOf(err) != wrenn.Invalid {
			t.Errorf("Create(%q) = %v, want Invalid", id, err)
		}
	}
	l.wantClean(t, m)
}

func TestTheSameIDTwice(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	first := create(t, m)
	if _, err := m.Create(t.Context(), first.ID(), small); wrenn.CodeOf(err) != wrenn.AlreadyExists {
		t.Errorf("Create() = %v, want AlreadyExists", err)
	}
	wantAlive(t, first)
}

func wantAlive(t *testing.T, sb *Sandbox) {
	t.Helper()
	if res, err := sb.Guest().Exec(t.Context(), wrenn.ExecCommand{Cmd: "true"}); err != nil || res.ExitCode != 0 {
		t.Errorf("sandbox %s: Exec() = %+v, %v", sb.ID(), res, err)
	}
}

func TestFailuresLeaveNothing(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(*lab)
		code  wrenn.Code
		err   string
	}{
		{"no disk", func(l *lab) { l.cfg.Guest.RootFS += "-none" }, wrenn.Internal, "disk: open"},
		{"no kernel", func(l *lab) { l.cfg.Guest.Kernel.Image += "-none" }, wrenn.Internal, "kernel: open"},
		{"no agent", func(l *lab) { l.agent.mute, l.cfg.ReadyTimeout = true, 50*time.Millisecond }, wrenn.DeadlineExceeded, "did not answer within 50ms"},
		{"an agent that hangs", func(l *lab) { l.agent.stuck, l.cfg.ReadyTimeout = true, 2*time.Second }, wrenn.DeadlineExceeded, "did not answer within 2s"},
		{"a slot's directory in the way", func(l *lab) { l.cfg.RunDir += strings.Repeat("/long", 8) }, wrenn.Invalid, "60 bytes"},
		{vmfake.StepFiles, failAt(vmfake.StepFiles), wrenn.Internal, "injected"},
		{vmfake.StepLoad, failAt(vmfake.StepLoad), wrenn.Internal, "injected"},
		{vmfake.StepDisks, failAt(vmfake.StepDisks), wrenn.Internal, "injected"},
		{vmfake.StepProcess, failAt(vmfake.StepProcess), wrenn.Internal, "injected"},
		{vmfake.StepBoot, failAt(vmfake.StepBoot), wrenn.Internal, "injected"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			tc.spoil(l)
			m := l.open(t)
			_, err := m.Create(t.Context(), wrenn.NewSandboxID(), small)
			if wrenn.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("Create() = %v (%s), want %s with %q", err, wrenn.CodeOf(err), tc.code, tc.err)
			}
			l.wantClean(t, m)
		})
	}
}

func failAt(step vmfake.Step) func(*lab) {
	return func(l *lab) { l.hook = vmfake.FailAt(step) }
}

func TestNoSlot(t *testing.T) {
	l := newLab(t)
	l.network.Max = 1
	m := l.open(t)
	only := create(t, m)
	if _, err := m.Create(t.Context(), wrenn.NewSandboxID(), small); wrenn.CodeOf(err) != wrenn.Exhausted {
		t.Errorf("Create() = %v, want Exhausted", err)
	}
	wantAlive(t, only)
	must(t, only.Destroy(t.Context()))
	l.wantClean(t, m)
}

// A caller that goes away in the middle of a step leaves nothing.
func TestCanceledInTheMiddle(t *testing.T) {
	why := errors.New("the caller went away")
	for _, at := range append(vmfake.StartSteps(), "ready") {
		t.Run(at, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			l := newLab(t)
			l.agent.mute = true
			l.hook = func(now vmfake.Step) error {
				switch {
				case now == at:
					cancel(why)
				case now == vmfake.StepBoot && at == "ready":
					time.AfterFunc(10*time.Millisecond, func() { cancel(why) })
				}
				return nil
			}
			m := l.open(t)
			if _, err := m.Create(ctx, wrenn.NewSandboxID(), small); !errors.Is(err, why) {
				t.Errorf("Create() = %v, want the context's cause", err)
			}
			l.wantClean(t, m)
		})
	}
}

// A machine that ends before its agent answered is not waited for.
func TestAMachineThatDiesWhileBooting(t *testing.T) {
	l := newLab(t)
	l.world.Boot = func(g *vmfake.Guest) (func(), error) {
		return nil, errors.Join(g.Print("VFS: cannot mount root\n"), g.Panic(t.Context()))
	}
	m := l.open(t)
	_, err := m.Create(t.Context(), wrenn.NewSandboxID(), small)
	exit, ok := errors.AsType[*vm.ExitError](err)
	if !ok || exit.Reason != "guest panicked" || !strings.Contains(exit.Console, "cannot mount root") {
		t.Errorf("Create() = %v, want the reason of the machine's end", err)
	}
	l.wantClean(t, m)
}

// A slot must not get to another sandbox while a machine may still be in it.
func TestAMachineThatCannotBeStoppedKeepsItsSlot(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb := create(t, m)
	failAt(vmfake.StepStop)(l)
	if err := sb.Destroy(t.Context()); err == nil {
		t.Error("Destroy succeeded")
	}
	if s := l.cfg.Slots.Stats(); s.Used != 1 {
		t.Errorf("slots: %+v, want the sandbox's in use", s)
	}
	if j, err := journal.Read(sb.dir()); err != nil || j.Step != journal.StepDestroy || j.Instance == nil || j.Instance.Machine == nil {
		t.Errorf("journal: %+v, %v", j, err)
	}
	l.hook = nil
	must(t, sb.Destroy(t.Context()))
	l.wantClean(t, m)
}

// What cannot be undone is said.
func TestAFailedCreateThatLeavesSomethingSaysSo(t *testing.T) {
	l := newLab(t)
	l.hook = vmfake.FailAt(vmfake.StepStop)
	l.agent.mute, l.cfg.ReadyTimeout = true, 50*time.Millisecond
	m := l.open(t)
	_, err := m.Create(t.Context(), wrenn.NewSandboxID(), small)
	if err == nil || !strings.Contains(err.Error(), "did not answer") || !strings.Contains(err.Error(), "injected fault at stop") {
		t.Errorf("Create() = %v, want both reasons", err)
	}
	l.hook = nil
	l.crash(t)
	l.wantClean(t, l.open(t))
}

func TestDestroyNeverHitsTheNextOwnerOfAnID(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	first := create(t, m)
	must(t, first.Destroy(t.Context()))
	second, err := m.Create(t.Context(), first.ID(), small)
	must(t, err)
	destroyLater(t, second)
	must(t, first.Destroy(t.Context()))
	wantAlive(t, second)
	if j, err := journal.Read(second.dir()); err != nil || j.Step != journal.StepRunning {
		t.Errorf("journal: %+v, %v", j, err)
	}
	if _, err := os.Stat(second.instance.Disk()); err != nil {
		t.Error(err)
	}
}

func TestDestroyAtOnce(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb := create(t, m)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := sb.Destroy(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	l.wantClean(t, m)
}

func TestMachinesRunAsTheirOwnUsers(t *testing.T) {
	l := newLab(t)
	l.cfg.FirstUID = 700000
	seen := map[uint32]bool{}
	serve := l.world.Boot
	l.world.Boot = func(g *vmfake.Guest) (func(), error) {
		spec, err := g.Spec()
		if err != nil {
			return nil, err
		}
		if spec.UID != spec.GID || spec.UID < 700000 || spec.UID >= 700002 || seen[spec.UID] {
			t.Errorf("UID %d, GID %d", spec.UID, spec.GID)
		}
		seen[spec.UID] = true
		if filepath.Base(spec.Dir) != spec.ID || len(spec.Disks) != 1 {
			t.Errorf("spec = %+v", spec)
		}
		return serve(g)
	}
	m := l.open(t)
	create(t, m)
	create(t, m)
	if len(seen) != 2 {
		t.Errorf("users: %v", seen)
	}
}
