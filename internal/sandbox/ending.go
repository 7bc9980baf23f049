package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"wrenn"
	"wrenn/internal/vm"
)

// Verdict is how a sandbox ended that nobody destroyed.
type Verdict struct {
	Status Status `json:"status"` // stopped or failed
	Reason string `json:"reason"`
}

// Destroy ends the sandbox and removes everything it had. After an error the
// rest and the journal are still there: Destroy again, Run, or the next Open
// goes on with it. One that is being made is given up. Twice is allowed, also
// when the id has another owner by then. FailedPrecondition when it is in quarantine: only a person may remove it.
func (s *Sandbox) Destroy(ctx context.Context) error {
	s.giveUp()
	if err := s.lock(ctx); err != nil {
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
	if s.journal == nil || s.Info().Status == statusUnmade {
		return nil // its launch had hardly begun, or it was destroyed before; the id may be another's
	}
	began := time.Now()
	_ = s.begin(stepDestroy) // a full disk must not keep the sandbox alive
	s.set(StatusStopping, "")
	err := s.release(ctx)
	if err == nil {
		err = errors.Join(os.RemoveAll(s.runDir()), os.RemoveAll(s.dir()))
	}
	if err != nil {
		s.retryLater()
		return fmt.Errorf("destroy sandbox %s: %w", s.id, err)
	}
	s.set(statusUnmade, "")
	s.m.forget(s)
	s.trace("destroy", began)
	return nil
}

// end gives back what the sandbox had and keeps its name, with the verdict,
// until Destroy. The disk of a failed one is kept as well: it may be all that
// is left of somebody's work. The caller has the turn.
func (s *Sandbox) end(ctx context.Context, verdict Verdict) error {
	s.journal.Verdict = &verdict
	s.set(StatusStopping, "")
	err := s.begin(stepEnding)
	if err == nil {
		err = s.release(ctx)
	}
	if err == nil {
		err = os.RemoveAll(s.runDir())
	}
	if err == nil && verdict.Status == StatusStopped {
		err = os.RemoveAll(s.disk())
	}
	if err == nil {
		err = s.begin(stepEnded)
	}
	if err != nil {
		s.retryLater()
		return fmt.Errorf("end sandbox %s: %w", s.id, err)
	}
	s.clearRetry()
	s.set(verdict.Status, verdict.Reason)
	s.m.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "sandbox ended",
		slog.String("sandbox", string(s.id)), slog.String("status", string(verdict.Status)), slog.String("reason", verdict.Reason))
	return nil
}

// finishEnding takes up what end or destroy could not do. The caller has the turn.
func (s *Sandbox) finishEnding(ctx context.Context) error {
	if s.journal.Step != stepDestroy && s.journal.Verdict != nil {
		return s.end(ctx, *s.journal.Verdict)
	}
	return s.destroy(ctx)
}

// release ends the machine and then gives back the slot: one whose machine may
// still run must not get to another sandbox.
func (s *Sandbox) release(ctx context.Context) error {
	if s.unwatch != nil {
		s.unwatch()
	}
	if s.guest != nil {
		s.guest.Close()
	}
	if s.machine != nil {
		if err := s.machine.Stop(ctx); err != nil {
			return err
		}
		s.m.crash("machine stopped")
	}
	if s.slot != nil {
		if err := s.slot.Release(ctx); err != nil {
			return err
		}
		s.m.crash("slot released")
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
	ctx, s.unwatch = context.WithCancel(context.WithoutCancel(ctx))
	machine := s.machine
	s.m.watchers.Go(func() {
		err := machine.Wait(ctx)
		if ctx.Err() != nil || s.lock(ctx) != nil {
			return
		}
		defer s.unlock()
		switch s.Info().Status {
		case StatusRunning, StatusPaused:
		default:
			return // somebody else ends it
		}
		// Not under ctx: end stops this watcher.
		if err := s.end(context.WithoutCancel(ctx), s.verdictOf(ctx, err)); err != nil {
			s.m.cfg.Log.LogAttrs(ctx, slog.LevelError, "sandbox whose machine ended cannot be cleaned up",
				slog.String("sandbox", string(s.id)), slog.Any("err", err))
		}
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

// Pause stops the sandbox's CPUs; its memory stays. A paused one stays paused.
// FailedPrecondition unless it runs.
func (s *Sandbox) Pause(ctx context.Context) error {
	return s.setPaused(ctx, true, StatusPaused)
}

// Resume lets them go on. A running one stays running.
func (s *Sandbox) Resume(ctx context.Context) error {
	return s.setPaused(ctx, false, StatusRunning)
}

// setPaused notes what is wanted before it is done: who adopts the sandbox of
// an agent that died in between does it again.
func (s *Sandbox) setPaused(ctx context.Context, paused bool, status Status) error {
	if err := s.lockAs(ctx, StatusRunning, StatusPaused); err != nil {
		return err
	}
	defer s.unlock()
	if s.Info().Status == status {
		return nil
	}
	ctx, done := s.interruptible(ctx)
	defer done()
	if err := s.freezing.take(ctx); err != nil {
		return err
	}
	defer s.freezing.give()
	s.journal.Paused = paused
	err := s.begin(stepRunning)
	if err == nil {
		err = s.enforcePaused(ctx)
	}
	if err != nil {
		s.journal.Paused = !paused
		// The machine may have obeyed although the answer was lost.
		again, cancel := context.WithTimeout(context.WithoutCancel(ctx), retryAfter)
		defer cancel()
		return errors.Join(err, s.journal.save(), s.enforcePaused(again))
	}
	s.m.crash(string(status) + " enforced")
	s.set(status, "")
	return nil
}

// enforcePaused makes the machine what the journal says.
func (s *Sandbox) enforcePaused(ctx context.Context) error {
	if s.journal.Paused {
		return s.machine.Pause(ctx)
	}
	return s.machine.Resume(ctx)
}

// asReason says why a sandbox cannot be worked with, for a log or a reason.
func asReason(doing string, err error) string {
	if e, ok := errors.AsType[*wrenn.Error](err); ok {
		return doing + ": " + e.Message
	}
	return doing + ": see the agent's log"
}
