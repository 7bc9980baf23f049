package sandbox

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"wrenn"
	"wrenn/internal/host/sandbox/journal"
)

// errDestroyed ends what is going on with a sandbox that somebody destroys.
var errDestroyed = wrenn.Errorf(wrenn.Canceled, "the sandbox is being destroyed")

// Ensure returns the sandbox that req asks for, running or paused: the one that
// is there, the one that is just being made, once it is, or a new one. It may
// be repeated after a lost answer. AlreadyExists when the id is taken by a sandbox of
// another template or shape, FailedPrecondition when it has ended,
// Exhausted when a limit of the host does not allow another one.
func (m *Manager) Ensure(ctx context.Context, req Request) (*Sandbox, error) {
	return m.ensure(ctx, req, func(ctx context.Context) (origin, error) { return m.origin(ctx, req) })
}

func (m *Manager) ensure(ctx context.Context, req Request, from func(context.Context) (origin, error)) (*Sandbox, error) {
	for {
		s, isNew, err := m.register(req)
		if err != nil {
			return nil, err
		}
		if isNew {
			if err := s.launch(ctx, from); err != nil {
				return nil, err
			}
			return s, nil
		}
		if s.request.Template != req.Template || s.request.Shape != req.Shape || s.request.parent != req.parent {
			return nil, wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s is there already, with another template, shape or parent", req.ID)
		}
		select {
		case <-s.made:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		info := s.Info()
		switch info.Status {
		case StatusRunning, StatusPausing, StatusPaused, StatusResuming, StatusRestoring:
			return s, nil
		case statusRemoved: // whoever made it failed; now it is this caller's turn
			continue
		default:
			return nil, info.refusal()
		}
	}
}

// register enters a new sandbox, whose turn the caller then has, or returns
// the one of that id.
func (m *Manager) register(req Request) (s *Sandbox, isNew bool, err error) {
	if _, err := wrenn.ParseSandboxID(string(req.ID)); err != nil {
		return nil, false, err
	}
	free, err := m.diskFreeMiB()
	if err != nil {
		return nil, false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.boxes[req.ID]; s != nil {
		return s, false, nil
	}
	if err := m.admit(req.Shape, free); err != nil {
		return nil, false, err
	}
	s = newSandbox(m, req)
	s.turn <- struct{}{}
	m.boxes[req.ID] = s
	return s, true, nil
}

func newSandbox(m *Manager, req Request) *Sandbox {
	now := time.Now()
	return &Sandbox{
		id: req.ID, m: m, request: req, made: make(chan struct{}), turn: newTurn(),
		life: life{status: StatusStarting, created: now, active: now, timeout: req.Timeout, version: m.versions.Add(1)},
	}
}

// revive enters the sandbox of a dead agent's journal, as one that is made.
func (m *Manager) revive(j *journal.Journal) *Sandbox {
	s := newSandbox(m, Request{
		ID: j.ID, Template: j.Template, Shape: j.Size, Timeout: j.Timeout, OnTimeout: Ending(j.OnTimeout), AutoResume: j.AutoResume, parent: j.Parent,
	})
	s.journal = j
	s.need(j.Snapshots())
	s.show(j)
	if j.Instance != nil {
		s.body = &body{s: s, note: *j.Instance}
	}
	if j.Other != nil {
		s.spare = &body{s: s, note: *j.Other}
	}
	if !j.Created.IsZero() {
		s.life.created = j.Created
	}
	close(s.made)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.boxes[j.ID] = s
	return s
}

// forget takes the sandbox out of the registry.
func (m *Manager) forget(s *Sandbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.boxes[s.id] == s {
		delete(m.boxes, s.id)
	}
}

// forgetUnmade ends the name of a sandbox whose launch failed, if its remains
// could be removed.
func (m *Manager) forgetUnmade(s *Sandbox) {
	if s.Info().Status == StatusStopping { // destroy failed; Run tries again
		return
	}
	s.set(statusRemoved, "")
	m.forget(s)
}

// Get returns the sandbox of that id, whatever it does. NotFound when there is none.
func (m *Manager) Get(id wrenn.SandboxID) (*Sandbox, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.boxes[id]; s != nil {
		return s, nil
	}
	return nil, wrenn.Errorf(wrenn.NotFound, "sandbox %s is not on this host", id)
}

// all returns the sandboxes in the order of their ids.
func (m *Manager) all() []*Sandbox {
	m.mu.Lock()
	defer m.mu.Unlock()
	boxes := make([]*Sandbox, 0, len(m.boxes))
	for _, id := range slices.Sorted(maps.Keys(m.boxes)) {
		boxes = append(boxes, m.boxes[id])
	}
	return boxes
}

// turn is a lock that can be waited for with a context. It holds one.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t turn) give() { <-t }

func (s *Sandbox) lock(ctx context.Context) error { return s.turn.take(ctx) }

func (s *Sandbox) unlock() { s.turn.give() }

// lockAs takes the turn of a sandbox that is in one of the states.
func (s *Sandbox) lockAs(ctx context.Context, states ...Status) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	info := s.Info()
	if slices.Contains(states, info.Status) {
		return nil
	}
	s.unlock()
	return info.refusal()
}

// interruptible is a context that ends as well when somebody destroys the
// sandbox: a guest, or a VMM that hangs, must not be able to delay that. The
// caller has the turn, and calls done before it gives it back.
func (s *Sandbox) interruptible(ctx context.Context) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	s.abortBy(cancel)
	return ctx, func() {
		s.abortBy(nil)
		cancel(nil)
	}
}

// DestroyAll destroys every sandbox but those in quarantine, at once.
func (m *Manager) DestroyAll(ctx context.Context) error {
	boxes := m.all()
	errs := make([]error, len(boxes))
	var work sync.WaitGroup
	for i, s := range boxes {
		if s.Info().Status != StatusQuarantined {
			work.Go(func() { errs[i] = s.Destroy(ctx) })
		}
	}
	work.Wait()
	return errors.Join(errs...)
}
