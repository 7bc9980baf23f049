package service

import (
	"context"
	"log/slog"
	"time"

	"wrenn.dev/internal/wake"
)

const (
	// retentionEvery is how often old rows are looked for.
	retentionEvery = 10 * time.Minute
	// retentionBatch is how many are deleted in one transaction, and retentionPause is
	// the time between two, in which the database serves requests.
	retentionBatch, retentionPause = 200, 100 * time.Millisecond
)

// retention deletes old rows of one kind. All replicas do it at the same time, and
// none waits for another.
type retention struct {
	what  string
	drop  func(ctx context.Context, keep time.Duration, most int) (n int, err error)
	keep  time.Duration // 0 is for good
	every time.Duration
	log   *slog.Logger
}

func (r *retention) run(ctx context.Context) error {
	if r.keep == 0 {
		return nil
	}
	for {
		n, err := r.drop(ctx, r.keep, retentionBatch)
		pause := r.every
		switch {
		case ctx.Err() != nil:
		case err != nil:
			r.log.LogAttrs(ctx, slog.LevelWarn, "cannot delete old rows; will retry", slog.String("rows", r.what), slog.Any("err", err))
		case n > 0:
			r.log.LogAttrs(ctx, slog.LevelInfo, "deleted old rows", slog.String("rows", r.what), slog.Int("deleted", n))
		}
		if n == retentionBatch {
			pause = retentionPause
		}
		if !wake.Sleep(ctx, pause) {
			return nil
		}
	}
}
