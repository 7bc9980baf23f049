package service

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/wake"
)

const (
	// collectTick is how often it is looked for rounds that have ended.
	collectTick = 5 * time.Minute
	// collectTeams bounds the teams of one look.
	collectTeams = 100
)

// storeCollector numbers the rounds of uploads to the snapshot store, and deletes from it
// what nothing needs, whenever no other replica does. Two at a time do no harm: what may
// be deleted stays so.
type storeCollector struct {
	*core
	every time.Duration // the length of a round; 0 begins none and deletes nothing
	said  string        // the reason that was logged last

	objects, bytes, failures atomic.Uint64
	held                     atomic.Bool // a host keeps everything from being deleted
}

func (r *storeCollector) run(ctx context.Context) error {
	if r.every == 0 {
		return nil
	}
	for ctx.Err() == nil {
		lead, err := r.store.TryLead(ctx, "store")
		if lead != nil {
			err = r.lead(ctx, lead)
			lead.Close(ctx)
		}
		r.held.Store(false) // another replica tells
		if err != nil && ctx.Err() == nil {
			r.log.LogAttrs(ctx, slog.LevelWarn, "cannot lead the collection of the snapshot store; will retry", slog.Any("err", err))
		}
		wake.Sleep(ctx, min(collectTick, r.every))
	}
	return nil
}

// lead collects until the lead or ctx ends.
func (r *storeCollector) lead(ctx context.Context, lead *postgres.Lead) error {
	for {
		if err := lead.Held(ctx); err != nil {
			return err
		}
		err := r.step(ctx, lead)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the end is no failure
		}
		r.say(ctx, err)
		if !wake.Sleep(ctx, min(collectTick, r.every)) {
			return nil
		}
	}
}

// say logs why nothing is deleted, once for each reason.
func (r *storeCollector) say(ctx context.Context, err error) {
	r.held.Store(err != nil)
	said := ""
	if err != nil {
		said = err.Error()
	}
	if said != "" && said != r.said {
		r.log.LogAttrs(ctx, slog.LevelWarn, "nothing is deleted from the snapshot store; will retry", slog.Any("err", err))
	}
	r.said = said
}

// step begins a round if the last one is over, and deletes what may be deleted then. Its
// error is why that is nothing.
func (r *storeCollector) step(ctx context.Context, lead *postgres.Lead) error {
	round, over, err := r.store.StoreRound(ctx, r.every)
	if err != nil {
		return err
	}
	hosts, err := r.storeHosts(ctx, round)
	if err != nil || hosts.deletes == nil {
		return err
	}
	next := max(round, hosts.current) // less than a host knows: the database is that of a backup
	if over {
		next++
	}
	if next > round {
		if err := r.store.RaiseStoreRound(ctx, next); err != nil {
			return err
		}
		r.hosts.raiseRound(next)
	}
	through, ok := hosts.through()
	if !ok {
		return nil
	}
	teams, err := r.store.TeamsToCollect(ctx, through, collectTeams)
	for _, team := range teams {
		if err := lead.Held(ctx); err != nil {
			return err
		}
		r.collect(ctx, hosts, team, through)
	}
	return err
}

// collect deletes what nothing needs of a team. What fails is tried again after that of
// other teams.
func (r *storeCollector) collect(ctx context.Context, hosts *storeHosts, team wrenn.TeamID, through uint64) {
	var err error
	for n, more := 0, true; err == nil && more && n < collectCalls; n++ {
		var done wrenn.StoreCollected
		done, err = r.collectStore(ctx, hosts, wrenn.StoreCollection{Team: team, Through: through, MinAge: r.every})
		r.objects.Add(uint64(done.Objects))
		r.bytes.Add(uint64(done.Bytes))
		reached := int64(through)
		if more = done.More; more || err != nil {
			reached = postgres.NothingCollected
		}
		if recordErr := r.store.AddStoreCollection(ctx, team, reached, done); err == nil {
			err = recordErr
		}
	}
	if err != nil && ctx.Err() == nil {
		r.failures.Add(1)
		r.log.LogAttrs(ctx, slog.LevelWarn, "cannot delete what nothing needs of a team from the snapshot store; will retry", slog.String("team", string(team)), slog.Any("err", err))
	}
}
