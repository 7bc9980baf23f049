package objects

import (
	"cmp"
	"context"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"wrenn.dev"
)

// Policy is how calls are repeated and bounded. Zero fields have defaults.
type Policy struct {
	Attempts int           // of one call; default 5
	First    time.Duration // before the second attempt, doubled after each; default 200 ms
	Longest  time.Duration // between two attempts; default 5 s
	Stall    time.Duration // without a byte, after which an attempt is given up; default 2 min
	// BytesPerSecond that all calls together send and receive, each; 0 is no bound.
	BytesPerSecond int
}

// Retry returns a store whose calls are repeated while s answers Unavailable, and given
// up when no byte passes. A reader that breaks off continues where it was.
func Retry(s Store, p Policy) Store {
	p.Attempts = cmp.Or(p.Attempts, 5)
	p.First, p.Longest = cmp.Or(p.First, 200*time.Millisecond), cmp.Or(p.Longest, 5*time.Second)
	p.Stall = cmp.Or(p.Stall, 2*time.Minute)
	r := &retrying{store: s, policy: p}
	if p.BytesPerSecond > 0 {
		r.send, r.receive = rate.NewLimiter(rate.Limit(p.BytesPerSecond), burst), rate.NewLimiter(rate.Limit(p.BytesPerSecond), burst)
	}
	return r
}

// burst is the most that is read at once under a bound of the bandwidth.
const burst = 256 << 10

type retrying struct {
	store         Store
	policy        Policy
	send, receive *rate.Limiter // nil: no bound
}

// errStalled is the cause of the end of an attempt in which no byte passed.
var errStalled = errors.New("no byte passed for too long")

// try calls f until it does not return Unavailable. The watch that f gets ends its
// context when nothing happens.
func (r *retrying) try(ctx context.Context, what string, f func(*watch) error) error {
	wait := r.policy.First
	for attempt := 1; ; attempt++ {
		w := r.watch(ctx)
		err := w.explain(what, f(w))
		if err != nil {
			w.stop()
		}
		if err == nil || wrenn.CodeOf(err) != wrenn.Unavailable || attempt == r.policy.Attempts {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait/2 + rand.N(wait/2+1)):
		}
		wait = min(2*wait, r.policy.Longest)
	}
}

// watch is the context of an attempt, which ends when touch is not called.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
}

func (r *retrying) watch(ctx context.Context) *watch {
	w := &watch{stall: r.policy.Stall}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(w.stall, func() { w.cancel(errStalled) })
	return w
}

func (w *watch) touch() { w.timer.Reset(w.stall) }

func (w *watch) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// explain makes the end of the watch an error that allows another attempt.
func (w *watch) explain(key string, err error) error {
	if errors.Is(err, errStalled) {
		return failure(wrenn.Unavailable, "reach", key, "the store does not answer", err)
	}
	return err
}

// Put implements Store.
func (r *retrying) Put(ctx context.Context, key string, body io.ReaderAt, size int64, ifAbsent bool) error {
	return r.try(ctx, key, func(w *watch) error {
		defer w.stop()
		watched := &watchedReaderAt{ReaderAt: body, watch: w, limit: r.send}
		err := r.store.Put(w.ctx, key, watched, size, ifAbsent)
		if failed := watched.failed.Load(); err != nil && failed != nil {
			return failure(wrenn.FailedPrecondition, "write", key, "its content cannot be read", *failed)
		}
		return err
	})
}

// watchedReaderAt is the body of a put.
type watchedReaderAt struct {
	io.ReaderAt
	watch  *watch
	limit  *rate.Limiter
	failed atomic.Pointer[error] // of the body itself: another attempt does not help
}

func (r *watchedReaderAt) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && err == nil {
		part := p[n:min(len(p), n+burst)]
		r.watch.touch()
		if err := waitFor(r.watch.ctx, r.limit, len(part)); err != nil {
			return n, err
		}
		var m int
		m, err = r.ReaderAt.ReadAt(part, off+int64(n))
		n += m
	}
	if n < len(p) {
		r.failed.Store(&err)
	}
	r.watch.touch()
	return n, err
}

func waitFor(ctx context.Context, limit *rate.Limiter, n int) error {
	if limit == nil {
		return nil
	}
	return inContext(ctx, limit.WaitN(ctx, n))
}

// Get implements Store.
func (r *retrying) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	g := &getting{retrying: r, ctx: ctx, key: key, offset: offset, left: length}
	if err := g.open(); err != nil {
		return nil, err
	}
	return g, nil
}

// getting is a reader that opens its object again where it broke off.
type getting struct {
	*retrying
	ctx          context.Context
	key          string
	offset, left int64
	broken       int // attempts that brought no byte

	body  io.ReadCloser
	watch *watch
}

func (g *getting) open() error {
	return g.try(g.ctx, g.key, func(w *watch) error {
		body, err := g.store.Get(w.ctx, g.key, g.offset, g.left)
		if err == nil {
			g.body, g.watch = body, w
		}
		return err
	})
}

// Read implements io.Reader.
func (g *getting) Read(p []byte) (int, error) {
	for {
		if g.left == 0 {
			return 0, io.EOF
		}
		n, err := g.readOnce(p[:min(len(p), burst)])
		switch {
		case n > 0:
			g.broken = 0
			return n, nil // the next read has the error
		case err == nil:
			return 0, nil
		case wrenn.CodeOf(err) != wrenn.Unavailable || g.broken >= g.policy.Attempts:
			return 0, err
		}
		g.broken++
		if err := errors.Join(g.Close(), g.open()); err != nil {
			return 0, err
		}
	}
}

func (g *getting) readOnce(p []byte) (int, error) {
	if err := waitFor(g.ctx, g.receive, len(p)); err != nil {
		return 0, err
	}
	g.watch.touch()
	n, err := g.body.Read(p)
	g.offset, g.left = g.offset+int64(n), g.left-int64(n)
	if errors.Is(err, io.EOF) && g.left > 0 {
		err = short(g.key)
	}
	return n, g.watch.explain(g.key, err)
}

// Close implements io.Closer.
func (g *getting) Close() error {
	defer g.watch.stop()
	return g.body.Close()
}

// Head implements Store.
func (r *retrying) Head(ctx context.Context, key string) (info Info, err error) {
	err = r.try(ctx, key, func(w *watch) (err error) {
		defer w.stop()
		info, err = r.store.Head(w.ctx, key)
		return err
	})
	return info, err
}

// Delete implements Store.
func (r *retrying) Delete(ctx context.Context, key string) error {
	return r.try(ctx, key, func(w *watch) error {
		defer w.stop()
		return r.store.Delete(w.ctx, key)
	})
}

// DeleteUnfinished implements Store.
func (r *retrying) DeleteUnfinished(ctx context.Context, prefix string, before time.Time) (n int, err error) {
	err = r.try(ctx, prefix, func(w *watch) error {
		defer w.stop()
		removed, err := r.store.DeleteUnfinished(w.ctx, prefix, before)
		n += removed
		return err
	})
	return n, err
}

// List implements Store. A list that breaks off begins again, and leaves out what it
// has returned.
func (r *retrying) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		last, done := "", false
		err := r.try(ctx, prefix, func(w *watch) error {
			defer w.stop()
			for info, err := range r.store.List(w.ctx, prefix) {
				w.touch()
				switch {
				case err != nil:
					return err
				case info.Key <= last:
					continue
				}
				last = info.Key
				if done = !yield(info, nil); done {
					return nil
				}
			}
			return nil
		})
		if err != nil && !done {
			yield(Info{}, err)
		}
	}
}
