package service

import (
	"context"
	"log/slog"

	"golang.org/x/sync/errgroup"

	"wrenn"
	"wrenn/internal/controlplane/hostclient"
	"wrenn/internal/controlplane/postgres"
)

// parallelRows bounds the rows of one fork that are written at a time, so that
// other requests find connections to the database.
const parallelRows = 8

// ForkSandbox is what copies to make.
type ForkSandbox struct {
	Count    int               // 1 to 100
	Metadata map[string]string // of each; nil is that of the sandbox
}

// Forked is what became of a fork.
type Forked struct {
	Sandboxes []wrenn.Sandbox // that run
	Failed    []FailedCopy
}

// FailedCopy is a copy that does not run; nothing is left of it but its row.
type FailedCopy struct {
	ID  wrenn.SandboxID
	Err error
}

// ForkSandbox returns when the copies run, all of one moment, on the sandbox's
// host; the sandbox goes on, or sleeps on, as it was. Each copy counts for the
// team's limits: without room for all none is made. It is an error when no copy runs.
func (s *Service) ForkSandbox(ctx context.Context, c Caller, id wrenn.SandboxID, req ForkSandbox) (*Forked, error) {
	if req.Count < 1 || req.Count > wrenn.MaxForks {
		return nil, wrenn.Errorf(wrenn.Invalid, "a sandbox is forked into 1 to %d copies at a time, not %d", wrenn.MaxForks, req.Count)
	}
	if err := checkMetadata(req.Metadata); err != nil {
		return nil, err
	}
	parent, host, err := s.at(ctx, c, id, wrenn.Running, wrenn.Paused)
	if err != nil {
		return nil, err
	}
	copies := describeCopies(parent, req)
	rows, err := s.store.CreateSandboxes(ctx, copies, s.cfg.Limits.ofTeam(), c.actor())
	if err != nil {
		for i := range copies {
			s.leaveIfWritten(ctx, &copies[i], err)
		}
		return nil, err
	}
	s.usedBoxes.add(id)
	f := &fork{service: s, parent: parent, host: host, actor: c.actor(), copies: make([]forkedCopy, len(rows))}
	for i := range rows {
		f.copies[i].row = &rows[i]
	}
	return f.run(ctx)
}

// describeCopies is the rows of copies: what the host gives them of the sandbox is the same.
func describeCopies(parent *wrenn.Sandbox, req ForkSandbox) []wrenn.Sandbox {
	copies := make([]wrenn.Sandbox, req.Count)
	for i := range copies {
		copies[i] = wrenn.Sandbox{
			ID: wrenn.NewSandboxID(), Parent: parent.ID, Team: parent.Team, Metadata: parent.Metadata, SandboxSpec: parent.SandboxSpec,
		}
		if req.Metadata != nil {
			copies[i].Metadata = req.Metadata
		}
	}
	return copies
}

// fork is copies on their way.
type fork struct {
	service *Service
	parent  *wrenn.Sandbox
	host    *hostclient.Client
	actor   string
	copies  []forkedCopy
}

type forkedCopy struct {
	row *wrenn.Sandbox
	err error // it is undone
}

// run brings the copies from pending rows to running ones, or undoes them.
func (f *fork) run(ctx context.Context) (*Forked, error) {
	f.each(func(c *forkedCopy) { f.assign(ctx, c) })
	f.ask(ctx)
	out := &Forked{}
	for _, c := range f.copies {
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

func (f *fork) each(do func(*forkedCopy)) {
	var g errgroup.Group
	g.SetLimit(parallelRows)
	for i := range f.copies {
		g.Go(func() error { do(&f.copies[i]); return nil })
	}
	_ = g.Wait() // each has its own error
}

// assign says in the row of a copy that the parent's host makes it.
func (f *fork) assign(ctx context.Context, c *forkedCopy) {
	moved, err := f.service.store.MoveSandbox(ctx, c.row, postgres.Move{To: wrenn.Starting, Host: f.parent.Host, Actor: f.actor})
	if err != nil {
		c.err = f.service.abandon(ctx, c.row, f.actor, err)
		return
	}
	c.row = moved
}

// ask has the host make the copies that are assigned to it, and ends their rows.
func (f *fork) ask(ctx context.Context) {
	var asked []wrenn.SandboxID
	for _, c := range f.copies {
		if c.err == nil {
			asked = append(asked, c.row.ID)
		}
	}
	if len(asked) == 0 {
		return
	}
	done := f.service.fleet.members[f.parent.Host].reserve(len(asked), f.parent.MemoryMiB)
	results, err := f.host.Fork(ctx, f.parent.ID, asked)
	if err != nil {
		err = f.service.orLost(ctx, f.parent, err)
	}
	failed, made := map[wrenn.SandboxID]error{}, 0
	for i, id := range asked {
		failed[id] = err
		if err == nil {
			failed[id] = results[i]
		}
		if failed[id] == nil {
			made++
		}
	}
	done(made)
	f.each(func(c *forkedCopy) { f.finish(ctx, c, failed[c.row.ID]) })
}

func (f *fork) finish(ctx context.Context, c *forkedCopy, failed error) {
	switch {
	case c.err != nil:
	case failed != nil:
		f.service.log.LogAttrs(ctx, slog.LevelWarn, "a copy of a sandbox was not made", slog.String("sandbox", string(c.row.ID)),
			slog.String("parent", string(f.parent.ID)), slog.String("host", string(f.parent.Host)), slog.Any("error", failed))
		c.err = f.service.abandon(ctx, c.row, f.actor, failed)
	default:
		var running *wrenn.Sandbox
		if running, c.err = f.service.started(ctx, c.row, f.actor); c.err == nil {
			c.row = running
		}
	}
}
