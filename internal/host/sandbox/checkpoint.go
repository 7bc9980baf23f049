package sandbox

import (
	"context"
	"log/slog"
	"slices"
	"time"
	"unicode/utf8"

	"wrenn.dev"
	"wrenn.dev/internal/extents"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/snapshot"
)

// maxCheckpoints bounds a sandbox's tree; its journal holds all of it.
const maxCheckpoints = 128

// What a measurement of checkpoints may cost. A guest can write its disk so that it is in
// millions of pieces.
const (
	maxPieces  = 1 << 20 // 16 MiB of memory; read in less than a second
	maxMeasure = 5 * time.Second
)

// Checkpoints returns the sandbox's checkpoints, not measured.
func (s *Sandbox) Checkpoints() wrenn.Checkpoints {
	list, head := s.journal.checkpoints()
	return wrenn.Checkpoints{List: slices.Clone(list), Head: head}
}

// MeasureCheckpoints sets the OwnBytes of the checkpoints that it can measure, and
// DiskBytes if it can measure all. It takes maxMeasure at most.
func (s *Sandbox) MeasureCheckpoints(ctx context.Context, all *wrenn.Checkpoints) {
	ctx, cancel := context.WithTimeout(ctx, maxMeasure)
	defer cancel()
	if s.host.measuring.Lock(ctx) != nil {
		return
	}
	defer s.host.measuring.Unlock()
	sets, pieces := make([]*extents.Set, 0, len(all.List)), maxPieces
	for i := range all.List {
		set, err := s.host.snapshots.Extents(ctx, string(all.List[i].ID), pieces)
		if err != nil {
			continue // deleted, or the file system does not tell
		}
		all.List[i].OwnBytes = new(set.Own())
		sets, pieces = append(sets, set), pieces-set.Len()
	}
	if len(sets) == len(all.List) {
		all.DiskBytes = new(extents.Total(sets...))
	}
}

// Checkpoint keeps what the running sandbox is like now; the sandbox continues.
// With an id, which is like that of a snapshot, the call can be repeated after a
// lost answer: it returns the checkpoint of that id if it exists. The name is for people.
func (s *Sandbox) Checkpoint(ctx context.Context, id wrenn.CheckpointID, name string) (wrenn.Checkpoint, error) {
	if id == "" {
		id = wrenn.CheckpointID(newSnapshotID())
	}
	if err := snapshot.CheckID(string(id)); err != nil {
		return wrenn.Checkpoint{}, err
	}
	if len(name) > wrenn.MaxCheckpointNameBytes || !utf8.ValidString(name) {
		return wrenn.Checkpoint{}, wrenn.Errorf(wrenn.Invalid, "the name of a checkpoint is text of up to %d bytes", wrenn.MaxCheckpointNameBytes)
	}
	locked, err := s.lock(ctx, StatusRunning)
	if err != nil {
		return wrenn.Checkpoint{}, err
	}
	defer locked.unlock()
	if i := s.journal.Checkpoint(id); i >= 0 {
		return s.journal.Checkpoints[i], nil
	}
	if n := len(s.journal.Checkpoints); n >= maxCheckpoints {
		return wrenn.Checkpoint{}, wrenn.Errorf(wrenn.Exhausted, "sandbox %s is at the limit of %d checkpoints: delete some", s.id, n)
	}
	return locked.checkpoint(ctx, wrenn.Checkpoint{ID: id, Name: name})
}

// checkpoint is Checkpoint of a new one.
func (s locked) checkpoint(ctx context.Context, c wrenn.Checkpoint) (wrenn.Checkpoint, error) {
	id := c.ID
	err := s.perform(ctx, operation{name: "checkpoint", trace: "checkpoint"}, func(ctx context.Context, undo *rollback.Stack) error {
		snap, release, err := s.capture(ctx, undo, snapshot.Manifest{ID: string(id)})
		if err != nil {
			return err
		}
		defer s.host.garbage.mark() // if it is not recorded
		defer release()
		c.Parent, c.CreatedAt, c.SizeBytes = s.journal.Head, snap.Created, snap.DataBytes()
		return s.journal.commit("checkpoint", func(j *journal.Journal) {
			j.Checkpoints = append(slices.Clone(j.Checkpoints), c)
			j.Head = id
		})
	})
	if err != nil {
		return wrenn.Checkpoint{}, err
	}
	s.host.uploads.wake.Notify()
	return c, nil
}

// RestoreCheckpoint makes the sandbox what it was at the checkpoint. What it is
// now is lost, unless there is a checkpoint of it; no checkpoint is. A paused
// sandbox stays paused. When RestoreCheckpoint fails the sandbox continues as
// before. NotFound when there is no such checkpoint. During the call a running
// sandbox has two network slots and twice its memory.
func (s *Sandbox) RestoreCheckpoint(ctx context.Context, id wrenn.CheckpointID) error {
	locked, err := s.lock(ctx, StatusRunning, StatusPaused)
	if err != nil {
		return err
	}
	defer locked.unlock()
	if s.journal.Checkpoint(id) < 0 {
		return wrenn.Errorf(wrenn.NotFound, "sandbox %s has no checkpoint %.80q", s.id, id)
	}
	if err := locked.tidy(ctx); err != nil {
		return err
	}
	defer s.host.garbage.mark()
	if s.Info().Status == StatusPaused {
		return locked.restorePaused(ctx, id)
	}
	return locked.restoreRunning(ctx, id)
}

// restorePaused changes what the sandbox will continue from.
func (s locked) restorePaused(ctx context.Context, id wrenn.CheckpointID) error {
	return s.perform(ctx, operation{name: "restore"}, func(ctx context.Context, _ *rollback.Stack) error {
		from, err := s.checkpointSource(ctx, id)
		if err != nil {
			return err
		}
		defer from.Release()
		return s.journal.commit("checkpoint restored", func(j *journal.Journal) { j.Snapshot, j.Head = string(id), id })
	})
}

// restoreRunning stops the machine, makes another from the checkpoint, and
// moves over when that answers: until then it is the old one that counts.
func (s locked) restoreRunning(ctx context.Context, id wrenn.CheckpointID) error {
	if err := s.host.registry.admitAs(s.Sandbox, StatusRestoring); err != nil {
		return err
	}
	op := operation{name: "restore", trace: "restore", back: StatusRunning, to: StatusRunning}
	err := s.perform(ctx, op, func(ctx context.Context, undo *rollback.Stack) error {
		from, err := s.checkpointSource(ctx, id)
		if err != nil {
			return err
		}
		return s.restore(ctx, undo, from, func(j *journal.Journal) { j.Head = id })
	})
	if err != nil {
		return err
	}
	if err := s.tidy(ctx); err != nil { // the sandbox is what it was asked to be
		s.logError(ctx, slog.LevelWarn, "machine that a checkpoint replaced cannot be removed yet", err)
	}
	return nil
}

// DeleteCheckpoint removes a checkpoint; those that continued from it continue
// from its parent. Its files are removed when no machine needs them. It is no error
// if the checkpoint does not exist.
func (s *Sandbox) DeleteCheckpoint(ctx context.Context, id wrenn.CheckpointID) error {
	locked, err := s.lock(ctx, StatusRunning, StatusPaused)
	if err != nil {
		return err
	}
	defer locked.unlock()
	i := s.journal.Checkpoint(id)
	if i < 0 {
		return nil
	}
	return locked.deleteCheckpoint(i)
}

// deleteCheckpoint deletes the checkpoint with that index.
func (s locked) deleteCheckpoint(i int) error {
	err := s.journal.commitFreeing("checkpoint deleted", func(j *journal.Journal) {
		j.DeleteCheckpoint(i)
		j.Stored = nil // which names it
	})
	if err != nil {
		return s.explain("delete a checkpoint", err)
	}
	s.host.garbage.mark()
	s.state.touchVersion()
	s.host.uploads.wake.Notify()
	return nil
}
