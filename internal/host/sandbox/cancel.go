package sandbox

import (
	"context"
	"sync"

	"wrenn.dev"
)

// errDestroyed ends the operation of a sandbox that is to be destroyed.
var errDestroyed = wrenn.Errorf(wrenn.Canceled, "the sandbox is being destroyed")

// cancellation ends the operation of a sandbox that is to be destroyed: neither a
// guest nor a VMM that hangs may delay that. It is canceled while at least one
// caller wants to destroy the sandbox.
type cancellation struct {
	mu      sync.Mutex // guards what follows
	wanted  int        // calls of cancel that were not taken back
	cancels map[*func()]func()
}

// cancel ends what runs now and what begins later, until uncancel.
func (c *cancellation) cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted++
	for _, f := range c.cancels {
		f()
	}
}

// uncancel takes back one cancel.
func (c *cancellation) uncancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted--
}

// onCancel has f called at each cancel until stop is called, and at once if c is
// canceled. f must not block.
func (c *cancellation) onCancel(f func()) (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancels == nil {
		c.cancels = map[*func()]func(){}
	}
	c.cancels[&f] = f
	if c.wanted > 0 {
		f()
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.cancels, &f)
	}
}

// context returns a context that also ends with errDestroyed when c is canceled.
// Call done when the operation has ended, before the operation lock is released.
func (c *cancellation) context(ctx context.Context) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := c.onCancel(func() { cancel(errDestroyed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}
