package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"wrenn"
	"wrenn/internal/host/sandbox/journal"
	"wrenn/internal/vm"
)

// Verdict is how a sandbox ended that nobody destroyed.
type Verdict struct {
	Status Status // stopped or failed
	Reason string
}

// Destroy ends the sandbox and removes everything it had. After an error the
// rest and the journal are still there: Destroy again, Run, or the next Open
// goes on with it. One that is being made is given up. Twice is allowed, also
// when the id has another owner by then. FailedPrecondition when it is in quarantine: only a person may remove it.
func (s *Sandbox) Destroy(ctx context.Context) error {
	s.giveUp()
	if err := s.lock(ctx); err != nil {
		s.leaveAlone()
		return err
	}
	defer s.unlock()
	if info := s.Info(); info.Status == StatusQuarantined {
		return info.refusal()
	}
	return s.destroy(ctx)
}

// destroy is Destroy for who has the turn.
func (s *Sandbox) destroy(ctx context.Context) error {
	if s.journal == nil || s.Info().Status == statusRemoved {
		return nil // its launch had hardly begun, or it was destroyed before; the id may be another's
	}
	began := time.Now()
	s.decide(ctx, journal.StepDestroy, nil)
	s.set(StatusStopping, "")
	err := s.discardBodies(ctx, false)
	if err == nil {
		err = os.RemoveAll(s.dir())
	}
	if err != nil {
		s.retryLater()
		return fmt.Errorf("destroy sandbox %s: %w", s.id, err)
	}
	s.set(statusRemoved, "")
	s.m.forget(s)
	s.m.litter()
	s.trace("destroy", began)
	return nil
}

// end gives back what the sandbox had and keeps its name, with the verdict,
// until Destroy. The disk of a failed one is kept as well: it may be all that
// is left of somebody's work. The caller has the turn.
func (s *Sandbox) end(ctx context.Context, verdict Verdict) error {
	s.set(StatusStopping, "")
	s.decide(ctx, journal.StepEnding, &journal.Verdict{Status: string(verdict.Status), Reason: verdict.Reason})
	err := s.discardBodies(ctx, verdict.Status == StatusFailed)
	if err == nil {
		s.keepConsole(ctx, nil)
		err = s.giveBack(string(journal.StepEnded), func(j *journal.Journal) { j.Step, j.Instance, j.Other = journal.StepEnded, nil, nil })
	}
	if err != nil {
		s.retryLater()
		return fmt.Errorf("end sandbox %s: %w", s.id, err)
	}
	s.body, s.spare = nil, nil
	s.clearRetry()
	s.set(verdict.Status, verdict.Reason)
	s.m.litter()
	s.m.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "sandbox ended",
		slog.String("sandbox", string(s.id)), slog.String("status", string(verdict.Status)), slog.String("reason", verdict.Reason))
	return nil
}

// decide notes how the sandbox goes: from here on there is no way back. A full
// disk must not keep it alive: then this agent alone knows, until its next
// note, and one that comes before finds a sandbox whose machine is gone.
func (s *Sandbox) decide(ctx context.Context, how journal.Step, verdict *journal.Verdict) {
	change := func(j *journal.Journal) { j.Step, j.Verdict = how, verdict }
	if err := s.giveBack(string(how), change); err != nil {
		change(s.journal)
		s.m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "it cannot be noted yet that a sandbox ends", slog.String("sandbox", string(s.id)), slog.Any("err", err))
	}
}

// finishEnding takes up what end or destroy could not do, or a dead agent. Only
// what is to be destroyed, or was nobody's yet, is: the disk of another may be
// somebody's work. The caller has the turn.
func (s *Sandbox) finishEnding(ctx context.Context) error {
	switch {
	case s.journal.IsUnwanted():
		return s.destroy(ctx)
	case s.journal.IsEnding():
		return s.end(ctx, Verdict{Status(s.journal.Verdict.Status), s.journal.Verdict.Reason})
	default:
		return wrenn.Errorf(wrenn.FailedPrecondition, "its journal says %.80q, which is no end", s.journal.Step)
	}
}

// discardBodies gives back all that the sandbox has but its directory.
func (s *Sandbox) discardBodies(ctx context.Context, keepDisk bool) error {
	if s.body != nil {
		if err := s.body.discard(ctx, keepDisk); err != nil {
			return err
		}
	}
	if s.spare != nil {
		return s.spare.discard(ctx, false)
	}
	return nil
}

func (s *Sandbox) retryLater() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life.retry = time.Now().Add(retryAfter)
	s.m.rouse()
}

func (s *Sandbox) clearRetry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life.retry = time.Time{}
}

// watch ends the sandbox when its machine does so by itself. The caller has the turn.
func (s *Sandbox) watch(ctx context.Context) {
	b := s.body
	s.whenGone(ctx, b, func(ctx context.Context, cause error) {
		if s.body != b || s.Info().Status != StatusRunning {
			return // somebody else ends it, or it has another machine by now
		}
		if err := s.end(ctx, s.verdictOf(ctx, cause)); err != nil {
			s.m.cfg.Log.LogAttrs(ctx, slog.LevelError, "sandbox whose machine ended cannot be cleaned up",
				slog.String("sandbox", string(s.id)), slog.Any("err", err))
		}
	})
}

// whenGone calls then, with the turn, when the machine of a body ended by itself.
func (s *Sandbox) whenGone(ctx context.Context, b *body, then func(ctx context.Context, cause error)) {
	ctx, b.unwatch = context.WithCancel(context.WithoutCancel(ctx))
	s.m.watchers.Go(func() {
		err := b.machine.Wait(ctx)
		if ctx.Err() != nil || s.lock(ctx) != nil {
			return
		}
		defer s.unlock()
		then(context.WithoutCancel(ctx), err) // not under ctx: it stops this watcher
	})
}

// verdictOf says why the machine ended by itself. What the guest printed is for
// the operator's log.
func (s *Sandbox) verdictOf(ctx context.Context, err error) Verdict {
	if err == nil {
		return Verdict{StatusStopped, "the guest powered off"}
	}
	s.m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "machine ended by itself", slog.String("sandbox", string(s.id)), slog.Any("err", err))
	if exit, ok := errors.AsType[*vm.ExitError](err); ok {
		return Verdict{StatusFailed, "its machine ended: " + exit.Reason}
	}
	return Verdict{StatusFailed, "its machine ended"}
}

// asReason says why a sandbox cannot be worked with, for a log or a reason.
func asReason(doing string, err error) string {
	if e, ok := errors.AsType[*wrenn.Error](err); ok {
		return doing + ": " + e.Message
	}
	return doing + ": see the agent's log"
}
