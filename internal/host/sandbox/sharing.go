package sandbox

import (
	"context"
	"log/slog"
	"maps"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev"
)

// uploadNiceness is the priority of the threads that compare and compress: guests
// and requests come first.
const uploadNiceness = 19

// HasStore reports whether paused sandboxes and templates are stored.
func (h *host) HasStore() bool { return h.cfg.Objects != nil }

// lowerPriority gives the goroutine, which uploads, the lowest priority. It is not undone.
func (h *host) lowerPriority(ctx context.Context) {
	runtime.LockOSThread() // for good: the thread ends with the goroutine, and its priority with it
	if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), uploadNiceness); err != nil {
		h.logError(ctx, slog.LevelDebug, "upload has the priority of the agent", err)
	}
}

// unstoredTemplate returns the id of a template that is to be stored, "" if it is.
func unstoredTemplate(id string, c wrenn.Stored) string {
	if c.Key != "" {
		return ""
	}
	return id
}

// uploadTemplate makes one attempt to store a template.
func (h *host) uploadTemplate(ctx context.Context, id string) (sent int64, canceled bool, err error) {
	sent, err = h.storeTemplate(ctx, id)
	canceled = ctx.Err() != nil || wrenn.CodeOf(err) == wrenn.NotFound // it was removed
	if err != nil && !canceled {
		h.logError(ctx, slog.LevelWarn, "template cannot be stored; will retry", err, slog.String("build", id))
	}
	return sent, canceled, err
}

// storeTemplate stores a template and notes that in its manifest. It returns how many
// bytes were sent.
func (h *host) storeTemplate(ctx context.Context, id string) (sent int64, err error) {
	owner, err := h.snapshots.Owner(id)
	if err != nil {
		return 0, err
	}
	round, end := h.rounds.begin()
	defer end()
	stored, err := h.archive.UploadTemplate(ctx, round, owner, id)
	if err != nil {
		return 0, err
	}
	if err := h.cfg.Hook.At("template stored"); err != nil {
		return 0, err
	}
	if err := h.snapshots.SetCopy(id, wrenn.StoredNow(stored.Key)); err != nil {
		return 0, err
	}
	h.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "template stored", slog.String("build", id), slog.Int64("bytes", stored.Bytes))
	return stored.Bytes, nil
}

// StoredSnapshots returns where the snapshots of KeptSnapshots are stored, of those that are.
func (h *host) StoredSnapshots() map[string]wrenn.Stored {
	out := h.snapshots.Copies()
	maps.DeleteFunc(out, func(_ string, c wrenn.Stored) bool { return c.Key == "" })
	return out
}

// SnapshotsRevision changes whenever KeptSnapshots or StoredSnapshots do.
func (h *host) SnapshotsRevision() uint64 { return h.snapshots.Revision() }

// FetchTemplate makes a template of a team from what another host has stored of it at
// key, unless this host has it. Callers that want the same one at the same time wait for
// one fetch, which ends with the last of them. FailedPrecondition when this host has no
// store, or what is stored cannot be used; NotFound when nothing is stored there;
// Exhausted when a limit of the host does not allow another sandbox.
func (h *host) FetchTemplate(ctx context.Context, team wrenn.TeamID, id wrenn.BuildID, key string) error {
	if !h.HasStore() {
		return wrenn.Errorf(wrenn.FailedPrecondition, "this host does not have build %s, and no snapshot store to fetch it from: set store.url of its agent", id)
	}
	call := h.templates.enter(id)
	defer h.templates.leave(id, call)
	return call.do(ctx, func(ctx context.Context) error {
		if err := h.templates.one.Lock(ctx); err != nil {
			return err
		}
		defer h.templates.one.Unlock()
		return h.fetchTemplate(ctx, team, id, key)
	})
}

func (h *host) fetchTemplate(ctx context.Context, team wrenn.TeamID, id wrenn.BuildID, key string) error {
	if _, release, err := h.loadNamed(ctx, string(id)); err == nil { // another call has fetched it
		release()
		return nil
	}
	// One that was removed here, and that a sandbox still needs.
	if err := h.snapshots.Pin(string(id)); wrenn.CodeOf(err) != wrenn.NotFound {
		return err
	}
	if err := h.registry.findRoom(wrenn.Size{}); err != nil {
		return err
	}
	defer h.garbage.mark() // the base, after an error
	began := time.Now()
	if err := h.archive.FetchTemplate(ctx, string(team), string(id), key); err != nil {
		return err
	}
	h.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "template fetched from the snapshot store", slog.String("build", string(id)), slog.Duration("took", time.Since(began)))
	return nil
}

// FetchesTemplate reports whether the template is being fetched now.
func (h *host) FetchesTemplate(id wrenn.BuildID) bool {
	h.templates.mu.Lock()
	defer h.templates.mu.Unlock()
	return h.templates.calls[id] != nil
}
