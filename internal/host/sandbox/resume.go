package sandbox

import (
	"cmp"
	"context"
	"sync"

	"wrenn"
	"wrenn/internal/host/sandbox/instance"
	"wrenn/internal/host/sandbox/journal"
	"wrenn/internal/rollback"
)

// Resume makes a paused sandbox continue from where it was. A running one stays
// running. When Resume fails the sandbox is paused as before. Exhausted when its
// memory does not fit on the host now. Several calls at once are one, which ends
// when none of the callers waits any more.
func (s *Sandbox) Resume(ctx context.Context) error { return s.ResumeWithToken(ctx, "") }

// ResumeWithToken is Resume, and gives the sandbox's agent the access token if it
// has none, as sandboxes that older versions made.
func (s *Sandbox) ResumeWithToken(ctx context.Context, token string) error {
	return s.resumes.do(ctx, func(ctx context.Context) error { return s.resume(ctx, token) })
}

// Boot is ResumeWithToken, but the sandbox boots from its disk: its processes, and
// what they have not written, are lost. A running one stays as it is.
func (s *Sandbox) Boot(ctx context.Context, token string) error {
	return s.resumeFrom(ctx, token, s.host.bootSource, true)
}

// resume is one Resume for all callers that wait for it.
func (s *Sandbox) resume(ctx context.Context, token string) error {
	return s.resumeFrom(ctx, token, s.host.snapshotSource, true)
}

// wake is Resume for a use of the sandbox: Unavailable when it is held.
func (s *Sandbox) wake(ctx context.Context) error {
	return s.resumes.do(ctx, func(ctx context.Context) error { return s.resumeFrom(ctx, "", s.host.snapshotSource, false) })
}

// resumeFrom resumes from a source; one that is held only with evenHeld.
func (s *Sandbox) resumeFrom(ctx context.Context, token string, source func(context.Context, string) (instance.Source, error), evenHeld bool) error {
	locked, err := s.lock(ctx, StatusRunning, StatusPaused)
	if err != nil {
		return err
	}
	defer locked.unlock()
	if s.Info().Status == StatusRunning {
		return nil
	}
	if s.journal.Held && !evenHeld {
		return wrenn.Errorf(wrenn.Unavailable, "sandbox %s is being moved to another host; try again in a moment", s.id)
	}
	s.host.uploads.stop(s.id)
	if err := locked.tidy(ctx); err != nil {
		return err
	}
	if err := s.host.registry.admitAs(s, StatusResuming); err != nil {
		return err
	}
	s.owner.AccessToken = cmp.Or(s.owner.AccessToken, token)
	op := operation{name: "resume", trace: "resume", back: StatusPaused, to: StatusRunning}
	return locked.perform(ctx, op, func(ctx context.Context, undo *rollback.Stack) error {
		from, err := source(ctx, s.journal.Snapshot)
		if err != nil {
			return err
		}
		return locked.restore(ctx, undo, from, func(j *journal.Journal) { j.AccessToken, j.Held = s.owner.AccessToken, false })
	})
}

// restore has the sandbox run in an instance that is made from the source, which it
// releases. Change goes with the journal entry that makes it so. It is for work of
// an operation.
func (s locked) restore(ctx context.Context, undo *rollback.Stack, from instance.Source, change func(*journal.Journal)) error {
	defer from.Release()
	from.Exclusive = true
	if s.instance != nil {
		undo.Add(s.letRun)
		if err := s.stopCPUs(ctx); err != nil { // never both at once
			return err
		}
	}
	undo.Add(s.tidy)
	if err := s.build(ctx, from); err != nil {
		return err
	}
	if err := s.moveIn(change); err != nil {
		return err
	}
	s.watchInstance(ctx)
	return nil
}

// sharedResume lets several callers wait for one resume. The zero value is ready.
type sharedResume struct {
	mu      sync.Mutex // guards what follows
	current *resume    // nil when none is at work
}

// resume is a resume that is at work.
type resume struct {
	done    chan struct{} // closed when err is set
	err     error
	waiters int // guarded by the sharedResume's mu
	cancel  context.CancelFunc
}

// do waits for the resume that is at work, or starts one by run.
func (r *sharedResume) do(ctx context.Context, run func(context.Context) error) error {
	w := r.join(ctx, run)
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		if r.removeWaiter(w) {
			w.cancel()
			<-w.done
		}
		return context.Cause(ctx)
	}
}

func (r *sharedResume) join(ctx context.Context, run func(context.Context) error) *resume {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current == nil {
		w := &resume{done: make(chan struct{})}
		ctx, w.cancel = context.WithCancel(context.WithoutCancel(ctx))
		r.current = w
		go func() { // its last waiter waits for its end
			w.err = run(ctx)
			w.cancel()
			r.end(w)
			close(w.done)
		}()
	}
	r.current.waiters++
	return r.current
}

// removeWaiter reports whether w has no waiters left; the next caller then starts
// a new resume.
func (r *sharedResume) removeWaiter(w *resume) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w.waiters--; w.waiters > 0 {
		return false
	}
	r.forget(w)
	return true
}

func (r *sharedResume) end(w *resume) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget(w)
}

// forget is for a caller that holds mu.
func (r *sharedResume) forget(w *resume) {
	if r.current == w {
		r.current = nil
	}
}
