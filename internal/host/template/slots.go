package template

import (
	"context"
	"slices"
	"sync"

	"wrenn.dev"
)

// slots are places for work of teams. A team has at most half of them, and when one
// becomes free, the team that has the fewest gets it.
type slots struct {
	most int // of a team

	mu      sync.Mutex // guards what follows
	free    int
	held    map[wrenn.TeamID]int
	waiting []*waiter // oldest first
}

type waiter struct {
	team  wrenn.TeamID
	ready chan struct{} // closed when the slot is its own
}

func newSlots(n int) *slots {
	return &slots{most: max(1, n/2), free: n, held: map[wrenn.TeamID]int{}}
}

// acquire returns when the team has a slot, until release is called. It calls wait
// first if none is free.
func (s *slots) acquire(ctx context.Context, team wrenn.TeamID, wait func()) (release func(), err error) {
	w := &waiter{team: team, ready: make(chan struct{})}
	s.mu.Lock()
	s.waiting = append(s.waiting, w)
	s.grant()
	granted := !slices.Contains(s.waiting, w)
	s.mu.Unlock()
	if !granted {
		wait()
	}
	select {
	case <-w.ready:
		return sync.OnceFunc(func() { s.release(team) }), nil
	case <-ctx.Done():
	}
	s.leave(w)
	return nil, context.Cause(ctx)
}

// leave ends the wait of w, which may have got a slot just now.
func (s *slots) leave(w *waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.waiting, w); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
		return
	}
	s.giveBack(w.team)
}

func (s *slots) release(team wrenn.TeamID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giveBack(team)
}

// giveBack frees a slot of a team. The caller must hold mu.
func (s *slots) giveBack(team wrenn.TeamID) {
	s.free++
	if s.held[team]--; s.held[team] == 0 {
		delete(s.held, team)
	}
	s.grant()
}

// grant gives free slots to waiters. The caller must hold mu.
func (s *slots) grant() {
	for s.free > 0 {
		next := -1
		for i, w := range s.waiting {
			if s.held[w.team] < s.most && (next < 0 || s.held[w.team] < s.held[s.waiting[next].team]) {
				next = i
			}
		}
		if next < 0 {
			return
		}
		w := s.waiting[next]
		s.waiting = slices.Delete(s.waiting, next, next+1)
		s.free--
		s.held[w.team]++
		close(w.ready)
	}
}
