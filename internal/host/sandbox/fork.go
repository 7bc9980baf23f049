package sandbox

import (
	"context"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/instance"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/snapshot"
)

// forksPerCPU bounds the copies that are made at a time. A restore is a matter of
// CPU for the most part, but waits for the journal on the disk as well.
const forksPerCPU = 4

// Forked is the result of one copy.
type Forked struct {
	wrenn.ForkResult
	Sandbox *Sandbox // nil when Err is set: then nothing of the copy is left
}

// Fork makes copies of a running or paused sandbox, which continues as it was: all
// of the same moment, each with its own identity, and with the template and
// timeouts of the sandbox. The answer has one entry for each id, in order.
// Tokens are the access tokens of the copies' agents.
// It may be repeated after a lost answer: existing copies stay as they are.
// Invalid for no ids, too many, or one twice; other errors are of single copies.
func (s *Sandbox) Fork(ctx context.Context, ids []wrenn.SandboxID, tokens map[wrenn.SandboxID]string) ([]Forked, error) {
	return s.ForkBy(ctx, wrenn.ForkSpec{IDs: ids, Tokens: tokens})
}

// ForkBy is Fork that can make copies of a checkpoint of the sandbox, whose settings
// they get as they are now. Without such a checkpoint each copy is NotFound.
func (s *Sandbox) ForkBy(ctx context.Context, fork wrenn.ForkSpec) ([]Forked, error) {
	ids := fork.IDs
	if err := checkForks(s.id, ids); err != nil {
		return nil, err
	}
	if err := s.CheckEpoch(ctx); err != nil {
		return nil, err
	}
	ctx = WithEpoch(ctx, 0) // which is that of s, not of the copies
	release := func() {}
	source := sync.OnceValues(func() (id string, err error) { // when the first copy is to be made
		id, r, err := s.forkSource(ctx, fork.Checkpoint)
		if err == nil {
			release = r
		}
		return id, err
	})
	copies := make([]Forked, len(ids))
	var work errgroup.Group
	work.SetLimit(forksPerCPU * runtime.GOMAXPROCS(0))
	for i, id := range ids {
		work.Go(func() error {
			copies[i] = s.forkOne(ctx, id, fork, source)
			return nil
		})
	}
	_ = work.Wait() // errors are in the answer
	release()
	s.host.garbage.mark()
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

// forkOne makes a copy, unless it exists, from the snapshot that source names.
func (s *Sandbox) forkOne(ctx context.Context, id wrenn.SandboxID, fork wrenn.ForkSpec, source func() (string, error)) Forked {
	req := s.request
	now := s.Info()
	settings := s.state.following()
	req.OnTimeout, req.AutoResume, req.CheckpointEvery = settings.OnTimeout, settings.AutoResume, settings.CheckpointEvery
	req.id, req.parent, req.Env, req.Timeout, req.Network = id, s.id, nil, now.Timeout, now.Network // the guest has its environment
	req.AccessToken, req.Epoch = fork.Tokens[id], fork.Epoch
	req.Secrets, req.authority = s.state.forHeaders()
	sb, err := s.host.ensure(ctx, req, func(ctx context.Context) (instance.Source, error) {
		snap, err := source()
		if err != nil {
			return instance.Source{}, err
		}
		from, err := s.host.snapshotSource(ctx, snap)
		if err != nil {
			return instance.Source{}, s.explain("fork", err)
		}
		return from, nil
	})
	return Forked{wrenn.ForkResult{ID: id, Err: err}, sb}
}

// forkSource returns a snapshot of what the sandbox is now, or that of a checkpoint,
// leased until release.
func (s *Sandbox) forkSource(ctx context.Context, from wrenn.CheckpointID) (id string, release func(), err error) {
	locked, err := s.lock(ctx, StatusRunning, StatusPaused)
	if err != nil {
		return "", nil, err
	}
	defer locked.unlock()
	if from != "" && s.journal.Checkpoint(from) < 0 {
		return "", nil, wrenn.Errorf(wrenn.NotFound, "sandbox %s has no checkpoint %.80q", s.id, from)
	}
	op := operation{name: "fork", trace: "fork"}
	paused := s.Info().Status == StatusPaused
	if paused || from != "" {
		op.trace = ""
	}
	var snap *snapshot.Snapshot
	err = locked.perform(ctx, op, func(ctx context.Context, undo *rollback.Stack) (err error) {
		switch {
		case from != "":
			snap, release, err = locked.loadCheckpoint(ctx, from)
		case paused:
			snap, release, err = s.host.snapshots.Load(ctx, s.journal.Snapshot)
		default:
			snap, release, err = locked.capture(ctx, undo, snapshot.Manifest{ID: newSnapshotID(), Transient: true})
		}
		return err
	})
	if err != nil {
		return "", nil, err
	}
	return snap.ID, release, nil
}
