package vmtest

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/vm"
)

// maxConsole is the most that a driver may keep of a console: package
// launch's bound, which the fake is below.
const maxConsole = launch.ConsoleSize

func (s *suite) powerOff(t *testing.T) {
	b := s.restore(t, s.Driver(t), s.base)
	must(t, "PowerOff", b.guest.PowerOff(within(t)))
	if err := b.Wait(within(t)); err != nil {
		t.Errorf("Wait() = %v, want nil", err)
	}
	s.wantRefusals(t, b)
}

func (s *suite) panics(t *testing.T) {
	b := s.restore(t, s.Driver(t), s.base)
	must(t, "Panic", b.guest.Panic(within(t)))
	err := b.Wait(within(t))
	s.wantExit(t, err, "guest panicked")
	if exit, ok := errors.AsType[*vm.ExitError](err); ok && !exit.Panicked {
		t.Error("the ExitError does not say that the guest panicked")
	}
}

func (s *suite) wantExit(t *testing.T, err error, reason string) {
	t.Helper()
	exit, ok := errors.AsType[*vm.ExitError](err)
	if !ok || !strings.Contains(exit.Reason, reason) {
		t.Errorf("Wait() = %v, want an ExitError with %q", err, reason)
	}
}

func (s *suite) killed(t *testing.T) {
	b := s.restore(t, s.Driver(t), s.base)
	waits := s.waiters(t, b, 3)
	began := time.Now()
	s.Kill(t, b.Ref())
	for err := range waits {
		s.wantExit(t, err, "killed")
	}
	t.Logf("a killed VMM was noticed after %v", time.Since(began))
	s.wantRefusals(t, b)
	for range 2 {
		must(t, "Stop of a machine that died", b.Stop(within(t)))
	}
	s.wantNothing(t, b.spec)
	end := b.Wait(within(t))
	s.wantExit(t, end, "killed")
	if exit, ok := errors.AsType[*vm.ExitError](end); ok && s.Quiet && exit.Log != "" {
		t.Errorf("the VMM of a restored machine logged %q", exit.Log)
	}
}

// hostileConsole proves that a guest that prints without end neither fills the
// host nor stalls.
func (s *suite) hostileConsole(t *testing.T) {
	b := s.restore(t, s.Driver(t), s.base)
	before := size(t, b.spec.Dir)
	must(t, "Flood", b.guest.Flood(within(t)))
	n := s.counted(t, b, 0)
	s.counted(t, b, n+5)
	if grown := size(t, b.spec.Dir) - before; grown > 1<<20 {
		t.Errorf("the machine's directory has grown by %d bytes", grown)
	}
	s.Kill(t, b.Ref())
	exit, ok := errors.AsType[*vm.ExitError](b.Wait(within(t)))
	if !ok || len(exit.Console) > 64<<10 {
		t.Errorf("Wait() = %v", exit)
	}
}

// size is that of all files under dir.
func size(t *testing.T, dir string) int64 {
	t.Helper()
	var total int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	must(t, "size", err)
	return total
}

// consoleWithoutAgent proves that a guest can print more than is kept while
// no agent reads it, and neither stalls nor fills the host.
func (s *suite) consoleWithoutAgent(t *testing.T) {
	spec, guest := s.newSpec(t, s.base.disk)
	ref := s.Elsewhere(t, spec, s.base.dir)
	noAgent := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	must(t, "guest", guest.WaitReady(within(t), noAgent))
	much := 2 * maxConsole
	if s.FillConsole != nil {
		s.FillConsole(t, ref)
		much = maxConsole / 8
	}
	must(t, "PrintMuch", guest.PrintMuch(within(t), much))
	b := s.adoptMachine(t, ref, spec, guest)
	console, ok := b.Machine.(vm.ConsoleReader)
	if !ok {
		t.Fatal("the machine shows no console")
	}
	if n := len(console.Console()); n == 0 || n > maxConsole {
		t.Errorf("%d bytes of the console are kept", n)
	}
	s.counted(t, b, 0)
}

func (s *suite) adopt(t *testing.T) {
	spec, guest := s.newSpec(t, s.RootFS)
	b := s.adoptMachine(t, s.Elsewhere(t, spec, ""), spec, guest)
	b.ready(t)
	must(t, "Fill", b.guest.Fill(within(t), "adopted", 'a'))
	must(t, "StartCounter", b.guest.StartCounter(within(t)))
	s.pauseAndResume(t, b)
	s.wantIsolated(t, b)
	snap := s.snapshot(t, b)
	s.wantFilled(t, s.restore(t, s.Driver(t), snap), "adopted", 'a')
	waits := s.waiters(t, b, 2)
	must(t, "Stop", b.Stop(within(t)))
	for err := range waits {
		if err != nil {
			t.Errorf("Wait after Stop = %v", err)
		}
	}
	s.wantNothing(t, spec)
}

// adoptRestored adopts a machine whose memory is still partly a snapshot's, and
// lets it end in another way than by Stop.
func (s *suite) adoptRestored(t *testing.T) {
	spec, guest := s.newSpec(t, s.base.disk)
	b := s.adoptMachine(t, s.Elsewhere(t, spec, s.base.dir), spec, guest)
	b.ready(t)
	must(t, "Fill", b.guest.Fill(within(t), "later", 0))
	restored := s.restore(t, s.Driver(t), s.snapshot(t, b))
	s.wantFilled(t, restored, "base", 'b')
	s.wantFilled(t, restored, "later", 0)
	must(t, "PowerOff", b.guest.PowerOff(within(t)))
	if err := b.Wait(within(t)); err != nil {
		t.Errorf("Wait() of an adopted machine that powered off = %v", err)
	}
}

func (s *suite) adoptMachine(t *testing.T, ref vm.Ref, spec vm.Spec, guest Guest) *machine {
	t.Helper()
	m, err := s.Driver(t).Adopt(within(t), ref)
	must(t, "Adopt", err)
	if diff := cmp.Diff(ref, m.Ref()); diff != "" {
		t.Errorf("Ref() of an adopted machine (-want +got):\n%s", diff)
	}
	return s.watch(t, m, spec, guest)
}

func (s *suite) adoptDead(t *testing.T) {
	d := s.Driver(t)
	spec, guest := s.newSpec(t, s.RootFS)
	ref := s.Elsewhere(t, spec, "")
	b := s.adoptMachine(t, ref, spec, guest)
	s.Kill(t, ref)
	if err := b.Wait(within(t)); err == nil {
		t.Error("Wait() of a killed machine = nil")
	}
	for range 2 {
		if _, err := d.Adopt(within(t), ref); wrenn.CodeOf(err) != wrenn.NotFound {
			t.Errorf("Adopt of a dead machine = %v, want NotFound", err)
		}
		s.wantNothing(t, spec)
	}
}

// adoptAnother offers another process as the machine's: that must continue to run.
func (s *suite) adoptAnother(t *testing.T) {
	b := s.restore(t, s.Driver(t), s.base)
	ref := b.Ref()
	ref.StartTime++
	ref.Dir = s.newDir(t)
	if _, err := s.Driver(t).Adopt(within(t), ref); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("Adopt of another process with the same PID = %v, want NotFound", err)
	}
	s.counted(t, b, 0)
}
