package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"wrenn/internal/host/sandbox/journal"
)

const (
	// retryAfter is the pause before what could not be ended is tried again.
	retryAfter = 10 * time.Second
	// pauseAgain is the time before a sandbox that could not be paused for lack
	// of use is tried again: it takes much, and a full disk stays full for a while.
	pauseAgain = time.Minute
	// lookAgain bounds how long Run sleeps: timers do not run while a host is suspended.
	lookAgain = time.Minute
)

// Use keeps the sandbox from ending for lack of use until release is called,
// once, and says that it was used now. FailedPrecondition unless it runs; but one
// with AutoResume that is paused is resumed first, once for all who wait.
func (s *Sandbox) Use(ctx context.Context) (release func(), err error) {
	for {
		if release, err = s.use(); err == nil || !s.wakesUp() {
			return release, err
		}
		if err := s.wakeUp(ctx); err != nil {
			return nil, err
		}
	}
}

func (s *Sandbox) use() (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.status != StatusRunning {
		return nil, s.infoLocked().refusal()
	}
	s.life.uses++
	s.life.active = time.Now()
	return s.unuse, nil
}

func (s *Sandbox) infoLocked() Info {
	return Info{ID: s.id, Status: s.life.status, Reason: s.life.reason}
}

func (s *Sandbox) unuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life.uses--
	s.life.active = time.Now()
	if s.life.uses == 0 {
		s.m.rouse()
	}
}

// Extend sets the time without use after which the sandbox ends, counted from
// now; 0 is never. FailedPrecondition when it has ended.
func (s *Sandbox) Extend(ctx context.Context, timeout time.Duration) error {
	if err := s.lockAs(ctx, StatusRunning, StatusPaused); err != nil {
		return err
	}
	defer s.unlock()
	if err := s.commit("timeout", func(j *journal.Journal) { j.Timeout = timeout }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life.timeout, s.life.active = timeout, time.Now()
	s.changed()
	return nil
}

// dueAt is when Run has to do something about the sandbox, if nothing happens
// meanwhile.
func (s *Sandbox) dueAt() (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	what, at := s.life.next()
	return at, what != dueNothing
}

// next is what is to be done first, and when. The time of a paused one stands
// still: whoever pauses a sandbox means to come back.
func (l *life) next() (what due, at time.Time) {
	running := l.status == StatusRunning
	switch {
	case !l.retry.IsZero() && l.status == StatusStopping:
		what, at = dueEnding, l.retry
	case !l.retry.IsZero():
		what, at = dueSpare, l.retry
	case running && l.timeout > 0 && l.uses == 0:
		what, at = dueStop, later(l.active.Add(l.timeout), l.patient)
	}
	if running && !l.stuck.IsZero() && (what == dueNothing || l.stuck.Before(at)) {
		return dueGoOn, l.stuck
	}
	return what, at
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// Run ends or pauses the sandboxes whose time is up, and what could not be
// ended before, lets those go on that were left standing still, removes the snapshots that nobody needs, hashes the others, and
// keeps the stock, until ctx ends. Nothing of it is left when it returns, nor of the stock.
func (m *Manager) Run(ctx context.Context) error {
	var hashing sync.WaitGroup
	hashing.Go(func() { _ = m.snapshots.Run(ctx) }) // it ends with ctx alone
	defer hashing.Wait()
	var stocking sync.WaitGroup
	defer stocking.Wait()
	if m.cfg.Stock > 0 {
		stocking.Go(func() { m.tendStock(ctx) })
	}
	var enders sync.WaitGroup
	defer enders.Wait()
	busy := sync.Map{} // of *Sandbox: an ender is at it
	for {
		m.sweepUp(ctx)
		wait := lookAgain
		for _, s := range m.all() {
			at, ok := s.dueAt()
			if !ok {
				continue
			}
			if left := time.Until(at); left > 0 {
				wait = min(wait, left)
				continue
			}
			if _, at := busy.LoadOrStore(s, true); at {
				continue
			}
			enders.Go(func() {
				defer m.rouse()
				defer busy.Delete(s)
				s.doWhatIsDue(ctx)
			})
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-m.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (m *Manager) rouse() {
	m.stock.rouse()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// doWhatIsDue looks again under the sandbox's lock, and does what is due.
func (s *Sandbox) doWhatIsDue(ctx context.Context) {
	if err := s.lock(ctx); err != nil {
		return
	}
	defer s.unlock()
	var err error
	switch what, reason := s.claimIfDue(); what {
	case dueStop:
		err = s.end(ctx, Verdict{Status: StatusStopped, Reason: reason})
	case duePause:
		err = s.pause(ctx)
	case dueEnding:
		err = s.finishEnding(ctx)
	case dueSpare:
		err = s.tidy(ctx)
	case dueGoOn:
		err = s.goOn(ctx)
	default:
		return
	}
	if err != nil && ctx.Err() == nil {
		s.m.cfg.Log.LogAttrs(ctx, slog.LevelError, "what is due of a sandbox cannot be done",
			slog.String("sandbox", string(s.id)), slog.Any("err", err))
	}
}

// due is what Run has to do about a sandbox.
type due int

const (
	dueNothing due = iota
	dueStop
	duePause
	dueEnding // again
	dueSpare  // is to be removed, again
	dueGoOn   // again
)

// claimIfDue marks a sandbox whose time is up as stopping or pausing, in one
// step with the look at the clock, so that nobody begins to use it.
func (s *Sandbox) claimIfDue() (what due, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	what, at := s.life.next()
	switch {
	case what == dueNothing || time.Until(at) > 0:
		return dueNothing, ""
	case what != dueStop:
		return what, ""
	}
	if s.request.OnTimeout != EndPause {
		s.life.change(StatusStopping, "")
	} else {
		s.life.change(StatusPausing, "")
		what = duePause
		s.life.patient = time.Now().Add(pauseAgain) // should it fail
	}
	s.changed()
	return what, fmt.Sprintf("not used for %s", s.life.timeout)
}
