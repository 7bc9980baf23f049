package sandbox

import (
	"context"
	"sync"
)

// turns admit as many starts at a time as the host can finish in time; the others
// wait, first come first served. Starts that share the CPU with too many others
// would all exceed their deadlines, which count from the turn.
type turns struct {
	places int // 0 is no limit

	mu      sync.Mutex // guards what follows
	taken   int
	waiting []*waiter
}

// waiter is a start that waits for its turn.
type waiter struct {
	turn  chan struct{} // closed when it has a place
	ahead func(int)     // is told how many are before it; may be nil
}

// acquire waits for a place until ctx ends. While it waits, ahead is told how many
// starts are before this one; it must not block, and may be nil. With first it
// comes before all that wait. The caller releases the place, once.
func (t *turns) acquire(ctx context.Context, first bool, ahead func(int)) (release func(), err error) {
	w, waits := t.enter(first, ahead)
	if !waits {
		return t.release, nil
	}
	select {
	case <-w.turn:
		return t.release, nil
	case <-ctx.Done():
		t.leave(w)
		return nil, context.Cause(ctx)
	}
}

func (t *turns) enter(first bool, ahead func(int)) (w *waiter, waits bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.places == 0 || t.taken < t.places {
		t.taken++
		return nil, false
	}
	w = &waiter{turn: make(chan struct{}), ahead: ahead}
	if first {
		t.waiting = append([]*waiter{w}, t.waiting...)
		t.tell(0)
	} else {
		t.waiting = append(t.waiting, w)
		t.tell(len(t.waiting) - 1)
	}
	return w, true
}

// leave is for a waiter that waits no more; it may have a place by now.
func (t *turns) leave(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, other := range t.waiting {
		if other == w {
			t.waiting = append(t.waiting[:i:i], t.waiting[i+1:]...)
			t.tell(i)
			return
		}
	}
	t.releaseLocked()
}

func (t *turns) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.releaseLocked()
}

// releaseLocked gives the place to the next waiter, if there is one. The caller holds mu.
func (t *turns) releaseLocked() {
	if len(t.waiting) == 0 {
		t.taken--
		return
	}
	close(t.waiting[0].turn)
	t.waiting = t.waiting[1:]
	t.tell(0)
}

// tell tells the waiters from a position on where they are. The caller holds mu.
func (t *turns) tell(from int) {
	for i := from; i < len(t.waiting); i++ {
		if ahead := t.waiting[i].ahead; ahead != nil {
			ahead(i)
		}
	}
}

// queued returns how many starts wait.
func (t *turns) queued() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.waiting)
}
