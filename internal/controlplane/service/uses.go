package service

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	"wrenn"
)

const (
	maxUses      = 100_000 // of each kind between two writes; beyond that some are forgotten
	flushTimeout = 10 * time.Second
)

// uses collects when things were last used: one write for many.
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

// flush gives what was collected to write, and keeps it when that fails.
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

// flushUses writes at intervals, and once more at the end.
func (s *Service) flushUses(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.FlushEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.flush(ctx)
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
			defer cancel()
			s.flush(ctx)
			return nil
		}
	}
}

func (s *Service) flush(ctx context.Context) {
	err := errors.Join(
		s.usedBoxes.flush(func(m map[wrenn.SandboxID]time.Time) error { return s.store.Touch(ctx, m) }),
		s.usedKeys.flush(func(m map[string]time.Time) error { return s.store.TouchKeys(ctx, m) }),
	)
	if err != nil && ctx.Err() == nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "writing what was used", slog.Any("error", err))
	}
}
