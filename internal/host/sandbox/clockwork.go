package sandbox

import (
	"context"
	"log/slog"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/telemetry"
	"wrenn.dev/internal/wake"
)

const (
	// checkpointLook is how often sandboxes are looked for that are due for a checkpoint.
	checkpointLook = 10 * time.Second
	// keptAutomatic is how many automatic checkpoints of a sandbox are kept, besides the
	// newest that is stored.
	keptAutomatic = 2
)

// runCheckpoints makes the checkpoints that SandboxSpec.CheckpointEvery asks for, one at a
// time, until ctx ends. One that fails is tried again when the next is due.
func (h *host) runCheckpoints(ctx context.Context) {
	tried := map[wrenn.SandboxID]time.Time{}
	for {
		wait := checkpointLook
		left := map[wrenn.SandboxID]time.Time{}
		for _, s := range h.registry.all() {
			at, ok := s.checkpointDue(tried[s.id])
			if !ok {
				continue
			}
			left[s.id] = tried[s.id]
			if until := time.Until(at); until > 0 {
				wait = min(wait, until)
				continue
			}
			left[s.id] = time.Now()
			s.checkpointByClock(telemetry.WithSandbox(ctx, s.id))
		}
		tried = left
		if !wake.Sleep(ctx, wait) {
			return
		}
	}
}

// checkpointDue returns when the next automatic checkpoint of the sandbox is due, if one
// is: it runs, would be stored, and was used since the last one. Tried is when the last
// was tried.
func (s *Sandbox) checkpointDue(tried time.Time) (time.Time, bool) {
	every, info := s.state.following().CheckpointEvery, s.Info()
	if every == 0 || !s.isStorable() || info.Status != StatusRunning || info.Unresponsive != nil || info.SupersededBy != 0 {
		return time.Time{}, false
	}
	last := info.CreatedAt
	all, _ := s.journal.checkpoints()
	for _, c := range all {
		if c.Automatic {
			last = c.CreatedAt
		}
	}
	if !info.LastActiveAt.After(last) || len(all) >= maxCheckpoints {
		return time.Time{}, false
	}
	return later(last, tried).Add(every), true
}

// checkpointByClock makes an automatic checkpoint, and deletes those that it replaces.
func (s *Sandbox) checkpointByClock(ctx context.Context) {
	locked, err := s.lock(ctx, StatusRunning)
	if err != nil {
		return // it does not run any more
	}
	defer locked.unlock()
	_, err = locked.checkpoint(ctx, wrenn.Checkpoint{ID: wrenn.NewCheckpointID(), Name: "automatic", Automatic: true})
	if err == nil {
		err = locked.deleteReplaced()
	}
	if err != nil && ctx.Err() == nil {
		s.logError(ctx, slog.LevelWarn, "cannot make an automatic checkpoint; will retry when the next is due", err)
	}
}

// deleteReplaced deletes the automatic checkpoints that are not among the newest. What the
// sandbox could be restored from after the loss of this host is kept.
func (s locked) deleteReplaced() error {
	for {
		i := s.replaced()
		if i < 0 {
			return nil
		}
		if err := s.deleteCheckpoint(i); err != nil {
			return err
		}
	}
}

// replaced returns the index of the oldest automatic checkpoint that is to be deleted, -1
// for none.
func (s locked) replaced() int {
	automatic, first := 0, -1
	newest := s.journal.NewestStored()
	for i, c := range s.journal.Checkpoints {
		if !c.Automatic {
			continue
		}
		automatic++
		if first < 0 && (newest == nil || c.ID != newest.ID) {
			first = i
		}
	}
	if automatic <= keptAutomatic {
		return -1
	}
	return first
}
