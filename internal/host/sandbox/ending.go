package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/instance"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/vm"
)

// Destroy ends the sandbox and removes everything it had. After an error the
// rest and the journal still exist: Destroy again, Run, or the next Open continues.
// A launch that is at work is canceled. Twice is allowed, also when the id has
// another owner by then. FailedPrecondition when the sandbox is in quarantine: only
// a person may remove it.
func (s *Sandbox) Destroy(ctx context.Context) error {
	if err := s.CheckEpoch(ctx); err != nil {
		return err // before anything is canceled
	}
	s.cancel.cancel()
	locked, err := s.lock(ctx)
	if err != nil {
		s.cancel.uncancel()
		return err
	}
	defer locked.unlock()
	if info := s.Info(); info.Status == StatusQuarantined {
		return info.refusal()
	}
	return locked.destroy(ctx)
}

// destroy is Destroy with the operation lock.
func (s locked) destroy(ctx context.Context) error {
	if s.journal.Journal == nil || s.Info().Status == statusRemoved {
		return nil // its launch had hardly begun, or it was destroyed before; the id may have another owner
	}
	began := time.Now()
	s.decide(ctx, journal.StepDestroy, nil)
	s.state.set(StatusStopping, "")
	err := s.discardInstances(ctx, false)
	if err == nil {
		err = os.RemoveAll(s.dir())
	}
	if err != nil {
		s.state.retryLater()
		return fmt.Errorf("destroy sandbox %s: %w", s.id, err)
	}
	s.remove()
	s.host.garbage.mark()
	s.trace(ctx, "destroy", time.Since(began))
	return nil
}

// remove is the end of a sandbox of which nothing is left.
func (s locked) remove() {
	s.state.set(statusRemoved, "")
	s.host.registry.forget(s.Sandbox)
}

// end releases what the sandbox had and keeps its name, with the verdict, until
// Destroy. The disk of a failed one is kept until then as well, for an operator who has
// no control plane; a control plane destroys the sandbox when it has the verdict.
func (s locked) end(ctx context.Context, verdict Verdict) error {
	s.state.set(StatusStopping, "")
	if guest := s.Guest(); guest != nil {
		guest.CloseEnded(verdict.Reason)
	}
	s.decide(ctx, journal.StepEnding, &journal.Verdict{Status: string(verdict.Status), Reason: verdict.Reason, Cause: verdict.Cause})
	err := s.discardInstances(ctx, verdict.Status == StatusFailed)
	if err == nil {
		s.keepConsole(ctx, nil)
		err = s.journal.commitFreeing(string(journal.StepEnded), func(j *journal.Journal) { j.Step, j.Instance, j.Other = journal.StepEnded, nil, nil })
	}
	if err != nil {
		s.state.retryLater()
		return fmt.Errorf("end sandbox %s: %w", s.id, err)
	}
	s.instance, s.other = nil, nil
	s.state.clearRetry()
	s.state.conclude(verdict)
	s.host.news.notify()
	s.host.garbage.mark()
	s.log(ctx, slog.LevelInfo, "sandbox ended", slog.String("status", string(verdict.Status)), slog.String("reason", verdict.Reason))
	return nil
}

// decide records how the sandbox ends: from here on there is no way back. A full
// disk must not keep it alive: then only this agent knows, until its next journal
// entry, and an agent that starts before that finds a sandbox whose machine has
// ended.
func (s locked) decide(ctx context.Context, how journal.Step, verdict *journal.Verdict) {
	change := func(j *journal.Journal) { j.Step, j.Verdict = how, verdict }
	if err := s.journal.commitFreeing(string(how), change); err != nil {
		s.journal.assume(change)
		s.logError(ctx, slog.LevelWarn, "cannot record yet that a sandbox ends", err)
	}
}

// finishEnding continues what end or destroy could not do, or an agent that died.
// It ends only what is to be destroyed or was never handed to a user: the disk of
// another may be a user's work.
func (s locked) finishEnding(ctx context.Context) error {
	switch {
	case s.journal.IsUnwanted():
		return s.destroy(ctx)
	case s.journal.IsEnding():
		return s.end(ctx, verdictOf(s.journal.Verdict))
	default:
		return wrenn.Errorf(wrenn.FailedPrecondition, "its journal says %.80q, which is no end", s.journal.Step)
	}
}

// watchInstance ends the sandbox when its machine ends by itself.
func (s locked) watchInstance(ctx context.Context) {
	inst := s.instance
	beside := func(ctx context.Context) { watchGuest(ctx, s.Sandbox, inst) }
	s.watch(ctx, inst, beside, func(ctx context.Context, cause error) {
		if s.instance != inst || s.Info().Status != StatusRunning {
			return // an operation ends it, or it has another machine by now
		}
		if cause != nil {
			s.logError(ctx, slog.LevelWarn, "machine ended by itself", cause)
		}
		console, _ := s.console.Text()
		if err := s.end(ctx, judge(inst, cause, console)); err != nil {
			s.logError(ctx, slog.LevelError, "sandbox whose machine ended cannot be cleaned up", err)
		}
	})
}

// verdictOf reads the verdict of a journal.
func verdictOf(v *journal.Verdict) Verdict { return Verdict{Status(v.Status), v.Reason, v.Cause} }

// judge returns why the machine of the instance ended by itself, with that error and
// that console. What the guest printed is for the operator's log.
func judge(inst *instance.Instance, err error, console string) Verdict {
	if err == nil {
		return Verdict{StatusStopped, "the guest powered off", wrenn.CausePoweredOff}
	}
	exit, ok := errors.AsType[*vm.ExitError](err)
	switch {
	case !ok:
		return Verdict{StatusFailed, "its machine ended", wrenn.CauseVMM}
	case exit.Panicked && memoryPanic.MatchString(console):
		return Verdict{StatusFailed, "its machine ended: the guest's kernel had no memory left", wrenn.CauseGuestMemory}
	case exit.Panicked:
		return Verdict{StatusFailed, "its machine ended: " + exit.Reason, wrenn.CausePanicked}
	case wasKilledForMemory(inst.Record.Machine):
		return Verdict{StatusFailed, "its machine ended: the host had no memory left", wrenn.CauseHostMemory}
	default:
		return Verdict{StatusFailed, "its machine ended: " + exit.Reason, wrenn.CauseVMM}
	}
}

// memoryPanic finds the last words of a kernel that has no memory and no process
// that it may end, see mm/oom_kill.c. A guest could fake them; only its owner would
// see it.
var memoryPanic = regexp.MustCompile(`Kernel panic - not syncing: (System is deadlocked on|Out of) memory`)
