// Package budget bounds the memory of a process that serves many owners: Go's own
// limit, and a budget of bytes from which requests reserve what they hold for their
// callers.
package budget

import (
	"context"
	"net/http"
	"sync"
	"time"

	"wrenn.dev"
)

// patience is how long a request waits for memory before it is refused.
const patience = 30 * time.Second

// Budget is a number of bytes that requests share. One owner's requests have at most
// half of it. When it is full, requests wait, and one of them may go on with a further
// allowance, so that requests that wait for each other's bytes come to an end. It is
// safe for concurrent use. A nil budget has no limit.
type Budget struct {
	what  string
	share int64
	wait  time.Duration

	mu      sync.Mutex // guards what follows
	free    int64
	reserve int64 // that only the request last may use
	last    *Reservation
	held    map[string]int64 // by owner
	changed chan struct{}    // closed when bytes become free
}

// New returns a budget of size bytes, and a further allowance of most, the most that one
// request can need, for one request at a time. what names the budget in errors:
// where it is and how its size is set.
func New(size, most int64, what string) *Budget {
	return &Budget{
		what: what, share: size / 2, wait: patience,
		free: size, reserve: most, held: map[string]int64{}, changed: make(chan struct{}),
	}
}

// Reservation is what a request holds. It is for one goroutine at a time. The methods
// of a nil reservation do nothing.
type Reservation struct {
	budget *Budget
	owner  string
	bytes  int64 // of the budget
	extra  int64 // of the further allowance
}

// Reservation returns a reservation of no bytes for a request. The caller releases it.
func (b *Budget) Reservation() *Reservation {
	if b == nil {
		return nil
	}
	return &Reservation{budget: b}
}

// SetOwner names whose request it is. Call it before Grow.
func (r *Reservation) SetOwner(owner string) {
	if r != nil {
		r.owner = owner
	}
}

// Grow reserves n further bytes. It waits until they are free: up to 30 s, then it is
// Exhausted, and the request should be ended.
func (r *Reservation) Grow(ctx context.Context, n int64) error {
	if r == nil {
		return nil
	}
	late := time.NewTimer(r.budget.wait)
	defer late.Stop()
	for {
		changed, ok := r.budget.grow(r, n)
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late.C:
			return wrenn.Errorf(wrenn.Exhausted, "there is no memory left for what requests send and receive, which the operator sets for %s: try again in a moment, or use streams and files", r.budget.what)
		}
	}
}

// grow reserves n bytes. If it cannot, it returns a channel that is closed when that
// may have changed.
func (b *Budget) grow(r *Reservation, n int64) (changed <-chan struct{}, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case n <= b.free && b.held[r.owner]+n <= b.share:
		b.free -= n
		b.held[r.owner] += n
		r.bytes += n
	case (b.last == nil || b.last == r) && r.extra+n <= b.reserve:
		b.last = r
		r.extra += n
	default:
		return b.changed, false
	}
	return nil, true
}

// Release gives all bytes back. Twice is allowed.
func (r *Reservation) Release() {
	if r == nil || r.bytes+r.extra == 0 {
		return
	}
	b := r.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += r.bytes
	if b.held[r.owner] -= r.bytes; b.held[r.owner] == 0 {
		delete(b.held, r.owner)
	}
	if b.last == r {
		b.last = nil
	}
	r.bytes, r.extra = 0, 0
	close(b.changed)
	b.changed = make(chan struct{})
}

// Handler returns next with a reservation of the budget in each request's context, see
// Of, which is released when the request was answered.
func (b *Budget) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		held := b.Reservation()
		defer held.Release()
		next.ServeHTTP(w, r.WithContext(With(r.Context(), held)))
	})
}

type contextKey struct{}

// With returns a context with a reservation, for Of.
func With(ctx context.Context, r *Reservation) context.Context {
	return context.WithValue(ctx, contextKey{}, r)
}

// Of returns the reservation of With, nil without one.
func Of(ctx context.Context) *Reservation {
	r, _ := ctx.Value(contextKey{}).(*Reservation)
	return r
}
