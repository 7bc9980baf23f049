package service

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/wake"
)

const (
	checkWorkerEvery = 2 * time.Second // a lost session is found sooner than the reconciler takes rows for abandoned
	retryEvery       = time.Second     // without a database
)

// registerWorker shows the other replicas that this one works on the rows that
// it moved into a transition, until ctx ends. While it is not registered the
// reconciler takes those rows for abandoned.
func (c *core) registerWorker(ctx context.Context) error {
	for ctx.Err() == nil {
		session, err := c.store.RegisterWorker(ctx)
		if session != nil {
			err = holdSession(ctx, session)
			session.Close(ctx)
		}
		if err != nil && ctx.Err() == nil {
			c.log.LogAttrs(ctx, slog.LevelWarn, "cannot register with the database as a working replica; will retry", slog.Any("err", err))
		}
		wake.Sleep(ctx, retryEvery)
	}
	return nil
}

// holdSession returns when the session or ctx has ended.
func holdSession(ctx context.Context, session *postgres.Lead) error {
	for wake.Sleep(ctx, checkWorkerEvery) {
		if err := session.Held(ctx); err != nil {
			return err
		}
	}
	return nil
}

// releaseQueue has the sandboxes on which this replica does not work any more
// although their rows may name it as their worker.
type releaseQueue struct {
	mu   sync.Mutex // guards ids
	ids  map[wrenn.SandboxID]bool
	wake wake.Chan
}

func newReleaseQueue() *releaseQueue {
	return &releaseQueue{ids: map[wrenn.SandboxID]bool{}, wake: wake.New()}
}

func (q *releaseQueue) add(ids ...wrenn.SandboxID) {
	q.mu.Lock()
	for _, id := range ids {
		if len(q.ids) < maxUses { // beyond that rows wait for the reconciler's grace
			q.ids[id] = true
		}
	}
	q.mu.Unlock()
	q.wake.Notify()
}

// removeAll empties the queue and returns what it had.
func (q *releaseQueue) removeAll() []wrenn.SandboxID {
	q.mu.Lock()
	defer q.mu.Unlock()
	ids := slices.Collect(maps.Keys(q.ids))
	clear(q.ids)
	return ids
}

// writeReleases writes what was released, as soon as the database can be reached.
func (c *core) writeReleases(ctx context.Context) error {
	for {
		select {
		case <-c.released.wake:
		case <-ctx.Done():
			return nil // registerWorker ends as well, which releases all rows
		}
		ids := c.released.removeAll()
		if err := c.store.Release(ctx, ids); err != nil {
			c.released.add(ids...)
			wake.Sleep(ctx, retryEvery)
		}
	}
}
