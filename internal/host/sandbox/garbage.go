package sandbox

import (
	"context"
	"log/slog"
	"sync/atomic"
)

// garbage removes the snapshots of a host that are not needed any more, and then
// fills its reserve.
type garbage struct {
	host   *host
	marked atomic.Bool // there may be garbage, or the reserve is to be filled
	full   atomic.Bool // there was no space for the reserve
}

// mark has Run look for garbage.
func (g *garbage) mark() {
	g.marked.Store(true)
	g.host.notify()
}

// collectMarked collects if there may be garbage.
func (g *garbage) collectMarked(ctx context.Context) {
	if !g.marked.Swap(false) {
		return
	}
	if err := g.collect(ctx); err != nil && ctx.Err() == nil {
		g.marked.Store(true) // for the next look
		g.host.logError(ctx, slog.LevelWarn, "snapshots that are not needed cannot be removed", err)
	}
}

// collect removes the snapshots that no sandbox needs and that are not pinned.
// None is removed while a sandbox is in quarantine: what it needs is not known.
func (g *garbage) collect(ctx context.Context) error {
	defer g.fillReserve(ctx)
	if g.host.registry.quarantined() > 0 {
		return nil
	}
	return g.host.snapshots.Collect(ctx, g.needed)
}

// needed returns the ids of the snapshots that sandboxes need.
func (g *garbage) needed() map[string]bool {
	needed := map[string]bool{}
	for _, s := range g.host.registry.all() {
		for _, id := range s.journal.pinned() {
			needed[id] = true
		}
	}
	return needed
}

// fillReserve fills the reserve, now that there may be space for it.
func (g *garbage) fillReserve(ctx context.Context) {
	err := g.host.reserve.Fill()
	if err != nil {
		g.marked.Store(true) // for the next look
	}
	if full := err != nil; g.full.Swap(full) != full && full {
		g.host.logError(ctx, slog.LevelWarn, "cannot reserve space for journal entries", err)
	}
}
