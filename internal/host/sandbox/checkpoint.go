package sandbox

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"
	"unicode/utf8"

	"wrenn"
	"wrenn/internal/host/sandbox/journal"
	"wrenn/internal/rollback"
	"wrenn/internal/snapshot"
)

const (
	// maxCheckpoints bounds a sandbox's tree; its journal holds all of it.
	maxCheckpoints = 128
)

// Checkpoints lists the sandbox's checkpoints, oldest first, and names the one
// that it goes on from, if any.
func (s *Sandbox) Checkpoints() (list []wrenn.Checkpoint, head wrenn.CheckpointID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.life.checkpoints), s.life.head
}

// show makes what the journal says of checkpoints visible.
func (s *Sandbox) show(j *journal.Journal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life.checkpoints, s.life.head = j.Checkpoints, j.Head
}

// Checkpoint keeps what the running sandbox is like now; the sandbox goes on.
// With an id, which is like that of a snapshot, the call can be repeated after a
// lost answer: the checkpoint of that id is returned if it is there. The name is for people.
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
	if err := s.lockAs(ctx, StatusRunning); err != nil {
		return wrenn.Checkpoint{}, err
	}
	defer s.unlock()
	if i := s.journal.Checkpoint(id); i >= 0 {
		return s.journal.Checkpoints[i], nil
	}
	if n := len(s.journal.Checkpoints); n >= maxCheckpoints {
		return wrenn.Checkpoint{}, wrenn.Errorf(wrenn.Exhausted, "sandbox %s has %d checkpoints, as many as it may: delete some", s.id, n)
	}
	return s.checkpoint(ctx, id, name)
}

func (s *Sandbox) checkpoint(ctx context.Context, id wrenn.CheckpointID, name string) (wrenn.Checkpoint, error) {
	began := time.Now()
	snap, release, err := s.capture(ctx, snapshot.Manifest{ID: string(id)})
	if err != nil {
		return wrenn.Checkpoint{}, err
	}
	defer s.m.litter() // if it is not noted
	defer release()
	c := wrenn.Checkpoint{ID: id, Parent: s.journal.Head, Name: name, CreatedAt: snap.Created, SizeBytes: snap.DataBytes()}
	err = s.commit("checkpoint", func(j *journal.Journal) {
		j.Checkpoints = append(slices.Clone(j.Checkpoints), c)
		j.Head = id
	})
	if err != nil {
		return wrenn.Checkpoint{}, s.explain("checkpoint", err)
	}
	s.show(s.journal)
	s.trace("checkpoint", began)
	return c, nil
}

func (s *Sandbox) findCheckpoint(id wrenn.CheckpointID) error {
	if s.journal.Checkpoint(id) < 0 {
		return wrenn.Errorf(wrenn.NotFound, "sandbox %s has no checkpoint %.80q", s.id, id)
	}
	return nil
}

// RestoreCheckpoint makes the sandbox what it was at the checkpoint. What it is
// now is lost, unless there is a checkpoint of it; no checkpoint is. A paused
// sandbox stays paused. When RestoreCheckpoint fails the sandbox goes on as
// before. NotFound when there is no such checkpoint. While it works a running sandbox
// has two network slots and twice its memory.
func (s *Sandbox) RestoreCheckpoint(ctx context.Context, id wrenn.CheckpointID) error {
	if err := s.lockAs(ctx, StatusRunning, StatusPaused); err != nil {
		return err
	}
	defer s.unlock()
	if err := s.findCheckpoint(id); err != nil {
		return err
	}
	if err := s.tidy(ctx); err != nil {
		return err
	}
	defer s.m.litter()
	if s.Info().Status == StatusPaused {
		return s.restorePaused(ctx, id)
	}
	return s.restoreRunning(ctx, id)
}

// restorePaused changes what the sandbox will go on from.
func (s *Sandbox) restorePaused(ctx context.Context, id wrenn.CheckpointID) error {
	from, err := s.m.restoration(ctx, string(id)) // if it is whole
	if err != nil {
		return s.explain("restore", err)
	}
	defer from.release()
	if err := s.commit("checkpoint restored", func(j *journal.Journal) { j.Snapshot, j.Head = string(id), id }); err != nil {
		return s.explain("restore", err)
	}
	s.show(s.journal)
	return nil
}

// restoreRunning stops the machine, makes another from the checkpoint, and
// moves over when that answers: until then it is the old one that counts.
func (s *Sandbox) restoreRunning(ctx context.Context, id wrenn.CheckpointID) (err error) {
	began := time.Now()
	s.set(StatusRestoring, "")
	ctx, done := s.interruptible(ctx)
	defer done()
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Run(ctx)) }()
	undo.AddFunc(func() { s.set(StatusRunning, "") })
	from, err := s.m.restoration(ctx, string(id))
	if err != nil {
		return s.explain("restore", err)
	}
	defer from.release()
	from.sole = true
	undo.Add(s.letRun)
	if err := s.body.machine.Pause(ctx); err != nil { // never both at once
		return s.explain("restore", err)
	}
	undo.Add(s.tidy)
	if err := s.build(ctx, from); err != nil {
		return s.explain("restore", err)
	}
	if err := s.moveIn(func(j *journal.Journal) { j.Head = id }); err != nil {
		return s.explain("restore", err)
	}
	undo.Keep()
	s.show(s.journal)
	s.watch(ctx)
	s.run()
	s.trace("restore", began)
	if err := s.tidy(ctx); err != nil { // Run tries again; the sandbox is what it was asked to be
		s.m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "the machine that a checkpoint took the place of cannot be removed yet", slog.String("sandbox", string(s.id)), slog.Any("err", err))
	}
	return nil
}

// DeleteCheckpoint removes a checkpoint; those that went on from it go on from
// its parent. Its files are gone when no machine needs them. One that is not
// there is no error.
func (s *Sandbox) DeleteCheckpoint(ctx context.Context, id wrenn.CheckpointID) error {
	if err := s.lockAs(ctx, StatusRunning, StatusPaused); err != nil {
		return err
	}
	defer s.unlock()
	i := s.journal.Checkpoint(id)
	if i < 0 {
		return nil
	}
	err := s.giveBack("checkpoint deleted", func(j *journal.Journal) { j.DeleteCheckpoint(i) })
	if err != nil {
		return s.explain("delete a checkpoint", err)
	}
	s.show(s.journal)
	s.m.litter()
	return nil
}
