package sandbox

import (
	"context"
	"errors"
	"time"

	"wrenn/internal/host/sandbox/journal"
	"wrenn/internal/rollback"
	"wrenn/internal/snapshot"
)

// tidyTimeout bounds what must be done although the caller may be gone.
const tidyTimeout = 30 * time.Second

// Pause writes the sandbox to the disk and gives back its memory and all else,
// until Resume. A paused one stays paused. When Pause fails the sandbox runs as
// before; unless it is the rest of its machine that cannot be removed: then it
// is paused, and Run tries again. FailedPrecondition unless it runs or is paused.
func (s *Sandbox) Pause(ctx context.Context) error {
	if err := s.lockAs(ctx, StatusRunning, StatusPaused); err != nil {
		return err
	}
	defer s.unlock()
	if s.Info().Status == StatusPaused {
		return s.tidy(ctx)
	}
	return s.pause(ctx)
}

// pause is Pause of a running sandbox for who has the turn.
func (s *Sandbox) pause(ctx context.Context) (err error) {
	began := time.Now()
	s.set(StatusPausing, "")
	ctx, done := s.interruptible(ctx)
	defer done()
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Run(ctx)) }()
	undo.AddFunc(func() { s.set(StatusRunning, "") })
	staged, err := s.m.snapshots.Stage()
	if err != nil {
		return s.explain("pause", err)
	}
	undo.Add(staged.Discard)
	if err := s.standStill(ctx, staged, &undo); err != nil {
		return s.explain("pause", err)
	}
	snap, release, err := s.publish(ctx, staged, snapshot.Manifest{ID: newSnapshotID()})
	if err != nil {
		return err
	}
	defer s.m.litter() // its last snapshot, or this one if it is not noted
	defer release()
	err = s.commit(string(journal.StepPaused), func(j *journal.Journal) {
		j.Step, j.Snapshot, j.Frozen = journal.StepPaused, snap.ID, false
		j.Instance, j.Other = nil, j.Instance
	})
	if err != nil {
		return s.explain("pause", err)
	}
	undo.Keep() // from here on it is paused
	s.body, s.spare = nil, s.body
	err = s.tidy(ctx)
	s.set(StatusPaused, "")
	s.trace("pause", began)
	return err
}

// tidy removes the spare body of a sandbox that runs in another, or in none,
// also when the caller is gone; what does not work is tried again by Run. The
// caller has the turn.
func (s *Sandbox) tidy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTimeout)
	defer cancel()
	if err := s.discardSpare(ctx); err != nil {
		s.retryLater()
		return s.explain("clean up", err)
	}
	s.clearRetry()
	return nil
}

// Resume makes a paused sandbox go on from where it was. A running one stays
// running. When Resume fails the sandbox is paused as before. Exhausted when
// its memory does not fit on the host now. Several calls at once are one, which goes on
// until none of the callers waits any more.
func (s *Sandbox) Resume(ctx context.Context) error { return s.wakeUp(ctx) }

// resume is one Resume for all who wait for it.
func (s *Sandbox) resume(ctx context.Context) (err error) {
	if err := s.lockAs(ctx, StatusRunning, StatusPaused); err != nil {
		return err
	}
	defer s.unlock()
	if s.Info().Status == StatusRunning {
		return nil
	}
	began := time.Now()
	if err := s.tidy(ctx); err != nil {
		return err
	}
	if err := s.m.admitResume(s); err != nil {
		return err
	}
	ctx, done := s.interruptible(ctx)
	defer done()
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Run(ctx)) }()
	undo.AddFunc(func() { s.set(StatusPaused, "") })
	from, err := s.m.restoration(ctx, s.journal.Snapshot)
	if err != nil {
		return s.explain("resume", err)
	}
	defer from.release()
	from.sole = true
	undo.Add(s.tidy)
	if err := s.build(ctx, from); err != nil {
		return s.explain("resume", err)
	}
	if err := s.moveIn(func(*journal.Journal) {}); err != nil {
		return s.explain("resume", err)
	}
	undo.Keep()
	s.watch(ctx)
	s.run()
	s.trace("resume", began)
	return nil
}

// run says that the sandbox runs, and that it was used now.
func (s *Sandbox) run() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life.change(StatusRunning, "")
	s.life.active, s.life.patient = time.Now(), time.Time{}
	s.changed()
}

// wake is a Resume that several wait for.
type wake struct {
	done    chan struct{} // closed when err is set
	err     error
	waiters int // guarded by the sandbox's mu
	cancel  context.CancelFunc
}

// wakesUp says whether who wants to use the sandbox has it resumed.
func (s *Sandbox) wakesUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.life.status {
	case StatusPausing, StatusPaused, StatusResuming, StatusRestoring:
		return s.request.AutoResume
	default:
		return false
	}
}

// wakeUp waits for the one Resume that is going on, which it begins if need be.
func (s *Sandbox) wakeUp(ctx context.Context) error {
	w := s.joinWake(ctx)
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		s.leaveWake(w)
		return context.Cause(ctx)
	}
}

func (s *Sandbox) joinWake(ctx context.Context) *wake {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waking == nil {
		w := &wake{done: make(chan struct{})}
		ctx, w.cancel = context.WithCancel(context.WithoutCancel(ctx))
		s.waking = w
		go func() { // the last who waits for it waits for its end
			w.err = s.resume(ctx)
			w.cancel()
			s.endWake(w)
			close(w.done)
		}()
	}
	s.waking.waiters++
	return s.waking
}

// leaveWake gives the Resume up if nobody else waits for it.
func (s *Sandbox) leaveWake(w *wake) {
	if s.isLastToLeave(w) {
		w.cancel()
		<-w.done
	}
}

// isLastToLeave counts a waiter less. When none is left who comes next begins another.
func (s *Sandbox) isLastToLeave(w *wake) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.waiters--; w.waiters > 0 {
		return false
	}
	if s.waking == w {
		s.waking = nil
	}
	return true
}

func (s *Sandbox) endWake(w *wake) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waking == w {
		s.waking = nil
	}
}
