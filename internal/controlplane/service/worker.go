package service

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"wrenn"
	"wrenn/internal/controlplane/postgres"
)

const (
	attendEvery = 2 * time.Second // how soon a lost session is found; less than what the reconciler lets a row settle
	retryEvery  = time.Second     // without a database
)

// attend shows the other replicas that this one works on the rows that it
// brought between two states, until ctx ends. When it does not any more, the
// reconciler takes them for abandoned.
func (s *Service) attend(ctx context.Context) error {
	for ctx.Err() == nil {
		session, err := s.store.TryAttend(ctx)
		if session != nil {
			err = stay(ctx, session)
			session.Close(ctx)
		}
		if err != nil && ctx.Err() == nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "the database does not see that this control plane works", slog.Any("error", err))
		}
		pause(ctx, retryEvery)
	}
	return nil
}

// stay returns when the session or ctx has ended.
func stay(ctx context.Context, session *postgres.Lead) error {
	for pause(ctx, attendEvery) {
		if err := session.Held(ctx); err != nil {
			return err
		}
	}
	return nil
}

// pause says whether d passed before ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// left are sandboxes on which this replica does not work any more although
// their rows may say so.
type left struct {
	mu   sync.Mutex // guards ids
	ids  map[wrenn.SandboxID]bool
	wake chan struct{} // has a value when there are some
}

func newLeft() left { return left{ids: map[wrenn.SandboxID]bool{}, wake: make(chan struct{}, 1)} }

func (l *left) add(ids ...wrenn.SandboxID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		if len(l.ids) < maxUses { // beyond that rows wait as long as requests may take
			l.ids[id] = true
		}
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *left) take() []wrenn.SandboxID {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := slices.Collect(maps.Keys(l.ids))
	clear(l.ids)
	return ids
}

// releaseLeft writes what was left, as soon as the database lets it.
func (s *Service) releaseLeft(ctx context.Context) error {
	for {
		select {
		case <-s.left.wake:
		case <-ctx.Done():
			return nil // attend ends as well, which says the same of all rows
		}
		ids := s.left.take()
		if err := s.store.Release(ctx, ids); err != nil {
			s.left.add(ids...)
			pause(ctx, retryEvery)
		}
	}
}
