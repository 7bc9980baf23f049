package sandbox

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"wrenn/internal/host/sandbox/journal"
	"wrenn/internal/telemetry"
)

// storeLook bounds how long it takes to see that time has passed, see lookAgain.
const storeLook = time.Minute

// unstored returns the snapshot of a paused sandbox that is to be stored, "" if none is.
func (s *Sandbox) unstored() string {
	j := s.journal.latest.Load()
	if j == nil || !s.isStorable() || s.Info().Status != StatusPaused || j.Stored != nil && j.Stored.Snapshot == j.Snapshot {
		return ""
	}
	return j.Snapshot
}

// runUploads stores the snapshots of paused sandboxes, and templates, until ctx ends. What
// is to be stored is what journals and manifests say: an agent that starts continues with it.
func (h *host) runUploads(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	for {
		wait := storeLook
		for _, s := range h.registry.all() {
			attempt, left, u := h.uploads.claim(telemetry.WithSandbox(ctx, s.id), string(s.id), s.unstored())
			switch {
			case u != nil:
				work.Go(func() { s.upload(attempt, u) })
			case left > 0:
				wait = min(wait, left)
			}
		}
		for id, c := range h.snapshots.Copies() {
			attempt, left, u := h.uploads.claim(ctx, id, unstoredTemplate(id, c))
			switch {
			case u != nil:
				work.Go(func() { h.uploadTemplate(attempt, u) })
			case left > 0:
				wait = min(wait, left)
			}
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

// upload makes one attempt to store a snapshot.
func (s *Sandbox) upload(ctx context.Context, u *upload) {
	s.host.lowerPriority(ctx)
	ctx, done := s.cancel.context(ctx)
	sent, err := s.store(ctx, u.snapshot)
	canceled := ctx.Err() != nil
	done()
	if err != nil && !canceled {
		s.logError(ctx, slog.LevelWarn, "paused sandbox cannot be stored; will retry", err)
	}
	s.host.uploads.finish(string(s.id), u, sent, err, canceled)
}

// store stores a snapshot of the paused sandbox and writes that to the journal, unless
// it was resumed since then. It returns how many bytes were sent.
func (s *Sandbox) store(ctx context.Context, id string) (sent int64, err error) {
	state, err := s.journal.latest.Load().Portable()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	stored, err := s.host.archive.Upload(ctx, string(s.request.Team), string(s.id), id, state)
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
		j.Stored = &journal.Stored{Snapshot: id, At: storedNow(), Key: stored.Key}
	})
	if err != nil {
		return 0, err
	}
	s.state.touchVersion()
	s.host.news.notify()
	s.trace("store", time.Since(began))
	s.log(ctx, slog.LevelInfo, "paused sandbox stored", slog.String("snapshot", id), slog.Int64("bytes", stored.Bytes))
	return stored.Bytes, nil
}

// StoreStats returns the counts of this moment.
func (h *host) StoreStats() StoreStats {
	stats := h.uploads.stats()
	for _, s := range h.registry.all() {
		if s.unstored() != "" {
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
