package sandbox

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/snapshot/archive"
)

// maxCollected bounds the objects that one call of CollectStore deletes.
const maxCollected = 10_000

// StartRound lets the uploads of this host that begin from now on be of a round, and
// returns the host's rounds. 0, and one that has passed, change nothing.
func (m *Manager) StartRound(round uint64) (wrenn.StoreRounds, error) {
	err := m.rounds.tell(round)
	current, oldest := m.rounds.state()
	return wrenn.StoreRounds{Known: true, Current: current, Oldest: oldest}, err
}

// StoreReferences returns the keys in the snapshot store that this host refers to, of a
// team: of its sandboxes, in whatever state, their checkpoints, and its templates. Those of
// sandboxes in quarantine are not known.
func (m *Manager) StoreReferences(team wrenn.TeamID) wrenn.StoreReferences {
	var refs wrenn.StoreReferences
	add := func(key string) {
		if strings.HasPrefix(key, "teams/"+string(team)+"/") {
			refs.Keys = append(refs.Keys, key)
		}
	}
	for _, s := range m.registry.all() {
		j := s.journal.latest.Load()
		if j == nil { // it is being made, and is not stored
			continue
		}
		if j.Step == "" && s.Info().Status == StatusQuarantined { // its journal could not be read
			refs.Unknown = append(refs.Unknown, s.id)
		}
		for _, key := range j.StoredKeys() {
			add(key)
		}
	}
	for _, c := range m.snapshots.Copies() {
		add(c.Key)
	}
	return refs
}

// CollectStore deletes what the snapshot store has of a team and nothing needs, see
// archive.Archive.Collect; one call deletes at most maxCollected objects. FailedPrecondition
// when this host has no store.
func (m *Manager) CollectStore(ctx context.Context, c wrenn.StoreCollection) (wrenn.StoreCollected, error) {
	if !m.HasStore() {
		return wrenn.StoreCollected{}, wrenn.Errorf(wrenn.FailedPrecondition, "this host has no snapshot store: set store.url of its agent")
	}
	got, err := m.archive.Collect(ctx, string(c.Team), archive.Needed{
		Records: c.Records, Lost: c.Lost, Others: c.Others, References: journal.ReferencesOf,
	}, archive.Limits{Through: c.Through, Before: time.Now().Add(-c.MinAge), Most: maxCollected, DryRun: c.DryRun})
	out := wrenn.StoreCollected{Objects: got.Deleted, Bytes: got.Bytes, YoungObjects: got.Young, YoungBytes: got.YoungBytes, More: got.More}
	for _, o := range got.Objects {
		out.Listed = append(out.Listed, wrenn.StoreObject{Key: o.Key, Bytes: o.Size})
	}
	if got.Deleted > 0 && !c.DryRun {
		m.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "deleted from the snapshot store what nothing needs", slog.String("team", string(c.Team)),
			slog.Int64("objects", got.Deleted), slog.Int64("bytes", got.Bytes), slog.Uint64("through_round", c.Through))
	}
	return out, err
}
