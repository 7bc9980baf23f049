package sandbox

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"wrenn.dev"
)

// dueTimeout bounds what Run does about one sandbox: a pause that writes 16 GiB to
// a slow disk takes minutes. What is not done then is tried again.
const dueTimeout = 5 * time.Minute

// lookAgain bounds how long Run sleeps: timers do not run while a host is suspended.
const lookAgain = time.Minute

// Run does until ctx ends what is due: it ends or pauses the sandboxes whose time
// is up, tries again what failed to end or to run, removes the snapshots that are
// not needed, hashes the others, measures the sandboxes, and keeps the warm pool, of which nothing is left
// when it returns.
func (m *Manager) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { _ = m.snapshots.Run(ctx) }) // it ends with ctx alone
	work.Go(func() { m.measure(ctx) })
	if m.cfg.Pool > 0 {
		work.Go(func() { m.pool.run(ctx) })
	}
	if m.cfg.Objects != nil {
		work.Go(func() { m.runUploads(ctx) })
		work.Go(func() { m.runUnfinished(ctx) })
		work.Go(func() { m.runUnused(ctx) })
		work.Go(func() { m.runCheckpoints(ctx) })
	}
	if m.cfg.Sizes > 0 {
		work.Go(func() { m.runSizes(ctx) })
	}
	busy := sync.Map{} // of *Sandbox: work is at it
	for {
		m.garbage.collectMarked(ctx)
		wait := lookAgain
		for _, s := range m.registry.all() {
			at, ok := s.state.dueAt()
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
			work.Go(func() {
				defer m.notify()
				defer busy.Delete(s)
				s.doDue(ctx)
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

// doDue looks again under the operation lock, and does what is due.
func (s *Sandbox) doDue(ctx context.Context) {
	locked, err := s.lock(ctx)
	if err != nil {
		return
	}
	defer locked.unlock()
	limited, cancel := context.WithTimeout(ctx, dueTimeout)
	defer cancel()
	switch what, reason := s.state.claimDue(s.state.following().OnTimeout.Pauses()); what {
	case dueStop:
		err = locked.end(limited, Verdict{Status: StatusStopped, Reason: reason, Cause: wrenn.CauseTimeout})
	case duePause:
		err = locked.pauseAtEnd(limited)
		s.host.news.notify()
	case dueEnding:
		err = locked.finishEnding(limited)
	case dueOther:
		err = locked.tidy(limited)
	case dueRun:
		err = retryRun(limited, locked)
	default:
		return
	}
	if err != nil && ctx.Err() == nil {
		s.logError(ctx, slog.LevelError, "what is due of a sandbox cannot be done", err)
	}
}
