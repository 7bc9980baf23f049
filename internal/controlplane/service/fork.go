package service

import (
	"cmp"
	"context"
	"log/slog"
	"slices"

	"golang.org/x/sync/errgroup"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
)

// parallelRows bounds the rows of one fork that are written at a time, so that
// other requests find connections to the database.
const parallelRows = 8

// ForkSandbox describes the copies to make.
type ForkSandbox struct {
	Count    int               // 1 to 100
	Metadata map[string]string // of each; nil is that of the sandbox
	// Checkpoint is that of the sandbox which they are copies of; "" is the sandbox as it
	// is now.
	Checkpoint wrenn.CheckpointID
}

// Forked is the result of a fork.
type Forked struct {
	Sandboxes []wrenn.Sandbox // that run
	Failed    []FailedCopy
}

// FailedCopy is a copy that does not run; only its row is left.
type FailedCopy struct {
	ID  wrenn.SandboxID
	Err error
}

// ForkSandbox returns when the copies run, all of one moment, on the sandbox's
// host; the sandbox continues to run, or stays paused. Copies of a stored checkpoint are made
// on other hosts when that one cannot be reached, takes no new sandboxes or is full, also of
// a sandbox that failed. Each copy counts for the
// team's limits: without room for all none is made. It is an error when no copy runs,
// NotFound when the sandbox has no such checkpoint.
func (s *Snapshots) ForkSandbox(ctx context.Context, c Caller, id wrenn.SandboxID, req ForkSandbox) (*Forked, error) {
	if req.Count < 1 || req.Count > wrenn.MaxForks {
		return nil, wrenn.Errorf(wrenn.Invalid, "a sandbox is forked into 1 to %d copies at a time, not %d", wrenn.MaxForks, req.Count)
	}
	if err := checkMetadata(req.Metadata); err != nil {
		return nil, err
	}
	parent, err := s.findToCopy(ctx, c, id, req.Checkpoint)
	if err != nil {
		return nil, err
	}
	if req.Checkpoint != "" {
		if from, err := s.sourceElsewhere(ctx, parent, req); err != nil || from.Key != "" {
			return s.copyElsewhere(ctx, c, parent, req, from, err)
		}
	}
	host, err := s.hosts.clientOf(parent)
	if err != nil {
		return nil, err
	}
	if err := hasCheckpoint(ctx, host, id, req.Checkpoint); err != nil {
		return nil, err
	}
	on, err := s.hosts.copies(parent.Host)
	if err != nil {
		return nil, err
	}
	copies := describeCopies(parent, req)
	rows, err := s.store.CreateSandboxes(ctx, copies, s.limits.Limits, c.actor())
	if err != nil {
		for i := range copies {
			s.handToReconcilerIfUnsure(ctx, &copies[i], err)
		}
		return nil, err
	}
	s.used.add(id)
	f := &fork{starting: starting{core: s.core, actor: c.actor()}, parent: parent, from: req.Checkpoint, on: on, host: host, copies: make([]forkedCopy, len(rows))}
	for i := range rows {
		f.copies[i].row = &rows[i]
	}
	f.run(ctx)
	return f.result()
}

// hasCheckpoint returns NotFound if a sandbox has no such checkpoint, before rows of
// copies are made. "" is none.
func hasCheckpoint(ctx context.Context, host *hostclient.Client, id wrenn.SandboxID, cp wrenn.CheckpointID) error {
	if cp == "" {
		return nil
	}
	all, err := host.Checkpoints(ctx, id)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all.List, func(c wrenn.Checkpoint) bool { return c.ID == cp }) {
		return wrenn.Errorf(wrenn.NotFound, "sandbox %s has no checkpoint %.80q", id, cp)
	}
	return nil
}

// describeCopies returns the rows of copies, which start on the parent's host.
func describeCopies(parent *wrenn.Sandbox, req ForkSandbox) []wrenn.Sandbox {
	copies := make([]wrenn.Sandbox, req.Count)
	for i := range copies {
		copies[i] = wrenn.Sandbox{
			ID: wrenn.NewSandboxID(), Parent: parent.ID, Team: parent.Team, Host: parent.Host,
			SandboxSpec: parent.SandboxSpec, Metadata: parent.Metadata, Requires: parent.Requires, OnHostLoss: parent.OnHostLoss, Reason: "copies are made on the host of their parent",
		}
		if req.Metadata != nil {
			copies[i].Metadata = req.Metadata
		}
	}
	return copies
}

// fork is a fork whose copies have rows.
type fork struct {
	starting
	parent *wrenn.Sandbox
	from   wrenn.CheckpointID // "" is the parent as it is now
	on     *member
	host   *hostclient.Client
	copies []forkedCopy
}

type forkedCopy struct {
	row *wrenn.Sandbox
	err error // why it was undone
}

// run has the host make the copies, and brings their rows to running or undoes them.
func (f *fork) run(ctx context.Context) {
	ids := make([]wrenn.SandboxID, len(f.copies))
	for i := range f.copies {
		ids[i] = f.copies[i].row.ID
	}
	reserved := f.on.reserve(len(ids), f.parent.MemoryMiB, cmp.Or(f.parent.DiskMiB, wrenn.DefaultDiskMiB))
	tokens, err := f.tokens.ofAll(ctx, ids)
	var results []error
	if err == nil {
		results, err = f.host.Fork(ctx, f.parent.ID, wrenn.ForkSpec{IDs: ids, Tokens: tokens, Checkpoint: f.from, Epoch: f.copies[0].row.Epoch})
	}
	if err != nil {
		err = f.markLostIfNotFound(ctx, f.parent, err)
	}
	made := 0
	for i := range f.copies {
		f.copies[i].err = err
		if err == nil {
			f.copies[i].err = results[i]
		}
		if f.copies[i].err == nil {
			made++
		}
	}
	reserved.release(made)
	var g errgroup.Group
	g.SetLimit(parallelRows)
	for i := range f.copies {
		g.Go(func() error { f.finishCopy(ctx, &f.copies[i]); return nil })
	}
	_ = g.Wait() // each copy has its own error
}

// finishCopy writes that a copy runs, or undoes it if it has an error.
func (f *fork) finishCopy(ctx context.Context, c *forkedCopy) {
	if c.err != nil {
		f.log.LogAttrs(ctx, slog.LevelWarn, "copy of a sandbox failed", slog.String("sandbox", string(c.row.ID)),
			slog.String("parent", string(f.parent.ID)), slog.String("host", string(f.parent.Host)), slog.Any("err", c.err))
		c.err = f.abandon(ctx, c.row, c.err)
		return
	}
	running, err := f.finish(ctx, c.row)
	if err != nil {
		c.err = err
		return
	}
	c.row = running
}

// result returns the copies that run and those that do not.
func (f *fork) result() (*Forked, error) { return forked(f.copies) }

func forked(copies []forkedCopy) (*Forked, error) {
	out := &Forked{}
	for _, c := range copies {
		if c.err != nil {
			out.Failed = append(out.Failed, FailedCopy{ID: c.row.ID, Err: c.err})
			continue
		}
		out.Sandboxes = append(out.Sandboxes, *c.row)
	}
	if len(out.Sandboxes) == 0 {
		return nil, out.Failed[0].Err
	}
	return out, nil
}
