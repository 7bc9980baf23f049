package service

import (
	"context"
	"log/slog"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/wake"
)

const (
	// abandonedBuildAge is how old the row of an abandoned build must be, see package reconcile.
	abandonedBuildAge = 10 * time.Second
	// removableAge is how long a build that is not wanted any more stays: a
	// create that read its id before may still be on its way.
	removableAge = 2 * time.Minute
	// abandonedEvery is how often abandoned builds are looked for.
	abandonedEvery = 5 * time.Second
)

// templateReconciler ends abandoned builds and compares the builds on
// hosts with the rows, whenever no other replica does.
type templateReconciler struct {
	*core
	every    time.Duration          // between two comparisons
	reported map[wrenn.BuildID]bool // as unknown
}

func (r *templateReconciler) run(ctx context.Context) error {
	for ctx.Err() == nil {
		lead, err := r.store.TryLead(ctx, "templates")
		if lead != nil {
			err = r.lead(ctx, lead)
			lead.Close(ctx)
		}
		if err != nil && ctx.Err() == nil {
			r.log.LogAttrs(ctx, slog.LevelWarn, "cannot lead the reconciliation of templates; will retry", slog.Any("err", err))
		}
		wake.Sleep(ctx, abandonedEvery)
	}
	return nil
}

// lead reconciles until the lead or ctx ends.
func (r *templateReconciler) lead(ctx context.Context, lead *postgres.Lead) error {
	clear(r.reported)
	var last time.Time
	for {
		if err := lead.Held(ctx); err != nil {
			return err
		}
		r.endAbandoned(ctx)
		if time.Since(last) >= r.every {
			last = time.Now()
			r.compareHosts(ctx)
			r.purge(ctx)
		}
		if !wake.Sleep(ctx, min(abandonedEvery, r.every)) {
			return nil
		}
	}
}

func (r *templateReconciler) endAbandoned(ctx context.Context) {
	ids, err := r.store.FailAbandoned(ctx, abandonedBuildAge, "the server that built it is gone: build again")
	if err != nil && ctx.Err() == nil {
		r.log.LogAttrs(ctx, slog.LevelWarn, "cannot look for abandoned builds; will retry", slog.Any("err", err))
	}
	for _, id := range ids {
		r.log.LogAttrs(ctx, slog.LevelInfo, "ended an abandoned build", slog.String("build", string(id)))
	}
}

// compareHosts compares each host that answers.
func (r *templateReconciler) compareHosts(ctx context.Context) {
	for _, m := range r.hosts.all() {
		if up, _ := m.known(); !up {
			continue
		}
		if err := r.compare(ctx, m); err != nil && ctx.Err() == nil {
			r.log.LogAttrs(ctx, slog.LevelWarn, "cannot compare the templates of a host", slog.String("host", string(m.id)), slog.Any("err", err))
		}
	}
}

// compare removes the builds that their rows do not want, fails those that
// are nowhere else and that the host lacks, and reports those that no row explains, which stay.
func (r *templateReconciler) compare(ctx context.Context, m *member) error {
	wanted, err := r.store.ReadyOn(ctx, m.id) // before the host is asked: it has what becomes ready in between
	if err != nil {
		return err
	}
	builds, err := m.client.Builds(ctx)
	if err != nil {
		return err
	}
	present := builds.IDs
	if err := r.failMissing(ctx, m.id, wanted, present); err != nil {
		return err
	}
	known, err := r.store.BuildStates(ctx, present, removableAge)
	if err != nil {
		return err
	}
	for _, id := range present {
		k, explained := known[id]
		switch {
		case !explained && !r.reported[id]:
			r.reported[id] = true
			r.log.LogAttrs(ctx, slog.LevelWarn, "no row explains a template's build on a host; it stays until an operator removes it",
				slog.String("build", string(id)), slog.String("host", string(m.id)))
		case k.Settled && (k.State == wrenn.BuildFailed || k.State == wrenn.BuildDeleted):
			r.hosts.removeBuild(ctx, m.id, id, k.Team)
		}
	}
	return nil
}

// purge deletes what the snapshot store has of builds that are not wanted any more. What
// fails stays for the next time.
func (r *templateReconciler) purge(ctx context.Context) {
	m := r.hosts.storingHost()
	if m == nil {
		return
	}
	builds, err := r.store.BuildsToPurge(ctx, removableAge)
	for id, team := range builds {
		if err = m.client.DeleteBuild(ctx, id, team); err == nil {
			err = r.store.BuildPurged(ctx, id)
		}
		if err != nil {
			break
		}
	}
	if err != nil && ctx.Err() == nil {
		r.log.LogAttrs(ctx, slog.LevelWarn, "cannot delete templates from the snapshot store; will retry", slog.String("host", string(m.id)), slog.Any("err", err))
	}
}

// failMissing fails the wanted builds that are not present on the host.
func (r *templateReconciler) failMissing(ctx context.Context, host wrenn.HostID, wanted, present []wrenn.BuildID) error {
	has := map[wrenn.BuildID]bool{}
	for _, id := range present {
		has[id] = true
	}
	for _, id := range wanted {
		if has[id] {
			continue
		}
		if err := r.store.LoseBuild(ctx, id, "its host does not have it any more"); err != nil {
			return err
		}
		r.log.LogAttrs(ctx, slog.LevelWarn, "lost a template's build", slog.String("build", string(id)), slog.String("host", string(host)))
	}
	return nil
}
