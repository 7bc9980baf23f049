package objectstest

import (
	"context"
	"io"
	"iter"
	"sync"
	"time"

	"wrenn.dev/internal/objects"
)

// Faulty is a store that fails as its fields say. The zero faults are none; set them by
// Set while other calls may run.
type Faulty struct {
	objects.Store

	mu     sync.Mutex
	faults Faults
	calls  map[string]int
}

// Faults are what a Faulty store does wrong.
type Faults struct {
	// Before is called with the name of the method and the key before each call, whose
	// error it returns.
	Before func(ctx context.Context, method, key string) error
	// Hidden reports whether a list leaves out an object.
	Hidden func(key string) bool
	// Body replaces the body of a Get.
	Body func(key string, r io.ReadCloser) io.ReadCloser
}

// NewFaulty returns a store that does what s does, until Set.
func NewFaulty(s objects.Store) *Faulty { return &Faulty{Store: s, calls: map[string]int{}} }

// Set sets what goes wrong from now on.
func (f *Faulty) Set(faults Faults) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = faults
}

// Calls returns how often a method was called.
func (f *Faulty) Calls(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[method]
}

func (f *Faulty) begin(ctx context.Context, method, key string) (Faults, error) {
	f.mu.Lock()
	f.calls[method]++
	faults := f.faults
	f.mu.Unlock()
	if faults.Before == nil {
		return faults, nil
	}
	return faults, faults.Before(ctx, method, key)
}

// Put implements objects.Store.
func (f *Faulty) Put(ctx context.Context, key string, body io.ReaderAt, size int64, ifAbsent bool) error {
	if _, err := f.begin(ctx, "Put", key); err != nil {
		return err
	}
	return f.Store.Put(ctx, key, body, size, ifAbsent)
}

// Get implements objects.Store.
func (f *Faulty) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	faults, err := f.begin(ctx, "Get", key)
	if err != nil {
		return nil, err
	}
	r, err := f.Store.Get(ctx, key, offset, length)
	if err == nil && faults.Body != nil {
		r = faults.Body(key, r)
	}
	return r, err
}

// Head implements objects.Store.
func (f *Faulty) Head(ctx context.Context, key string) (objects.Info, error) {
	if _, err := f.begin(ctx, "Head", key); err != nil {
		return objects.Info{}, err
	}
	return f.Store.Head(ctx, key)
}

// Delete implements objects.Store.
func (f *Faulty) Delete(ctx context.Context, key string) error {
	if _, err := f.begin(ctx, "Delete", key); err != nil {
		return err
	}
	return f.Store.Delete(ctx, key)
}

// DeleteUnfinished implements objects.Store.
func (f *Faulty) DeleteUnfinished(ctx context.Context, prefix string, before time.Time) (int, error) {
	if _, err := f.begin(ctx, "DeleteUnfinished", prefix); err != nil {
		return 0, err
	}
	return f.Store.DeleteUnfinished(ctx, prefix, before)
}

// List implements objects.Store.
func (f *Faulty) List(ctx context.Context, prefix string) iter.Seq2[objects.Info, error] {
	return func(yield func(objects.Info, error) bool) {
		faults, err := f.begin(ctx, "List", prefix)
		if err != nil {
			yield(objects.Info{}, err)
			return
		}
		for info, err := range f.Store.List(ctx, prefix) {
			if err == nil && faults.Hidden != nil && faults.Hidden(info.Key) {
				continue
			}
			if !yield(info, err) {
				return
			}
		}
	}
}
