package service

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
)

const (
	// watchEvery is how often the rows of a team are read for all who watch it.
	watchEvery = time.Second
	// watchHeartbeat is the longest time between two calls of send.
	watchHeartbeat = 15 * time.Second
	// maxWatched bounds the sandboxes of a team that are watched: the newest.
	maxWatched = 5000
	// maxChanges bounds the sandboxes that are read at once.
	maxChanges = 500
)

// Changes are what a watcher is told. All that has changed is told once, as it is then.
type Changes struct {
	First     bool            // these are the sandboxes there are
	Sandboxes []wrenn.Sandbox // that are new, have changed or ended; without Env
	Dropped   []wrenn.SandboxID
}

// marks are those of a team's living sandboxes. They never change.
type marks map[wrenn.SandboxID]postgres.Mark

// watches has the teams that are watched.
type watches struct {
	mu    sync.Mutex // guards teams and their fields
	teams map[wrenn.TeamID]*watch
}

// watch is of one team. One goroutine reads its rows, however many watch.
type watch struct {
	watchers int
	stop     context.CancelFunc
	now      marks         // nil before the first read
	err      error         // of the last read
	changed  chan struct{} // closed when now or err changes
}

// WatchSandboxes calls send with the caller's sandboxes that have not ended, and then
// with those that change, until ctx ends or send fails; it returns why. It calls send
// at least every 15 s, with nothing if nothing has changed. A send that takes long
// misses states that were short, and never the last one.
func (s *Sandboxes) WatchSandboxes(ctx context.Context, c Caller, send func(Changes) error) error {
	w := s.watches.join(ctx, s.store, c.Team)
	defer s.watches.leave(c.Team, w)
	heartbeat := time.NewTicker(watchHeartbeat)
	defer heartbeat.Stop()
	var seen marks
	for {
		now, changed, err := s.watches.read(w)
		if err != nil {
			return err
		}
		if now != nil {
			if err := s.tellChanges(ctx, c, seen, now, send); err != nil {
				return err
			}
			seen = now
		}
		select {
		case <-changed:
		case <-heartbeat.C:
			if err := send(Changes{}); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tellChanges sends what differs between two reads; seen is nil before the first.
func (s *Sandboxes) tellChanges(ctx context.Context, c Caller, seen, now marks, send func(Changes) error) error {
	var ids []wrenn.SandboxID
	for id, mark := range now {
		if had, ok := seen[id]; !ok || had != mark {
			ids = append(ids, id)
		}
	}
	for id := range seen {
		if _, lives := now[id]; !lives {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	first := seen == nil
	if first && len(ids) == 0 {
		return send(Changes{First: true})
	}
	for some := range slices.Chunk(ids, maxChanges) {
		found, err := s.store.SandboxesByID(ctx, c.Team, some)
		if err != nil {
			return err
		}
		changes := Changes{First: first, Sandboxes: found}
		for _, id := range some {
			if !slices.ContainsFunc(found, func(sb wrenn.Sandbox) bool { return sb.ID == id }) {
				changes.Dropped = append(changes.Dropped, id)
			}
		}
		if err := send(changes); err != nil {
			return err
		}
		first = false
	}
	return nil
}

// join returns the watch of a team, which it starts if there is none. The caller leaves it.
func (ws *watches) join(ctx context.Context, store *postgres.Store, team wrenn.TeamID) *watch {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w := ws.teams[team]
	if w == nil {
		w = &watch{changed: make(chan struct{})}
		ctx, w.stop = context.WithCancel(context.WithoutCancel(ctx)) // it may outlive this watcher
		if ws.teams == nil {
			ws.teams = map[wrenn.TeamID]*watch{}
		}
		ws.teams[team] = w
		go ws.run(ctx, store, team, w)
	}
	w.watchers++
	return w
}

func (ws *watches) leave(team wrenn.TeamID, w *watch) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w.watchers--; w.watchers == 0 {
		w.stop()
		if ws.teams[team] == w {
			delete(ws.teams, team)
		}
	}
}

// read returns what was read last, and a channel that is closed when that changes.
func (ws *watches) read(w *watch) (marks, <-chan struct{}, error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return w.now, w.changed, w.err
}

// run reads a team's rows until ctx ends, or the database fails: then all watchers
// are told, and come again.
func (ws *watches) run(ctx context.Context, store *postgres.Store, team wrenn.TeamID, w *watch) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		now, err := store.Marks(ctx, team, maxWatched)
		ws.mu.Lock()
		if err != nil || w.now == nil || !maps.Equal(w.now, now) {
			w.now, w.err = now, err
			close(w.changed)
			w.changed = make(chan struct{})
		}
		if err != nil && ws.teams[team] == w {
			delete(ws.teams, team)
		}
		ws.mu.Unlock()
		if err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
