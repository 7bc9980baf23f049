package sandbox

import (
	"cmp"
	"context"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/instance"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/rollback"
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
	s.host.uploads.stop(string(s.id))
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
