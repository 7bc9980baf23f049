package sandbox

import (
	"context"
	"errors"
	"log/slog"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/snapshot"
)

// Pause writes the sandbox to the disk and releases its memory and everything
// else, until Resume. A paused one stays paused. When Pause fails the sandbox runs
// as before, unless only the rest of its machine cannot be removed: then it is
// paused, and Run tries again. FailedPrecondition unless it runs or is paused.
func (s *Sandbox) Pause(ctx context.Context) error { return s.PauseBy(ctx, wrenn.PauseOptions{}) }

// ForcePause is Pause without the guest's help, for one that does not answer: its
// processes and its disk are saved as they stand, as after a power cut that the
// guest does not notice. A Resume still needs the guest's agent to answer.
func (s *Sandbox) ForcePause(ctx context.Context) error {
	return s.PauseBy(ctx, wrenn.PauseOptions{Guest: wrenn.PauseForced})
}

// PauseBy is Pause as the options say.
func (s *Sandbox) PauseBy(ctx context.Context, options wrenn.PauseOptions) error {
	if err := options.Check(); err != nil {
		return err
	}
	how := saving{diskOnly: options.DiskOnly, held: options.Hold, freezing: map[wrenn.PauseGuest]freezing{
		wrenn.PauseHealthy: freezeNeeded, wrenn.PauseIfAble: freezeIfAble, wrenn.PauseForced: freezeSkipped,
	}[options.Guest]}
	locked, err := s.lock(ctx, StatusRunning, StatusPaused)
	if err != nil {
		return err
	}
	defer locked.unlock()
	if err := locked.placeBy(options); err != nil { // first: from then on calls of other epochs are refused
		return err
	}
	if s.Info().Status == StatusPaused {
		return errors.Join(locked.hold(options.Hold), locked.tidy(ctx))
	}
	if u := s.Info().Unresponsive; u != nil && (how.freezing == freezeNeeded || how.diskOnly) {
		return u.Refusal(s.id)
	}
	return locked.pause(ctx, how)
}

// pause is Pause of a running sandbox, or of one that is marked as pausing.
func (s locked) pause(ctx context.Context, how saving) error {
	defer s.host.uploads.wake.Notify()
	defer s.host.garbage.mark() // its last snapshot, or the new one if that is not recorded
	op := operation{name: "pause", trace: "pause", via: StatusPausing, back: StatusRunning, to: StatusPaused, finish: s.tidy}
	return s.perform(ctx, op, func(ctx context.Context, undo *rollback.Stack) error {
		staged, err := s.host.snapshots.Stage()
		if err != nil {
			return err
		}
		undo.Add(staged.Discard)
		if err := s.save(ctx, staged, undo, how); err != nil {
			return err
		}
		snap, release, err := s.publish(ctx, staged, snapshot.Manifest{ID: newSnapshotID(), DiskOnly: how.diskOnly})
		if err != nil {
			return err
		}
		defer release()
		err = s.journal.commit(string(journal.StepPaused), func(j *journal.Journal) {
			j.Step, j.Snapshot, j.Frozen, j.Held = journal.StepPaused, snap.ID, false, how.held
			j.Instance, j.Other = nil, j.Instance
		})
		if err == nil {
			s.instance.Guest.ClosePaused()
			s.instance, s.other = nil, s.instance
		}
		return err
	})
}

// placeBy sets the epochs that the options of a pause have, if any.
func (s locked) placeBy(options wrenn.PauseOptions) error {
	if options.Epoch == 0 && options.SupersededBy == 0 {
		return nil
	}
	epoch := options.Epoch
	if epoch == 0 {
		epoch, _ = s.journal.epochs()
	}
	return s.setEpoch(epoch, options.SupersededBy)
}

// setEpoch writes the epoch of the sandbox, and the one that supersedes it, to the journal.
func (s locked) setEpoch(epoch, supersededBy wrenn.Epoch) error {
	if s.journal.Epoch == epoch && s.journal.SupersededBy == supersededBy {
		return nil
	}
	err := s.journal.commit("epoch", func(j *journal.Journal) { j.Epoch, j.SupersededBy = epoch, supersededBy })
	if err == nil {
		s.state.touchVersion()
	}
	return err
}

// hold holds a paused sandbox, if it shall be and is not.
func (s locked) hold(want bool) error {
	if !want || s.journal.Held {
		return nil
	}
	return s.journal.commit("held", func(j *journal.Journal) { j.Held = true })
}

// pauseAtEnd is pause for a sandbox whose time is up. No caller waits who could
// force it: a guest that does not answer is saved as it stands, and with its memory,
// because what it did not write to its disk would be lost.
func (s locked) pauseAtEnd(ctx context.Context) error {
	how := saving{freezing: freezeIfAble}
	if s.state.following().OnTimeout == wrenn.PauseDiskOnTimeout {
		err := s.pause(ctx, saving{diskOnly: true})
		if err == nil || s.Info().Status != StatusRunning || ctx.Err() != nil {
			return err
		}
		s.logError(ctx, slog.LevelWarn, "disk of a sandbox whose time is up cannot be saved alone; saving its memory as well", err)
	}
	return s.pause(ctx, how)
}
