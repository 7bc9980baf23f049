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
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/vmfake"
)

// run runs the manager's loop until the test ends.
func run(t *testing.T, m *Manager) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		must(t, <-done)
		m.Close()
	})
}

func ensure(t *testing.T, m *Manager, spec wrenn.SandboxSpec) *Sandbox {
	t.Helper()
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), spec)
	must(t, err)
	destroyLater(t, sb)
	return sb
}

func wantStatus(t *testing.T, sb *Sandbox, want Status, reason string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for sb.Info().Status != want {
		if time.Now().After(deadline) {
			t.Fatalf("sandbox is %+v, want %s", sb.Info(), want)
		}
		time.Sleep(5 * time.Millisecond) // polling with a deadline
	}
	if got := sb.Info().Reason; !strings.Contains(got, reason) {
		t.Errorf("reason = %q, want %q in it", got, reason)
	}
}

func TestEnsureAtOnceMakesOne(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	id, spec := wrenn.NewSandboxID(), wrenn.SandboxSpec{Template: "base", Size: small}
	boxes := make([]*Sandbox, 5)
	var wg sync.WaitGroup
	for i := range boxes {
		wg.Go(func() {
			var err error
			if boxes[i], err = m.Ensure(t.Context(), id, spec); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(slices.Compact(boxes)) != 1 || len(l.world.Running()) != 1 {
		t.Errorf("got %v and %d machines, want one", boxes, len(l.world.Running()))
	}
	other := spec
	other.MemoryMiB *= 2
	if _, err := m.Ensure(t.Context(), id, other); wrenn.CodeOf(err) != wrenn.AlreadyExists {
		t.Errorf("Ensure() of another size = %v, want AlreadyExists", err)
	}
	must(t, boxes[0].Destroy(t.Context()))
	l.wantClean(t, m)
}

// A caller that waits for a sandbox which another caller fails to make makes it itself.
func TestEnsureAfterAFailedMaker(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	entered, leave := make(chan struct{}), make(chan struct{})
	var once sync.Once
	l.hook = func(now vmfake.Step) error {
		err := error(nil)
		if now == vmfake.StepLoad {
			once.Do(func() {
				close(entered)
				<-leave
				err = errors.New("injected")
			})
		}
		return err
	}
	id, spec := wrenn.NewSandboxID(), wrenn.SandboxSpec{Size: small}
	failed := make(chan error, 1)
	go func() {
		_, err := m.Ensure(t.Context(), id, spec)
		failed <- err
	}()
	<-entered
	second := make(chan *Sandbox, 1)
	go func() {
		sb, err := m.Ensure(t.Context(), id, spec)
		if err != nil {
			t.Error(err)
		}
		second <- sb
	}()
	close(leave)
	if err := <-failed; err == nil {
		t.Error("the first Ensure succeeded")
	}
	if sb := <-second; sb != nil {
		wantAlive(t, sb)
		must(t, sb.Destroy(t.Context()))
	}
	l.wantClean(t, m)
}

func TestDestroyGivesUpALaunch(t *testing.T) {
	l := newLab(t)
	l.agent.mute = true
	m := l.open(t)
	t.Cleanup(m.Close)
	booted := make(chan struct{})
	l.hook = func(now vmfake.Step) error {
		if now == vmfake.StepBoot {
			close(booted)
		}
		return nil
	}
	id := wrenn.NewSandboxID()
	made := make(chan error, 1)
	go func() {
		_, err := m.Ensure(t.Context(), id, wrenn.SandboxSpec{Size: small})
		made <- err
	}()
	<-booted
	sb, err := m.Get(id)
	must(t, err)
	must(t, sb.Destroy(t.Context()))
	if err := <-made; wrenn.CodeOf(err) == "" {
		t.Error("Ensure() succeeded")
	}
	l.wantClean(t, m)
}

func TestUnusedSandboxesEnd(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	run(t, m)
	sb := ensure(t, m, wrenn.SandboxSpec{Size: small, EndOfLife: wrenn.EndOfLife{Timeout: 100 * time.Millisecond}})
	wantStatus(t, sb, StatusStopped, "not used for 100ms")
	if len(l.world.Running()) != 0 || l.cfg.Slots.Stats().Used != 0 {
		t.Error("it still has a machine or a slot")
	}
	if _, err := sb.Use(t.Context()); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("Use() = %v, want FailedPrecondition", err)
	}
	if _, err := m.Ensure(t.Context(), sb.ID(), wrenn.SandboxSpec{Size: small}); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("Ensure() of an ended one = %v, want FailedPrecondition", err)
	}
	must(t, sb.Destroy(t.Context()))
	if inv := m.Inventory(); len(inv.Sandboxes) != 0 {
		t.Errorf("inventory after Destroy = %+v", inv)
	}
	l.wantClean(t, m)
}

// What goes on in a sandbox, a pause, and a longer time keep it.
func TestWhatKeepsASandbox(t *testing.T) {
	const short = 50 * time.Millisecond
	for name, keep := range map[string]func(*testing.T, *Sandbox) (release func()){
		"use": func(t *testing.T, sb *Sandbox) func() {
			t.Helper()
			release, err := sb.Use(t.Context())
			must(t, err)
			return release
		},
		"pause": func(t *testing.T, sb *Sandbox) func() {
			t.Helper()
			must(t, sb.Pause(t.Context()))
			return func() { must(t, sb.Resume(t.Context())) }
		},
		"more time": func(t *testing.T, sb *Sandbox) func() {
			t.Helper()
			must(t, sb.Extend(t.Context(), time.Hour))
			return func() { must(t, sb.Extend(t.Context(), short)) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			m := l.open(t)
			run(t, m)
			kept := ensure(t, m, wrenn.SandboxSpec{Size: small, EndOfLife: wrenn.EndOfLife{Timeout: time.Hour}})
			release := keep(t, kept)
			if name != "more time" { // Extend would undo it; Run reads the state
				kept.state.setTimeout(short, time.Now())
			}
			// One of the same age that nothing keeps is the clock.
			clock := ensure(t, m, wrenn.SandboxSpec{Size: small, EndOfLife: wrenn.EndOfLife{Timeout: 2 * short}})
			wantStatus(t, clock, StatusStopped, "")
			if s := kept.Info().Status; s != StatusRunning && s != StatusPaused {
				t.Fatalf("the kept one is %s", s)
			}
			release()
			wantStatus(t, kept, StatusStopped, "not used")
		})
	}
}

func TestAMachineThatEndsByItself(t *testing.T) {
	for _, tc := range []struct {
		name   string
		end    func(*lab, *Sandbox) error
		status Status
		reason string
		disk   bool
	}{
		{"killed", func(l *lab, sb *Sandbox) error { l.world.Kill(sb.instance.Machine.Ref()); return nil }, StatusFailed, "signal: killed", true},
		{"panic", func(l *lab, sb *Sandbox) error {
			return l.world.Guest(sb.instance.Slot.Namespace()).Panic(context.Background())
		}, StatusFailed, "guest panicked", true},
		{"power off", func(l *lab, sb *Sandbox) error {
			return l.world.Guest(sb.instance.Slot.Namespace()).PowerOff(context.Background())
		}, StatusStopped, "powered off", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			m := l.open(t)
			t.Cleanup(m.Close)
			sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
			disk := sb.instance.Disk()
			must(t, tc.end(l, sb))
			wantStatus(t, sb, tc.status, tc.reason)
			if s := l.cfg.Slots.Stats(); s.Used != 0 {
				t.Errorf("slots: %+v", s)
			}
			if _, err := os.Stat(disk); (err == nil) != tc.disk {
				t.Errorf("disk: %v, want it kept: %v", err, tc.disk)
			}
			must(t, sb.Destroy(t.Context()))
			l.wantClean(t, m)
		})
	}
}

func TestLimits(t *testing.T) {
	for name, limits := range map[string]Limits{
		"limits.sandboxes":                    {Sandboxes: 1},
		"limits.memory_mb":                    {MemoryMiB: small.MemoryMiB * 3 / 2},
		"limits.disk_free_mb":                 {DiskFreeMiB: 1 << 40},
		"raise limits.memory_mb of its agent": {MemoryMiB: 2 * small.MemoryMiB, OverheadMiB: 1}, // the VMMs take some too
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.cfg.Limits = limits
			m := l.open(t)
			t.Cleanup(m.Close)
			var err error
			for range 2 {
				var sb *Sandbox
				if sb, err = m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Size: small}); err == nil {
					destroyLater(t, sb)
				}
			}
			if wrenn.CodeOf(err) != wrenn.Exhausted || !strings.Contains(err.Error(), name) {
				t.Errorf("Ensure() = %v, want Exhausted that names %s", err, name)
			}
			if c, err := m.Capacity(); err != nil || c.SandboxesUsed > 1 || c.DiskMiB < c.DiskMiBFree {
				t.Errorf("Capacity() = %+v, %v", c, err)
			}
		})
	}
}

// restart is the end of an agent and the start of the next.
func (l *lab) restart(t *testing.T, m *Manager) *Manager {
	t.Helper()
	m.Close()
	l.crash(t)
	l.cfg.Adopt, l.cfg.Hook = true, nil
	next := l.open(t)
	t.Cleanup(next.Close)
	return next
}

func TestAdopt(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	running, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Template: "base", Size: small, EndOfLife: wrenn.EndOfLife{Timeout: time.Hour}})
	must(t, err)
	paused, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Template: "base", Size: small})
	must(t, errors.Join(err, paused.Pause(t.Context())))
	m2 := l.restart(t, m)
	if m2.Instance() == m.Instance() {
		t.Error("the instance is the same")
	}
	for id, want := range map[wrenn.SandboxID]Status{running.ID(): StatusRunning, paused.ID(): StatusPaused} {
		sb, err := m2.Get(id)
		must(t, err)
		destroyLater(t, sb)
		info := sb.Info()
		if info.Status != want || info.Size != small || info.Template != "base" {
			t.Errorf("adopted: %+v, want %s", info, want)
		}
		must(t, sb.Resume(t.Context()))
		wantAlive(t, sb)
	}
	if sb, _ := m2.Get(running.ID()); sb.Info().Timeout != time.Hour {
		t.Errorf("timeout = %s", sb.Info().Timeout)
	}
	must(t, m2.DestroyAll(t.Context()))
	l.wantClean(t, m2)
}

func TestAdoptEndsSandboxesWhoseMachinesEnded(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Size: small})
	must(t, err)
	m.Close()
	l.world.Kill(sb.instance.Machine.Ref())
	for range 2 { // the verdict survives a second restart
		m = l.restart(t, m)
		if sb, err = m.Get(sb.ID()); err != nil {
			t.Fatal(err)
		}
		wantStatus(t, sb, StatusFailed, "while the host's agent was down")
	}
	must(t, sb.Destroy(t.Context()))
	l.wantClean(t, m)
}

// muteDriver has machines that take a connection and do not answer.
type muteDriver struct{ vm.Driver }

func (muteDriver) Adopt(ctx context.Context, _ vm.Ref) (vm.Machine, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// One machine that hangs does not keep an agent from starting.
func TestAdoptOfAMuteMachine(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Size: small})
	must(t, err)
	m.Close()
	l.crash(t)
	driver, patience := l.cfg.Driver, l.cfg.ReadyTimeout
	l.cfg.Adopt, l.cfg.Driver, l.cfg.ReadyTimeout, l.noSweep = true, muteDriver{driver}, 50*time.Millisecond, true
	m = l.open(t)
	q, err := m.Get(sb.ID())
	must(t, err)
	wantStatus(t, q, StatusQuarantined, "did not answer within 50ms")
	l.cfg.Driver, l.cfg.ReadyTimeout = driver, patience
	m = l.restart(t, m)
	repaired, err := m.Get(sb.ID())
	must(t, err)
	wantAlive(t, repaired)
	must(t, repaired.Destroy(t.Context()))
	l.wantClean(t, m)
}

// The disk of a failed sandbox may be all that is left of a user's work, also
// when there is no space to record that it failed, and the reserve is used up.
func TestAMachineThatEndsOnAFullDisk(t *testing.T) {
	for name, watched := range map[string]bool{"watched": true, "no agent runs": false} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.cfg.StateDir = smallFileSystem(t)
			m := l.open(t)
			sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Template: "base", Size: small})
			must(t, err)
			must(t, l.mark(t.Context(), sb, 'a'))
			disk, machine := sb.instance.Disk(), sb.instance.Machine.Ref()
			must(t, os.Remove(filepath.Join(l.cfg.StateDir, "reserve")))
			filler := filepath.Join(l.cfg.StateDir, "filler")
			fill(t, filler)
			if watched {
				t.Cleanup(m.Close)
				l.world.Kill(machine)
			} else {
				m.Close()
				l.world.Kill(machine)
				m = l.restart(t, m)
			}
			sb, err = m.Get(sb.ID())
			must(t, err)
			wantStatus(t, sb, StatusStopping, "")
			must(t, sb.op.Lock(t.Context())) // when it has ended as far as it can
			if used := l.cfg.Slots.Stats().Used; used != 0 {
				t.Errorf("%d slots are in use", used)
			}
			must(t, errors.Join(os.Remove(filler), (locked{sb}).finishEnding(t.Context())))
			sb.op.Unlock()
			wantStatus(t, sb, StatusFailed, "its machine ended")
			if _, err := os.Stat(disk); err != nil {
				t.Error(err)
			}
			must(t, sb.Destroy(t.Context()))
			l.wantClean(t, m)
		})
	}
}

func TestAdoptQuarantinesWhatItDoesNotUnderstand(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Size: small})
	must(t, err)
	good, err := os.ReadFile(filepath.Join(sb.dir(), journal.Name))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(sb.dir(), journal.Name), []byte("{"), 0o600))
	m.Close()
	l.crash(t)
	l.cfg.Adopt = true
	l.noSweep = true
	m = l.open(t)
	t.Cleanup(m.Close)
	q, err := m.Get(sb.ID())
	must(t, err)
	wantStatus(t, q, StatusQuarantined, "journal cannot be read")
	if err := q.Destroy(t.Context()); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("Destroy() = %v, want FailedPrecondition", err)
	}
	if q := quarantined(m); len(q) != 1 || len(l.world.Running()) != 1 {
		t.Errorf("in quarantine: %v, running: %v", q, l.world.Running())
	}
	// A person repairs it.
	must(t, os.WriteFile(filepath.Join(m.sandboxesDir(), string(sb.ID()), journal.Name), good, 0o600))
	m = l.restart(t, m)
	repaired, err := m.Get(sb.ID())
	must(t, err)
	wantAlive(t, repaired)
	must(t, repaired.Destroy(t.Context()))
	l.wantClean(t, m)
}
