package filesystem

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"sync"
	"time"

	"wrenn.dev"
	pb "wrenn.dev/proto/gen/envd/filesystem"
)

const (
	// maxWatches bounds all watches, streamed and polled. Each is an inotify
	// instance, of which a user may have 128 (max_user_instances, inotify(7));
	// the guest's own programs need some.
	maxWatches = 64
	// maxBuffered is how many events wait for a client that polls.
	maxBuffered = 4096
	// abandonedAfter is for how long a polled watch was not polled before another
	// watch may take its place: its client is gone.
	abandonedAfter = 10 * time.Minute
)

var (
	errStopping  = wrenn.Errorf(wrenn.Unavailable, "the agent is stopping")
	errNoWatcher = wrenn.Errorf(wrenn.NotFound, "no such watcher")
	errDirGone   = wrenn.Errorf(wrenn.NotFound, "the watched directory is gone")
	errTooMany   = wrenn.Errorf(wrenn.Exhausted, "%d directories are watched already: end a watch", maxWatches)
)

// registry holds the open watches, to bound and to end them.
type registry struct {
	mu      sync.Mutex // guards the fields below
	closed  bool
	open    map[*watch]bool
	pollers map[string]*poller
	running sync.WaitGroup // the pollers' goroutines
}

// admit registers a watch. At the limit it ends an abandoned watch, or returns an
// error when no watch is abandoned.
func (r *registry) admit(w *watch, now time.Time) error {
	victim, err := r.tryAdmit(w, now)
	if victim != nil {
		victim.Close()
	}
	return err
}

func (r *registry) tryAdmit(w *watch, now time.Time) (victim *watch, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, errStopping
	}
	if len(r.open) >= maxWatches {
		if victim = r.dropAbandoned(now); victim == nil {
			return nil, errTooMany
		}
	}
	r.open[w] = true
	return victim, nil
}

// dropAbandoned removes and returns the watch that was not polled for longest, or
// nil when none is abandoned. The caller must hold mu.
func (r *registry) dropAbandoned(now time.Time) *watch {
	var oldest *poller
	for _, p := range r.pollers {
		if oldest == nil || p.lastFetch().Before(oldest.lastFetch()) {
			oldest = p
		}
	}
	if oldest == nil || now.Sub(oldest.lastFetch()) < abandonedAfter {
		return nil
	}
	delete(r.pollers, oldest.id)
	delete(r.open, oldest.watch)
	return oldest.watch
}

// poll collects the events of an admitted watch from now on.
func (r *registry) poll(w *watch, now time.Time) (id string, err error) {
	p := &poller{id: rand.Text(), watch: w, fetched: now}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.open[w] {
		return "", errStopping // close came first
	}
	r.pollers[p.id] = p
	r.running.Go(p.run)
	return p.id, nil
}

func (r *registry) poller(id string) (*poller, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p, ok := r.pollers[id]; ok {
		return p, nil
	}
	return nil, errNoWatcher
}

// end closes and removes a watch and its poller. Twice is allowed.
func (r *registry) end(w *watch) {
	r.mu.Lock()
	delete(r.open, w)
	for id, p := range r.pollers {
		if p.watch == w {
			delete(r.pollers, id)
		}
	}
	r.mu.Unlock()
	w.Close()
}

// close ends all watches and admits no more.
func (r *registry) close() {
	r.mu.Lock()
	r.closed = true
	open := r.open
	r.open, r.pollers = nil, nil
	r.mu.Unlock()
	for w := range open {
		w.Close()
	}
	r.running.Wait()
}

// poller keeps the events of a watch until they are fetched.
type poller struct {
	id    string
	watch *watch

	mu      sync.Mutex // guards the fields below
	events  []*pb.FilesystemEvent
	lost    bool // events after these were lost
	ended   error
	fetched time.Time
}

// run collects until the watch ends.
func (p *poller) run() {
	for {
		events, err := p.watch.next(context.Background()) // Close ends it
		p.record(events, err)
		if err != nil && !errors.Is(err, errLost) {
			return
		}
	}
}

func (p *poller) record(events []*pb.FilesystemEvent, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil:
		if room := maxBuffered - len(p.events); len(events) > room {
			events, err = events[:room], errLost
		}
		if !p.lost {
			p.events = append(p.events, events...)
		}
		p.lost = p.lost || err != nil
	case errors.Is(err, errLost):
		p.lost = true
	case errors.Is(err, io.EOF):
		p.ended = errDirGone
	case errors.Is(err, fs.ErrClosed):
		p.ended = errStopping
	default:
		p.ended = err
	}
}

// fetch returns the events so far; without any, errLost once after a loss, or the
// reason why the watch has ended.
func (p *poller) fetch(now time.Time) ([]*pb.FilesystemEvent, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fetched = now
	switch {
	case len(p.events) > 0:
		events := p.events
		p.events = nil
		return events, nil
	case p.lost:
		p.lost = false
		return nil, errLost
	default:
		return nil, p.ended
	}
}

func (p *poller) lastFetch() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fetched
}
