package service

import (
	"cmp"
	"context"
	"log/slog"

	"golang.org/x/sync/errgroup"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/scheduler"
)

// findToCopy returns a sandbox that can be copied. One that failed has the checkpoint that
// it can be restored from.
func (s *Snapshots) findToCopy(ctx context.Context, c Caller, id wrenn.SandboxID, cp wrenn.CheckpointID) (*wrenn.Sandbox, error) {
	sb, err := s.find(ctx, c, id, wrenn.Running, wrenn.Paused, wrenn.Failed)
	if err == nil && sb.State == wrenn.Failed && (cp == "" || !canBeRestored(sb)) {
		return nil, wrongState(sb, wrenn.Running)
	}
	return sb, err
}

// sourceElsewhere returns where a checkpoint is stored if the host of its sandbox cannot make
// the copies; zero if it can, or may know better.
func (s *Snapshots) sourceElsewhere(ctx context.Context, parent *wrenn.Sandbox, req ForkSandbox) (wrenn.CheckpointSource, error) {
	from := wrenn.CheckpointSource{Sandbox: parent.ID, Checkpoint: req.Checkpoint}
	answers := s.hosts.answers(ctx, parent.Host)
	if parent.State == wrenn.Failed || !answers {
		if parent.Newest.ID != req.Checkpoint { // of the others only the host knows
			return from, missingCheckpoint(parent, answers, req.Checkpoint)
		}
		from.Key = parent.Newest.Stored.Key
		return from, nil
	}
	if m := s.hosts.member(parent.Host); m != nil && m.schedulable() && s.hosts.fits(ctx, parent, req.Count) {
		return from, nil
	}
	host, err := s.hosts.clientOf(parent)
	if err != nil {
		return from, err
	}
	all, err := host.Checkpoints(ctx, parent.ID)
	for _, cp := range all.List {
		if cp.ID == req.Checkpoint && cp.Stored.IsOf(parent.Team) {
			from.Key = cp.Stored.Key
		}
	}
	return from, err
}

// missingCheckpoint is the error of a checkpoint that only the sandbox's host may have.
func missingCheckpoint(parent *wrenn.Sandbox, answers bool, cp wrenn.CheckpointID) error {
	switch {
	case parent.State == wrenn.Failed:
		return notLeft(parent, cp)
	case !answers && parent.Newest.ID != "":
		return wrenn.Errorf(wrenn.Unavailable, "host %s, which has sandbox %s, cannot be reached: meanwhile copies can be made of its newest stored checkpoint alone, which is %s", parent.Host, parent.ID, parent.Newest.ID)
	}
	return wrenn.Errorf(wrenn.Unavailable, "host %s, which has sandbox %s, cannot be reached, and no checkpoint of it is in the snapshot store: try again when the host is back", parent.Host, parent.ID)
}

// fits reports whether so many copies of a sandbox have room on its host, as far as is known.
func (f *fleet) fits(ctx context.Context, parent *wrenn.Sandbox, count int) bool {
	place := f.request(ctx, parent, parent.Host)
	place.MemoryMB, place.DiskMB = count*place.MemoryMB, count*place.DiskMB
	_, err := scheduler.Pick(f.candidates(true), &place)
	return wrenn.CodeOf(err) != wrenn.Exhausted
}

// copyElsewhere makes copies of a stored checkpoint on hosts that fit, unless it gets an error.
func (s *Snapshots) copyElsewhere(ctx context.Context, c Caller, parent *wrenn.Sandbox, req ForkSandbox, from wrenn.CheckpointSource, err error) (*Forked, error) {
	if err != nil {
		return nil, err
	}
	secrets, err := s.checkedSecrets(ctx, c.Team, parent.Network)
	if err != nil {
		return nil, err
	}
	place := s.hosts.restoring(ctx, parent)
	place.Origin = "" // it may be the one that is full
	on, err := s.hosts.reserve(&place)
	if err != nil {
		return nil, err
	}
	on.release(0)
	copies := describeCopies(parent, req)
	for i := range copies {
		copies[i].Host, copies[i].Reason = on.id, "of a stored checkpoint: "+on.why
	}
	rows, err := s.store.CreateSandboxes(ctx, copies, s.limits.Limits, c.actor())
	if err != nil {
		for i := range copies {
			s.handToReconcilerIfUnsure(ctx, &copies[i], err)
		}
		return nil, err
	}
	start := starting{core: s.core, actor: c.actor(), from: from}
	made := make([]forkedCopy, len(rows))
	var g errgroup.Group
	g.SetLimit(parallelRows)
	for i := range rows {
		rows[i].Secrets = secrets
		g.Go(func() error {
			made[i] = start.copy(ctx, &rows[i], on.member, place)
			return nil
		})
	}
	_ = g.Wait() // each copy has its own error
	return forked(made)
}

// copy makes the sandbox of a row on a host, or on another one that place allows.
func (s starting) copy(ctx context.Context, row *wrenn.Sandbox, on *member, place scheduler.Request) forkedCopy {
	place.Except = map[wrenn.HostID]bool{}
	reserved := on.reserve(1, row.MemoryMiB, cmp.Or(row.DiskMiB, wrenn.DefaultDiskMiB))
	now, err := s.create(ctx, row, reserved, &place)
	if err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "copy of a stored checkpoint failed", slog.String("sandbox", string(row.ID)), slog.String("parent", string(row.Parent)), slog.Any("err", err))
		return forkedCopy{row: row, err: err}
	}
	return forkedCopy{row: now}
}
