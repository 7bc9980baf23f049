package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/instance"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/snapshot"
	"wrenn.dev/internal/telemetry"
)

// storeLook bounds how long it takes to see that time has passed, see lookAgain.
const storeLook = time.Minute

// unstored returns the snapshot of a paused sandbox that is to be stored, "" if none is.
// Its checkpoints come first: what is stored of the sandbox names them.
func (s *Sandbox) unstored() string {
	j := s.journal.latest.Load()
	if j == nil || !s.isStorable() || s.Info().Status != StatusPaused || j.Stored != nil && j.Stored.Snapshot == j.Snapshot {
		return ""
	}
	if s.unstoredCheckpoint() != "" {
		return ""
	}
	return j.Snapshot
}

// unstoredCheckpoint returns the first checkpoint that is to be stored, "" if none is.
func (s *Sandbox) unstoredCheckpoint() string {
	j := s.journal.latest.Load()
	if j == nil || !s.isStorable() {
		return ""
	}
	if status := s.Info().Status; status != StatusRunning && status != StatusPaused {
		return ""
	}
	for _, c := range j.Checkpoints {
		if c.Stored.Key == "" && !s.host.uploads.givenUp(string(c.ID)) {
			return string(c.ID)
		}
	}
	return ""
}

// runUploads stores the snapshots of paused sandboxes, and templates, until ctx ends. What
// is to be stored is what journals and manifests say: an agent that starts continues with it.
func (h *host) runUploads(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	for {
		wait := storeLook
		begin := func(ctx context.Context, id, snapshot string, upload uploadFunc) {
			attempt, left, u := h.uploads.claim(ctx, id, snapshot)
			switch {
			case u != nil:
				work.Go(func() {
					h.lowerPriority(attempt)
					sent, canceled, err := upload(attempt, snapshot)
					h.uploads.finish(id, u, sent, err, canceled)
				})
			case left > 0:
				wait = min(wait, left)
			}
		}
		for _, s := range h.registry.all() {
			ctx := telemetry.WithSandbox(ctx, s.id)
			begin(ctx, string(s.id), s.unstored(), s.upload)
			begin(ctx, string(s.id)+"/checkpoints", s.unstoredCheckpoint(), s.uploadCheckpoint) // one at a time
		}
		for id, c := range h.snapshots.Copies() {
			begin(ctx, id, unstoredTemplate(id, c), h.uploadTemplate)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-h.uploads.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// uploadFunc makes one attempt to store a snapshot. It logs an error, unless it was canceled.
type uploadFunc func(ctx context.Context, snapshot string) (sent int64, canceled bool, err error)

// uploadCheckpoint makes one attempt to store a checkpoint.
func (s *Sandbox) uploadCheckpoint(ctx context.Context, id string) (sent int64, canceled bool, err error) {
	ctx, done := s.cancel.context(ctx)
	sent, err = s.storeCheckpoint(ctx, wrenn.CheckpointID(id))
	canceled = ctx.Err() != nil || errors.Is(err, errRemoved)
	done()
	if err != nil && !canceled {
		s.logError(ctx, slog.LevelWarn, "checkpoint cannot be stored; will retry", fmt.Errorf("%s: %w", id, err))
		if wrenn.CodeOf(err) == wrenn.FailedPrecondition && !s.host.snapshotUsable(ctx, id) {
			s.host.uploads.giveUp(id)
		}
	}
	return sent, canceled, err
}

// snapshotUsable reports whether this host has the snapshot undamaged.
func (h *host) snapshotUsable(ctx context.Context, id string) bool {
	_, release, err := h.snapshots.Load(ctx, id)
	if err == nil {
		release()
	}
	return err == nil
}

// storeCheckpoint stores a checkpoint and writes that to the journal, unless it was
// deleted since then. It returns how many bytes were sent.
func (s *Sandbox) storeCheckpoint(ctx context.Context, id wrenn.CheckpointID) (sent int64, err error) {
	state, err := s.journal.latest.Load().PortableAt(id) // from which another host can make the sandbox
	if err != nil {
		return 0, err
	}
	round, end := s.host.rounds.begin()
	defer end()
	stored, err := s.host.archive.Upload(ctx, round, string(s.request.Team), string(s.id), string(id), state)
	if err != nil {
		return 0, err
	}
	if err := s.at("checkpoint stored"); err != nil {
		return 0, err
	}
	locked, err := s.lock(ctx, StatusRunning, StatusPaused)
	if err != nil {
		return 0, err
	}
	defer locked.unlock()
	i := s.journal.Checkpoint(id)
	if i < 0 {
		return 0, errRemoved
	}
	err = s.journal.commit("checkpoint stored", func(j *journal.Journal) {
		j.Checkpoints = slices.Clone(j.Checkpoints)
		j.Checkpoints[i].Stored = wrenn.StoredNow(stored.Key)
	})
	if err != nil {
		return 0, err
	}
	s.state.touchVersion()
	s.host.news.notify()
	s.log(ctx, slog.LevelInfo, "checkpoint stored", slog.String("checkpoint", string(id)), slog.Int64("bytes", stored.Bytes))
	return stored.Bytes, nil
}

// checkpointSource is the source of a machine that continues from a checkpoint. It fails
// unless that is whole.
func (s locked) checkpointSource(ctx context.Context, id wrenn.CheckpointID) (instance.Source, error) {
	snap, release, err := s.loadCheckpoint(ctx, id)
	if err != nil {
		return instance.Source{}, err
	}
	return s.host.loadedSource(snap, release)
}

// loadCheckpoint loads the snapshot of a checkpoint, and leases it. One that this host
// does not have, because it has fetched the sandbox, is fetched.
func (s locked) loadCheckpoint(ctx context.Context, id wrenn.CheckpointID) (*snapshot.Snapshot, func(), error) {
	snap, release, err := s.host.snapshots.Load(ctx, string(id))
	i := s.journal.Checkpoint(id)
	if wrenn.CodeOf(err) != wrenn.NotFound || i < 0 || s.journal.Checkpoints[i].Stored.Key == "" {
		return snap, release, err
	}
	if !s.host.HasStore() {
		return nil, nil, wrenn.Errorf(wrenn.FailedPrecondition, "this host does not have checkpoint %s, and no snapshot store to fetch it from: set store.url of its agent", id)
	}
	defer s.host.garbage.mark() // the base, after an error
	snap, _, release, err = s.host.archive.Fetch(ctx, string(s.journal.Team), string(s.id), s.journal.Checkpoints[i].Stored.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("checkpoint %s: %w", id, err)
	}
	if snap.ID != string(id) {
		release()
		return nil, nil, wrenn.Errorf(wrenn.FailedPrecondition, "what is stored of checkpoint %s is of another one", id)
	}
	return snap, release, nil
}

// upload makes one attempt to store a snapshot of the paused sandbox.
func (s *Sandbox) upload(ctx context.Context, id string) (sent int64, canceled bool, err error) {
	ctx, done := s.cancel.context(ctx)
	sent, err = s.store(ctx, id)
	canceled = ctx.Err() != nil
	done()
	if err != nil && !canceled {
		s.logError(ctx, slog.LevelWarn, "paused sandbox cannot be stored; will retry", err)
	}
	return sent, canceled, err
}

// store stores a snapshot of the paused sandbox and writes that to the journal, unless
// it was resumed since then. It returns how many bytes were sent.
func (s *Sandbox) store(ctx context.Context, id string) (sent int64, err error) {
	state, err := s.journal.latest.Load().Portable()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	round, end := s.host.rounds.begin()
	defer end()
	stored, err := s.host.archive.Upload(ctx, round, string(s.request.Team), string(s.id), id, state)
	if err != nil {
		return 0, err
	}
	if err := s.at("snapshot stored"); err != nil {
		return 0, err
	}
	locked, err := s.lock(ctx, StatusPaused)
	if err != nil {
		return 0, err
	}
	defer locked.unlock()
	if s.journal.Snapshot != id {
		return 0, errResumed
	}
	err = s.journal.commit("stored", func(j *journal.Journal) {
		j.Stored = &journal.Stored{Snapshot: id, Stored: wrenn.StoredNow(stored.Key)}
	})
	if err != nil {
		return 0, err
	}
	s.state.touchVersion()
	s.host.news.notify()
	s.trace(ctx, "store", time.Since(began))
	s.log(ctx, slog.LevelInfo, "paused sandbox stored", slog.String("snapshot", id), slog.Int64("bytes", stored.Bytes))
	return stored.Bytes, nil
}

// StoreStats returns the counts of this moment.
func (h *host) StoreStats() StoreStats {
	stats := h.uploads.stats()
	for _, s := range h.registry.all() {
		if s.unstored() != "" || s.unstoredCheckpoint() != "" {
			stats.Waiting++
			stats.Oldest = max(stats.Oldest, time.Since(s.Info().LastActiveAt))
		}
	}
	for id, c := range h.snapshots.Copies() {
		if unstoredTemplate(id, c) != "" {
			stats.Waiting++
		}
	}
	return stats
}
