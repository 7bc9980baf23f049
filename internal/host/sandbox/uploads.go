package sandbox

import (
	"context"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/wake"
)

const (
	maxUploads = 2 // at a time
	// storeAgain is the time before an upload that failed is tried again, doubled after
	// each up to storeLatest. It is tried as long as the sandbox is paused.
	storeAgain  = 5 * time.Second
	storeLatest = 5 * time.Minute
)

// errResumed ends the upload of a sandbox that is resumed.
var errResumed = wrenn.Errorf(wrenn.Canceled, "the sandbox is being resumed")

// errRemoved ends the upload of a template that is removed.
var errRemoved = wrenn.Errorf(wrenn.Canceled, "the template is being removed")

// uploads are the snapshots of paused sandboxes, and the templates, that are not stored
// yet, by the ids of these. Which they are is what journals and manifests say; uploads
// has only what this agent has tried.
type uploads struct {
	wake wake.Chan // there may be one to begin

	mu        sync.Mutex // guards what follows
	tries     map[string]*upload
	forbidden map[string]int  // see forbid
	damaged   map[string]bool // checkpoints that cannot be stored, by their ids
	done      uint64          // uploads
	sent      uint64          // bytes of them
	fails     uint64          // attempts
	removed   uint64          // unfinished uploads of killed agents
	unremoved uint64          // looks for these that failed
}

// upload is the upload of one snapshot, as far as it is not done.
type upload struct {
	snapshot string
	cancel   context.CancelCauseFunc // of the attempt that is at work; nil when none is
	ended    chan struct{}           // closed when that has ended
	wait     time.Duration           // after the next failure
	at       time.Time               // of the next attempt
}

func newUploads() uploads {
	return uploads{wake: wake.New(), tries: map[string]*upload{}, forbidden: map[string]int{}, damaged: map[string]bool{}}
}

// claim returns the attempt that is due for a sandbox or template whose snapshot is to be
// stored, with its context; without one it may return the time until then. One with the
// snapshot "" has nothing to store.
func (u *uploads) claim(ctx context.Context, id, snapshot string) (attempt context.Context, left time.Duration, _ *upload) {
	u.mu.Lock()
	defer u.mu.Unlock()
	t := u.tries[id]
	if snapshot == "" || u.forbidden[id] > 0 {
		if t != nil && t.cancel == nil {
			delete(u.tries, id)
		}
		return nil, 0, nil
	}
	if t == nil || t.snapshot != snapshot && t.cancel == nil {
		t = &upload{snapshot: snapshot, wait: storeAgain}
		u.tries[id] = t
	}
	if left := time.Until(t.at); t.cancel != nil || u.busy() >= maxUploads || left > 0 {
		return nil, left, nil
	}
	attempt, t.cancel = context.WithCancelCause(ctx)
	t.ended = make(chan struct{})
	return attempt, 0, t
}

// busy counts the attempts that are at work. The caller holds mu.
func (u *uploads) busy() (n int) {
	for _, t := range u.tries {
		if t.cancel != nil {
			n++
		}
	}
	return n
}

// stop ends the upload of a sandbox that is about to be resumed.
func (u *uploads) stop(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if t := u.tries[id]; t != nil && t.cancel != nil {
		t.cancel(errResumed)
	}
}

// giveUp records that a checkpoint cannot be stored: this agent does not try it again.
func (u *uploads) giveUp(checkpoint string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.damaged[checkpoint] = true
}

// givenUp reports whether giveUp was called for a checkpoint.
func (u *uploads) givenUp(checkpoint string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.damaged[checkpoint]
}

// forbid ends the upload of a template that is to be removed, waits for its end, and lets
// none begin before allow is called. allow is called once, also after an error.
func (u *uploads) forbid(ctx context.Context, id string) (allow func(), err error) {
	u.mu.Lock()
	u.forbidden[id]++
	var ended chan struct{}
	if t := u.tries[id]; t != nil && t.cancel != nil {
		t.cancel(errRemoved)
		ended = t.ended
	}
	u.mu.Unlock()
	allow = func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.forbidden[id]--; u.forbidden[id] == 0 {
			delete(u.forbidden, id)
		}
		u.wake.Notify()
	}
	if ended == nil {
		return allow, nil
	}
	select {
	case <-ended:
		return allow, nil
	case <-ctx.Done():
		return allow, context.Cause(ctx)
	}
}

// finish ends an attempt, which sent so many bytes. One that failed is tried again later,
// one that was canceled when it is due.
func (u *uploads) finish(id string, t *upload, sent int64, err error, canceled bool) {
	defer u.wake.Notify()
	u.mu.Lock()
	defer u.mu.Unlock()
	t.cancel(nil)
	t.cancel = nil
	close(t.ended)
	switch {
	case err == nil:
		u.done++
		u.sent += uint64(sent)
		delete(u.tries, id)
	case !canceled:
		u.fails++
		t.at, t.wait = time.Now().Add(t.wait), min(2*t.wait, storeLatest)
	}
}

// countUnfinished counts a look for unfinished uploads, which removed n.
func (u *uploads) countUnfinished(n int, failed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.removed += uint64(n)
	if failed {
		u.unremoved++
	}
}

// StoreStats are counts of the uploads of a host.
type StoreStats struct {
	Waiting int           // paused sandboxes and templates that are to be stored
	Oldest  time.Duration // since the first of the sandboxes was paused
	Done    uint64        // uploads
	Sent    uint64        // bytes of them
	Failed  uint64        // attempts

	Removed        uint64 // unfinished uploads that killed agents have left
	RemovalsFailed uint64 // looks for these that failed
}

// stats returns the counts of this moment, without those that wait.
func (u *uploads) stats() StoreStats {
	u.mu.Lock()
	defer u.mu.Unlock()
	return StoreStats{Done: u.done, Sent: u.sent, Failed: u.fails, Removed: u.removed, RemovalsFailed: u.unremoved}
}
