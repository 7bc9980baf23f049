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
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm/vmfake"
)

// quick is a limit that tests need not wait for long, also on a busy machine.
const quick = 500 * time.Millisecond

// hangingSync has the guests' sync never end. The returned function waits until
// one has begun.
func hangingSync(t *testing.T) (begun func()) {
	t.Helper()
	mark := filepath.Join(t.TempDir(), "begun")
	t.Setenv("PATH", script(t, "sync", "touch "+mark+"; exec sleep 1000")+":"+os.Getenv("PATH"))
	return func() {
		testkit.WaitUntil(t, "the guest syncs", func() bool { _, err := os.Stat(mark); return err == nil })
	}
}

// A guest that never writes its disk holds up neither a pause nor a checkpoint for
// long, and can be used after that.
func TestAGuestThatDoesNotFreeze(t *testing.T) {
	l := newLab(t)
	l.cfg.FreezeTimeout = quick
	hangingSync(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
	_, checkpointErr := sb.Checkpoint(t.Context(), "", "")
	for what, err := range map[string]error{"Pause": sb.Pause(t.Context()), "Checkpoint": checkpointErr} {
		if wrenn.CodeOf(err) != wrenn.DeadlineExceeded || !strings.Contains(err.Error(), "with force") {
			t.Errorf("%s() = %v, want DeadlineExceeded that names the way out", what, err)
		}
		wantStatus(t, sb, StatusRunning, "")
		wantAlive(t, sb)
	}
	must(t, sb.ForcePause(t.Context()))
	wantStatus(t, sb, StatusPaused, "")
	must(t, sb.Resume(t.Context()))
	wantAlive(t, sb)
}

func TestAnAutoPauseDoesWithoutAGuestThatDoesNotFreeze(t *testing.T) {
	l := newLab(t)
	l.cfg.FreezeTimeout = quick
	hangingSync(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := ensure(t, m, wrenn.SandboxSpec{Size: small, EndOfLife: wrenn.EndOfLife{Timeout: time.Millisecond, OnTimeout: wrenn.PauseOnTimeout}})
	run(t, m)
	wantStatus(t, sb, StatusPaused, "")
	must(t, sb.Resume(t.Context()))
}

// A destroy waits neither for the guest that is being frozen nor for one that is
// to be thawed.
func TestDestroyWaitsForNoGuest(t *testing.T) {
	l := newLab(t)
	l.cfg.FreezeTimeout = time.Hour
	begun := hangingSync(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb, err := m.Create(t.Context(), wrenn.NewSandboxID(), small)
	must(t, err)
	paused := make(chan error, 1)
	go func() { paused <- sb.Pause(context.WithoutCancel(t.Context())) }()
	begun()
	l.agent.silent.Store(true)
	must(t, sb.Destroy(t.Context()))
	if err := <-paused; err == nil {
		t.Error("Pause() succeeded")
	}
	l.wantClean(t, m)
}

// wantUnresponsive waits until the sandbox is shown as unresponsive, or not any more.
func wantUnresponsive(t *testing.T, sb *Sandbox, want bool) {
	t.Helper()
	testkit.WaitUntil(t, "the condition changes", func() bool { return (sb.Info().Unresponsive != nil) == want })
}

// newSilent returns a sandbox whose guest does not answer any more, with a call that
// was waiting for it before.
func newSilent(t *testing.T, l *lab, m *Manager, spec wrenn.SandboxSpec) (sb *Sandbox, call <-chan error) {
	t.Helper()
	spec.Size = small
	sb = ensure(t, m, spec)
	began, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		release, err := sb.Use(context.Background())
		if err == nil {
			defer release()
			proc, startErr := sb.Guest().Start(context.Background(), wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "sleep", Args: []string{"1000"}}})
			close(began)
			if err = startErr; err == nil {
				_, err = proc.Next()
			}
		}
		ended <- err
	}()
	<-began
	l.agent.silent.Store(true)
	return sb, ended
}

func TestASilentGuestIsNoticedAndComesBack(t *testing.T) {
	l := newLab(t)
	l.cfg.SilentAfter = quick
	m := l.open(t)
	t.Cleanup(m.Close)
	woken, stop := m.News()
	defer stop()
	sb, call := newSilent(t, l, m, wrenn.SandboxSpec{})
	before := sb.Info().Version
	wantUnresponsive(t, sb, true)
	<-woken
	info := sb.Info()
	if info.Status != StatusRunning || info.Version == before || info.Unresponsive.Reason != "nothing in it answers on its network" || info.Unresponsive.Since.IsZero() {
		t.Errorf("it is %+v, %+v", info, info.Unresponsive)
	}
	_, useErr := sb.Use(t.Context())
	_, portErr := sb.DialPort(t.Context(), 80)
	_, checkpointErr := sb.Checkpoint(t.Context(), "", "")
	for what, err := range map[string]error{
		"the call that waited": <-call, "Use": useErr, "DialPort": portErr, "Checkpoint": checkpointErr, "Pause": sb.Pause(t.Context()),
	} {
		testkit.WantCode(t, err, wrenn.NotResponding, "nothing in it answers")
		if t.Failed() {
			t.Fatalf("%s: %v", what, err)
		}
	}
	l.agent.silent.Store(false)
	wantUnresponsive(t, sb, false)
	select {
	case <-woken:
	case <-time.After(patience):
		t.Error("nothing was told of the answer")
	}
	wantAlive(t, sb)
	must(t, sb.Pause(t.Context()))
}

func TestASilentGuestCanBePausedByForce(t *testing.T) {
	l := newLab(t)
	l.cfg.SilentAfter = quick
	m := l.open(t)
	t.Cleanup(m.Close)
	sb, _ := newSilent(t, l, m, wrenn.SandboxSpec{})
	wantUnresponsive(t, sb, true)
	must(t, sb.ForcePause(t.Context()))
	if info := sb.Info(); info.Status != StatusPaused || info.Unresponsive != nil {
		t.Errorf("it is %+v", info)
	}
	l.agent.silent.Store(false)
	must(t, sb.Resume(t.Context()))
	wantAlive(t, sb)
}

func TestASilentGuestIsPausedAtItsTimeoutAndDestroyed(t *testing.T) {
	l := newLab(t)
	l.cfg.SilentAfter = quick
	m := l.open(t)
	run(t, m)
	sb, _ := newSilent(t, l, m, wrenn.SandboxSpec{EndOfLife: wrenn.EndOfLife{Timeout: 2 * quick, OnTimeout: wrenn.PauseOnTimeout}})
	wantStatus(t, sb, StatusPaused, "")
	l.agent.silent.Store(false)
	must(t, sb.Resume(t.Context()))
	l.agent.silent.Store(true)
	must(t, sb.Destroy(t.Context()))
	l.wantNoMachine(t)
}

// An agent that adopts a sandbox with a silent guest notices that as well.
func TestAnAdoptedSilentGuest(t *testing.T) {
	l := newLab(t)
	l.cfg.SilentAfter = quick
	m := l.open(t)
	id := wrenn.NewSandboxID()
	_, err := m.Ensure(t.Context(), id, wrenn.SandboxSpec{Size: small})
	must(t, err)
	l.agent.silent.Store(true)
	m = l.restart(t, m)
	sb, err := m.Get(id)
	must(t, err)
	destroyLater(t, sb)
	wantUnresponsive(t, sb, true)
	l.agent.silent.Store(false)
	wantUnresponsive(t, sb, false)
}

func TestWhyAMachineEnded(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	for name, tc := range map[string]struct {
		end    func(*vmfake.Guest) error
		status Status
		want   wrenn.EndCause
	}{
		"power off":  {func(g *vmfake.Guest) error { return g.PowerOff(t.Context()) }, StatusStopped, wrenn.CausePoweredOff},
		"panic":      {func(g *vmfake.Guest) error { return g.Panic(t.Context()) }, StatusFailed, wrenn.CausePanicked},
		"VMM killed": {func(g *vmfake.Guest) error { return g.Die("signal: killed") }, StatusFailed, wrenn.CauseVMM},
		"no memory": {func(g *vmfake.Guest) error {
			return errors.Join(g.Print("Kernel panic - not syncing: System is deadlocked on memory\n"+strings.Repeat("a trace\n", 1000)), g.Panic(t.Context()))
		}, StatusFailed, wrenn.CauseGuestMemory},
	} {
		t.Run(name, func(t *testing.T) {
			sb := ensure(t, m, wrenn.SandboxSpec{Size: small})
			proc, err := sb.Guest().Start(context.Background(), wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "sleep", Args: []string{"1000"}}})
			must(t, err)
			defer proc.Close()
			must(t, tc.end(l.world.Guest(sb.instance.Slot.Namespace())))
			wantStatus(t, sb, tc.status, "")
			if _, err := proc.Next(); err == nil || !strings.Contains(err.Error(), "no longer running: "+sb.Info().Reason) {
				t.Errorf("a command's stream ended by %v, want the reason %q", err, sb.Info().Reason)
			}
			if got := sb.Info().EndCause; got != tc.want {
				t.Errorf("it ended for %q, want %q", got, tc.want)
			}
			kept, err := journal.Read(sb.dir())
			must(t, err)
			if kept.Verdict.Cause != tc.want {
				t.Errorf("the journal says %q", kept.Verdict.Cause)
			}
		})
	}
}
