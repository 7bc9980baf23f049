package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"wrenn.dev/internal/host/sandbox/instance"
)

// buildFromPool makes the sandbox's pending instance of a machine of the warm
// pool, and reports whether it did: the pool may be empty. A machine that does not
// work costs the time of the wait for it, and no more.
func (s locked) buildFromPool(ctx context.Context, from instance.Source) (bool, error) {
	k := kind{from.Snapshot, s.request.Size}
	if s.pooled || !s.host.pool.isWanted(k) {
		return false, nil
	}
	// A VMM may not make a disk larger than it was to be at its start.
	if has, err := diskMiB(from.RootFS, 0); err != nil || s.request.DiskMiB > has {
		return false, err
	}
	pooled, found := s.host.pool.pick(k)
	if !found {
		s.host.pool.misses.Add(1)
		return false, nil
	}
	began := time.Now()
	err := s.claim(ctx, pooled)
	pooled.unlock()
	if err == nil {
		err = s.other.Unpark(ctx)
	}
	if err == nil {
		s.host.pool.hits.Add(1)
		s.trace(ctx, "claim", time.Since(began))
		return true, nil
	}
	if ctx.Err() != nil {
		return false, fmt.Errorf("sandbox %s: claim: %w", s.id, err)
	}
	s.host.pool.misses.Add(1)
	s.logError(ctx, slog.LevelWarn, "machine of the warm pool does not work; making another", err)
	return false, s.discardOther(ctx)
}

// claim makes the instance of a pooled machine the sandbox's pending one. What
// makes it so is the entry in the sandbox's journal: an agent that finds it in both
// journals takes it for the sandbox's.
func (s locked) claim(ctx context.Context, pooled locked) error {
	old := pooled.other
	pending := old.Reassign(&s.owner, s.journal.Starts+1)
	if err := s.recordPending("claim", pending.Record); err != nil {
		return err
	}
	old.Unwatch()
	s.other, pooled.other = pending, nil
	s.console.Attach(pending.Machine)
	defer pooled.leavePool(ctx)
	return pending.MoveDisk(old)
}

// leavePool removes what is left in the pool of a machine that was claimed.
func (s locked) leavePool(ctx context.Context) {
	err := s.host.cfg.Hook.At("disk moved")
	if err == nil {
		err = os.RemoveAll(s.dir())
	}
	if err != nil {
		s.logError(ctx, slog.LevelError, "directory of a claimed machine cannot be removed yet", err)
		s.state.set(StatusStopping, "")
		s.state.retryLater()
		return
	}
	s.remove()
	if err := s.host.cfg.Hook.At("pool left"); err != nil {
		s.logError(ctx, slog.LevelError, "hook failed", err)
	}
}
