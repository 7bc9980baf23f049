package sandbox

import (
	"context"
	"errors"
	"os"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/instance"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/rollback"
)

// sourceFunc returns what a new sandbox is made from.
type sourceFunc func(context.Context) (instance.Source, error)

// fixed returns a sourceFunc for a source that is loaded already.
func fixed(from instance.Source) sourceFunc {
	return func(context.Context) (instance.Source, error) { return from, nil }
}

// ensure returns the sandbox of the request, once it is made: the existing one, or
// a new one from the source. See Manager.Ensure.
func (h *host) ensure(ctx context.Context, req request, source sourceFunc) (*Sandbox, error) {
	for {
		s, isNew, err := h.register(req)
		if err != nil {
			return nil, err
		}
		if isNew {
			if err := (locked{s}).launch(ctx, source); err != nil {
				return nil, err
			}
			return s, nil
		}
		if ready, err := s.awaitMade(ctx, req); ready || err != nil {
			return s, err
		}
	}
}

// awaitMade waits until the sandbox is made, and reports whether it is the one of
// the request. If not, and there is no error, its launch has failed: the caller
// tries itself.
func (s *Sandbox) awaitMade(ctx context.Context, req request) (bool, error) {
	if epoch, _ := s.journal.epochs(); epoch != 0 && req.Epoch != 0 && epoch != req.Epoch {
		return false, wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s exists already, with epoch %d instead of %d", req.id, epoch, req.Epoch)
	}
	if s.request.Template != req.Template || s.request.Size != req.Size || s.request.parent != req.parent {
		return false, wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s exists already, with another template, size or parent", req.id)
	}
	select {
	case <-s.made:
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	switch info := s.Info(); info.Status {
	case StatusRunning, StatusPausing, StatusPaused, StatusResuming, StatusRestoring:
		return true, nil
	case statusRemoved:
		return false, nil
	default:
		return false, info.refusal()
	}
}

// create makes a new sandbox. It releases the source in any case.
func (h *host) create(ctx context.Context, req request, from instance.Source) (*Sandbox, error) {
	s, isNew, err := h.register(req)
	if err == nil && !isNew {
		err = wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s exists already", req.id)
	}
	if err != nil {
		from.Release()
		return nil, err
	}
	if err := (locked{s}).launch(ctx, fixed(from)); err != nil {
		return nil, err
	}
	return s, nil
}

// register enters a new sandbox, whose operation lock the caller then has, or
// returns the existing one of that id.
func (h *host) register(req request) (s *Sandbox, isNew bool, err error) {
	if _, err := wrenn.ParseSandboxID(string(req.id)); err != nil {
		return nil, false, err
	}
	s = newSandbox(h, req)
	s.op.TryLock() // it is new: nothing else knows it
	existing, err := h.registry.admit(s)
	if existing != nil || err != nil {
		return existing, false, err
	}
	return s, true, nil
}

// launch makes a registered sandbox, and unlocks it. A Destroy cancels the launch.
func (s locked) launch(ctx context.Context, source sourceFunc) error {
	defer s.unlock()
	defer close(s.made)
	err := s.perform(ctx, operation{to: StatusRunning}, func(ctx context.Context, undo *rollback.Stack) error {
		if err := s.assemble(ctx, undo, source); err != nil {
			return err
		}
		if err := s.moveIn(func(*journal.Journal) {}); err != nil {
			return err
		}
		s.watchInstance(ctx)
		return nil
	})
	if err != nil && !errors.Is(err, errDestroyed) {
		s.keepConsole(ctx, err)
	}
	return err
}

// assemble makes the sandbox's directory and its pending instance. Undo removes
// them, and has the sandbox forgotten unless that fails.
func (s locked) assemble(ctx context.Context, undo *rollback.Stack, source sourceFunc) error {
	undo.AddFunc(func() {
		if s.Info().Status != StatusStopping { // else destroy failed, and Run tries again
			s.remove()
		}
	})
	from, err := source(ctx)
	if err != nil {
		return err
	}
	defer from.Release()
	if err := s.enter(); err != nil {
		return err
	}
	undo.Add(s.destroy)
	return s.build(ctx, from)
}

// enter makes the directory of a new sandbox. Its journal is written when there
// is something to find.
func (s locked) enter() error {
	authority, err := authorityFor(s.id, s.owner.Network, s.owner.Authority)
	if err != nil {
		return err
	}
	s.owner.Authority = authority
	s.state.setNetwork(s.owner.Network, s.owner.Secrets, authority)
	if err := os.Mkdir(s.dir(), 0o711); err != nil {
		if errors.Is(err, os.ErrExist) {
			return wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s exists already", s.id)
		}
		return err
	}
	req := s.request
	s.journal.open(journal.New(s.dir(), s.id).With(func(j *journal.Journal) {
		j.Created, j.Step = s.Info().CreatedAt.UTC(), journal.StepMaking
		j.Template, j.Size, j.Timeout, j.OnTimeout, j.Absolute = req.Template, req.Size, req.Timeout, req.OnTimeout, req.Absolute
		j.DiskMiB = req.DiskMiB
		j.AutoResume, j.Network, j.Authority, j.Parent = req.AutoResume, req.Network, authority, req.parent
		j.AccessToken, j.Volumes, j.Team, j.Epoch = s.owner.AccessToken, req.Volumes, req.Team, req.Epoch
		j.CheckpointEvery = req.CheckpointEvery
	}))
	return s.at("directory made")
}
