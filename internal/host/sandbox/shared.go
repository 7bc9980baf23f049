package sandbox

import (
	"context"
	"sync"
)

// sharedCall lets several callers wait for one call. The zero value is ready.
type sharedCall struct {
	mu      sync.Mutex   // guards what follows
	current *runningCall // nil when none is at work
}

// runningCall is a call that is at work.
type runningCall struct {
	done    chan struct{} // closed when err is set
	err     error
	waiters int // guarded by the sharedCall's mu
	cancel  context.CancelFunc
}

// do waits for the call that is at work, or starts one by run. The call is canceled when
// the last of its callers ends.
func (r *sharedCall) do(ctx context.Context, run func(context.Context) error) error {
	w := r.join(ctx, run)
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		if r.removeWaiter(w) {
			w.cancel()
			<-w.done
		}
		return context.Cause(ctx)
	}
}

func (r *sharedCall) join(ctx context.Context, run func(context.Context) error) *runningCall {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current == nil {
		w := &runningCall{done: make(chan struct{})}
		ctx, w.cancel = context.WithCancel(context.WithoutCancel(ctx))
		r.current = w
		go func() { // its last waiter waits for its end
			w.err = run(ctx)
			w.cancel()
			r.end(w)
			close(w.done)
		}()
	}
	r.current.waiters++
	return r.current
}

// removeWaiter reports whether w has no waiters left; the next caller then starts
// a new call.
func (r *sharedCall) removeWaiter(w *runningCall) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w.waiters--; w.waiters > 0 {
		return false
	}
	r.forget(w)
	return true
}

func (r *sharedCall) end(w *runningCall) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget(w)
}

// forget is for a caller that holds mu.
func (r *sharedCall) forget(w *runningCall) {
	if r.current == w {
		r.current = nil
	}
}
