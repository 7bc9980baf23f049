package sandbox

import (
	"context"
	"fmt"

	"wrenn.dev/internal/host/sandbox/instance"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/vm"
)

// A sandbox gets another instance in three steps: build makes a pending instance;
// moveIn makes it the one that the sandbox runs in and retires the last one; tidy
// removes the retired one. An agent that dies in between leaves the pending or the
// retired instance in the journal as the other one, and the next agent removes it.

// build makes the sandbox's pending instance from the source, or claims one of
// the warm pool. When it fails what was made is still the other instance:
// discardOther.
func (s locked) build(ctx context.Context, from instance.Source) error {
	if claimed, err := s.buildFromPool(ctx, from); claimed || err != nil {
		return err
	}
	release, err := s.awaitTurn(ctx, from)
	if err != nil {
		return fmt.Errorf("sandbox %s: %w", s.id, err)
	}
	defer release()
	if from.Better != nil {
		if better, ok := from.Better(ctx); ok {
			defer better.Release()
			from = better
		}
	}
	s.other = s.host.instances.New(&s.owner, journal.Instance{Start: s.journal.Starts + 1, Source: from.Snapshot, Guest: from.Guest})
	if err := s.other.Build(ctx, from, s.pooled); err != nil {
		return fmt.Errorf("sandbox %s: %w", s.id, err)
	}
	return nil
}

// awaitTurn waits until the host has a place for another start like this, and shows
// that the sandbox waits. The caller releases the place.
func (s locked) awaitTurn(ctx context.Context, from instance.Source) (release func(), err error) {
	turns, what := &s.host.restores, "restored"
	if from.Snapshot == "" {
		turns, what = &s.host.boots, "booted"
	}
	waited := false
	release, err = turns.acquire(ctx, s.request.urgent, func(ahead int) {
		waited = true
		s.state.explain(fmt.Sprintf("waiting for its turn to be %s, with %d ahead of it", what, ahead))
	})
	if waited {
		s.state.explain("")
	}
	return release, err
}

// recordPending writes the pending instance to the journal.
func (s *Sandbox) recordPending(what string, pending journal.Instance) error {
	return s.journal.commit(what, func(j *journal.Journal) { j.Starts, j.Other = pending.Start, &pending })
}

// started shows the console of a machine that was started, unless the sandbox
// runs in another one, until it moves.
func (s *Sandbox) started(machine vm.Machine) {
	if s.instance == nil {
		s.console.Attach(machine)
	}
}

// makeRoom frees a network slot by removing a machine of the warm pool.
func (s *Sandbox) makeRoom(ctx context.Context) bool {
	return !s.pooled && s.host.pool.yieldOne(ctx)
}

// moveIn makes the pending instance the one that the sandbox runs in, and what it
// ran in until now the retired one. Writing that to the journal, with what change
// adds, is what makes it so.
func (s locked) moveIn(change func(*journal.Journal)) error {
	err := s.journal.commit(string(journal.StepRunning), func(j *journal.Journal) {
		j.Step, j.Snapshot, j.EndsAt = journal.StepRunning, "", s.state.beginLife()
		j.Instance, j.Other = j.Other, j.Instance
		change(j)
	})
	if err != nil {
		return err
	}
	s.instance, s.other = s.other, s.instance
	s.guest.Store(s.instance.Guest)
	s.console.Attach(s.instance.Machine)
	s.state.setStill(false)
	return nil
}

// tidy removes the other instance of a sandbox that runs in its own, or is
// paused, also when the caller is gone. What fails is tried again by Run.
func (s locked) tidy(ctx context.Context) error {
	ctx, cancel := detach(ctx)
	defer cancel()
	if err := s.discardOther(ctx); err != nil {
		s.state.retryLater()
		return s.explain("clean up", err)
	}
	s.state.clearRetry()
	return nil
}

// discardOther removes the pending or the retired instance, if there is one.
func (s locked) discardOther(ctx context.Context) error {
	if s.other == nil {
		return nil
	}
	if err := s.other.Discard(ctx, false); err != nil {
		return err
	}
	s.other = nil
	return s.journal.commitFreeing("other instance removed", func(j *journal.Journal) { j.Other = nil })
}

// discardInstances releases everything that the sandbox has but its directory.
func (s locked) discardInstances(ctx context.Context, keepDisk bool) error {
	if s.instance != nil {
		if err := s.instance.Discard(ctx, keepDisk); err != nil {
			return err
		}
	}
	if s.other != nil {
		return s.other.Discard(ctx, false)
	}
	return nil
}

// findInstances takes over what is left of the instances of an earlier agent.
func (s locked) findInstances(ctx context.Context) error {
	for _, inst := range []*instance.Instance{s.instance, s.other} {
		if inst != nil {
			if err := inst.Find(ctx); err != nil {
				return err
			}
		}
	}
	if s.instance != nil && s.instance.Machine != nil {
		s.console.Attach(s.instance.Machine)
	}
	return nil
}

// watch calls ended, with the operation lock, when the machine of the instance
// ends by itself. What ended does may stop the watcher. Beside, if not nil, runs until
// the watcher stops.
func (s locked) watch(ctx context.Context, inst *instance.Instance, beside func(context.Context), ended func(ctx context.Context, cause error)) {
	ctx = WithEpoch(ctx, 0) // it may have another epoch when the machine ends
	inst.Watch(s.context(ctx), &s.host.watchers, beside, func(ctx context.Context, cause error) {
		if _, err := s.lock(ctx); err != nil {
			return
		}
		defer s.unlock()
		ctx, cancel := detach(ctx)
		defer cancel()
		ended(ctx, cause)
	})
}

// stopWatching stops the watchers, which are waited for.
func (h *host) stopWatching() {
	for _, s := range h.registry.all() {
		for _, inst := range []*instance.Instance{s.instance, s.other} {
			if inst != nil {
				inst.Leave()
			}
		}
	}
	h.watchers.Wait()
}
