package service

import (
	"context"
	"log/slog"
	"time"

	"wrenn/internal/controlplane/postgres"
	"wrenn/internal/wake"
)

const (
	// retentionEvery is how often old rows are looked for.
	retentionEvery = 10 * time.Minute
	// retentionBatch is how many are deleted in one transaction, and retentionPause is
	// the time between two, in which the database serves requests.
	retentionBatch, retentionPause = 200, 100 * time.Millisecond
)

// retention deletes the rows of sandboxes that ended long ago. All replicas do it at
// the same time, and none waits for another.
type retention struct {
	store *postgres.Store
	keep  time.Duration // 0 is for good
	every time.Duration
	log   *slog.Logger
}

func (r *retention) run(ctx context.Context) error {
	if r.keep == 0 {
		return nil
	}
	for {
		n, err := r.store.DropEnded(ctx, r.keep, retentionBatch)
		pause := r.every
		switch {
		case ctx.Err() != nil:
		case err != nil:
			r.log.LogAttrs(ctx, slog.LevelWarn, "cannot delete the rows of old sandboxes; will retry", slog.Any("err", err))
		case n > 0:
			r.log.LogAttrs(ctx, slog.LevelInfo, "deleted the rows of sandboxes that ended long ago", slog.Int("rows", n))
		}
		if n == retentionBatch {
			pause = retentionPause
		}
		if !wake.Sleep(ctx, pause) {
			return nil
		}
	}
}
