package sandbox

import (
	"context"
	"log/slog"
	"time"

	"wrenn.dev/internal/wake"
)

const (
	// unfinishedAge is how old an upload must be to count as left by an agent that was
	// killed. It is longer than any upload should take: a host cannot know what others
	// are sending.
	unfinishedAge = 7 * 24 * time.Hour
	// unfinishedEvery is the time between two looks for such uploads.
	unfinishedEvery = 6 * time.Hour
)

// runUnfinished removes the uploads that killed agents have left in the store, until ctx
// ends. Each host does it: the same upload may be removed twice.
func (h *host) runUnfinished(ctx context.Context) {
	for {
		h.deleteUnfinished(ctx, time.Now().Add(-unfinishedAge))
		if !wake.Sleep(ctx, unfinishedEvery) {
			return
		}
	}
}

// deleteUnfinished removes the unfinished uploads that began before that time.
func (h *host) deleteUnfinished(ctx context.Context, before time.Time) {
	n, err := h.archive.DeleteUnfinished(ctx, before)
	failed := err != nil && ctx.Err() == nil
	h.uploads.countUnfinished(n, failed)
	if n > 0 {
		h.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "removed uploads that killed agents have left in the snapshot store", slog.Int("uploads", n))
	}
	if failed {
		h.logError(ctx, slog.LevelWarn, "cannot remove unfinished uploads from the snapshot store; will retry", err)
	}
}
