package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"wrenn.dev/internal/wake"
)

const (
	// unusedAge is how long a fetched template stays that no sandbox uses.
	unusedAge = 7 * 24 * time.Hour
	// unusedEvery is the time between two looks for such templates.
	unusedEvery = time.Hour
)

// runUnused removes fetched templates that nothing uses, until ctx ends.
func (h *host) runUnused(ctx context.Context) {
	for wake.Sleep(ctx, unusedEvery) {
		h.removeUnused(ctx, time.Now().Add(-unusedAge))
	}
}

// removeUnused removes the templates that this host has fetched and not used since that
// time. One that the store does not have any more stays: it could not be fetched again.
func (h *host) removeUnused(ctx context.Context, since time.Time) {
	needed := h.garbage.needed()
	for id, stored := range h.snapshots.Unused(since) {
		if needed[id] {
			continue
		}
		err := h.archive.Find(ctx, stored.Key)
		if err == nil {
			err = h.snapshots.Unpin(id) // a create that comes now fetches it
		}
		if err != nil {
			if ctx.Err() == nil {
				h.logError(ctx, slog.LevelWarn, "a fetched template that is not used stays", fmt.Errorf("build %s: %w", id, err))
			}
			continue
		}
		h.pool.drop(ctx, id)
		h.garbage.mark()
		h.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "removed a fetched template that was not used; it will be fetched again when needed", slog.String("build", id))
	}
}
