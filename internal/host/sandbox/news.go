package sandbox

import (
	"sync"

	"wrenn.dev/internal/wake"
)

// news wakes those who want to know when a sandbox has changed without a call that
// asked for it. The zero value is ready.
type news struct {
	mu      sync.Mutex // guards readers
	readers map[wake.Chan]struct{}
}

// subscribe adds a reader until stop is called.
func (n *news) subscribe() (woken wake.Chan, stop func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := wake.New()
	if n.readers == nil {
		n.readers = map[wake.Chan]struct{}{}
	}
	n.readers[c] = struct{}{}
	return c, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.readers, c)
	}
}

// notify wakes the readers.
func (n *news) notify() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.readers {
		c.Notify()
	}
}
