package service

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
)

const (
	maxUses      = 100_000 // of each kind between two writes; beyond that some are dropped
	flushTimeout = 10 * time.Second
)

// uses collects the times of last use: one write for many.
type uses[K comparable] struct {
	mu   sync.Mutex // guards last
	last map[K]time.Time
}

func (u *uses[K]) add(id K) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.last == nil {
		u.last = map[K]time.Time{}
	}
	if len(u.last) < maxUses {
		u.last[id] = time.Now()
	}
}

// flush passes what was collected to write, and keeps it when that fails.
func (u *uses[K]) flush(write func(map[K]time.Time) error) error {
	u.mu.Lock()
	batch := u.last
	u.last = nil
	u.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	err := write(batch)
	if err != nil {
		u.mu.Lock()
		maps.Copy(batch, u.last) // the newer ones win
		u.last = batch
		u.mu.Unlock()
	}
	return err
}

// flusher writes the times of last use to the database.
type flusher struct {
	store     *postgres.Store
	sandboxes *uses[wrenn.SandboxID]
	keys      *uses[string]
	every     time.Duration
	log       *slog.Logger
}

// run writes at intervals, and once more at the end.
func (f *flusher) run(ctx context.Context) error {
	flushEvery(ctx, f.every, nil, f.flush)
	return nil
}

// flushEvery calls flush at intervals and when something is sent to soon, which may be
// nil, until ctx ends; then once more. Each call has flushTimeout, and the end of ctx
// does not cut it short: what is cut may be written all the same, and would be written
// again by the last call.
func flushEvery(ctx context.Context, every time.Duration, soon <-chan struct{}, flush func(context.Context)) {
	once := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		flush(ctx)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			once()
		case <-soon:
			once()
		case <-ctx.Done():
			once()
			return
		}
	}
}

func (f *flusher) flush(ctx context.Context) {
	err := errors.Join(
		f.sandboxes.flush(func(m map[wrenn.SandboxID]time.Time) error { return f.store.Touch(ctx, m) }),
		f.keys.flush(func(m map[string]time.Time) error { return f.store.TouchKeys(ctx, m) }),
	)
	if err != nil {
		f.log.LogAttrs(ctx, slog.LevelWarn, "cannot write the times of last use; will retry", slog.Any("err", err))
	}
}
