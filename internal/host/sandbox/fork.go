package sandbox

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"wrenn"
	"wrenn/internal/snapshot"
)

const (
	// forksPerCPU bounds those that are made at a time. A restore is a matter of CPU for
	// the most part, but waits for the journal on the disk as well.
	forksPerCPU = 4
)

// Forked is what became of one copy.
type Forked struct {
	ID      wrenn.SandboxID
	Sandbox *Sandbox // nil when Err is set: then nothing of the copy is left
	Err     error
}

// Fork makes copies of a running or paused sandbox, which goes on as it was: all
// of the same moment, each with an identity of its own, and with the template
// and timeouts of the sandbox. The answer has one entry for each id, in order.
// It may be repeated after a lost answer: copies that are there stay as they are.
// Invalid for no ids, too many, or one twice; other errors are of single copies.
func (s *Sandbox) Fork(ctx context.Context, ids []wrenn.SandboxID) ([]Forked, error) {
	if err := checkForks(s.id, ids); err != nil {
		return nil, err
	}
	let := func() {}
	take := sync.OnceValues(func() (id string, err error) { // when the first copy is to be made
		id, release, err := s.hold(ctx)
		if err == nil {
			let = release
		}
		return id, err
	})
	copies := make([]Forked, len(ids))
	var work errgroup.Group
	work.SetLimit(forksPerCPU * runtime.GOMAXPROCS(0))
	for i, id := range ids {
		work.Go(func() error {
			copies[i] = s.forkOne(ctx, id, take)
			return nil
		})
	}
	_ = work.Wait() // what goes wrong is in the answer
	let()
	s.m.litter()
	return copies, nil
}

func checkForks(parent wrenn.SandboxID, ids []wrenn.SandboxID) error {
	if len(ids) == 0 || len(ids) > wrenn.MaxForks {
		return wrenn.Errorf(wrenn.Invalid, "a sandbox is forked into 1 to %d copies at a time", wrenn.MaxForks)
	}
	for i, id := range ids {
		if _, err := wrenn.ParseSandboxID(string(id)); err != nil {
			return err
		}
		if id == parent || slices.Contains(ids[:i], id) {
			return wrenn.Errorf(wrenn.Invalid, "id %s is used twice", id)
		}
	}
	return nil
}

// forkOne makes a copy, unless it is there, from the snapshot that take returns.
func (s *Sandbox) forkOne(ctx context.Context, id wrenn.SandboxID, take func() (string, error)) Forked {
	req := s.request
	req.ID, req.parent, req.Env, req.Timeout = id, s.id, nil, s.Info().Timeout // the guest has its environment
	sb, err := s.m.ensure(ctx, req, func(ctx context.Context) (origin, error) {
		moment, err := take()
		if err != nil {
			return origin{}, err
		}
		from, err := s.m.restoration(ctx, moment)
		if err != nil {
			return origin{}, s.explain("fork", err)
		}
		return from, nil
	})
	return Forked{ID: id, Sandbox: sb, Err: err}
}

// hold returns a snapshot of what the sandbox is now, which stays until release
// is called.
func (s *Sandbox) hold(ctx context.Context) (id string, release func(), err error) {
	if err := s.lockAs(ctx, StatusRunning, StatusPaused); err != nil {
		return "", nil, err
	}
	defer s.unlock()
	if s.Info().Status == StatusPaused {
		snap, release, err := s.m.snapshots.Load(ctx, s.journal.Snapshot)
		if err != nil {
			return "", nil, s.explain("fork", err)
		}
		return snap.ID, release, nil
	}
	began := time.Now()
	snap, release, err := s.capture(ctx, snapshot.Manifest{ID: newSnapshotID(), Transient: true})
	if err != nil {
		return "", nil, err
	}
	s.trace("fork", began)
	return snap.ID, release, nil
}
