package template

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox"
)

// bootedPrefix begins the names of the snapshots of guests that have booted from a cached
// disk, and in which no step has run yet. A build whose steps start from that disk restores
// the guest instead of booting it: of those who change a template, most change the same
// steps again.
const bootedPrefix = "steps-"

// Of these snapshots, each of which has the memory of a guest, a host and a team have so many.
const maxBooted, maxBootedTeam = 8, 4

// booted knows the snapshots of guests that have booted, since the start of the agent.
// It is safe for concurrent use.
type booted struct {
	cfg Config

	mu    sync.Mutex   // guards known
	known []bootedName // the one that was used last is the last
}

// bootedName is that of a snapshot, which may not be made yet.
type bootedName struct {
	name string
	team wrenn.TeamID
}

// use returns the name of the snapshot of a team's guest of the recipe's size that has booted
// from the cached disk with the key, and removes those that were used least.
func (b *booted) use(ctx context.Context, team wrenn.TeamID, key string, r sandbox.Recipe) string {
	one := bootedName{bootedPrefix + keyOf(team, key, r.Size, r.DiskMiB)[:32], team}
	for _, name := range b.touch(one) {
		// A build that restores it now keeps its files.
		if err := b.cfg.Manager.RemoveSnapshot(ctx, name, ""); err != nil && wrenn.CodeOf(err) != wrenn.NotFound {
			b.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "cannot remove the guest of a build", slog.String("snapshot", name), slog.Any("err", err))
		}
	}
	return one.name
}

// touch makes the name the one that was used last, and returns those that are too many,
// which it forgets.
func (b *booted) touch(one bootedName) (extra []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known = append(slices.DeleteFunc(b.known, func(k bootedName) bool { return k == one }), one)
	total, ofTeam := 0, map[wrenn.TeamID]int{}
	var kept []bootedName
	for _, k := range slices.Backward(b.known) {
		if total == maxBooted || ofTeam[k.team] == maxBootedTeam {
			extra = append(extra, k.name)
			continue
		}
		total++
		ofTeam[k.team]++
		kept = append(kept, k)
	}
	slices.Reverse(kept)
	b.known = kept
	return extra
}

// sweep removes the snapshots of an earlier agent.
func (b *booted) sweep(ctx context.Context) error {
	var errs []error
	for _, name := range b.cfg.Manager.KeptSnapshots() {
		if strings.HasPrefix(name, bootedPrefix) {
			errs = append(errs, b.cfg.Manager.RemoveSnapshot(ctx, name, ""))
		}
	}
	return errors.Join(errs...)
}
