// Package cmutex has a mutex whose Lock ends with a context: for work that takes
// long while it holds the mutex.
package cmutex

import (
	"context"
	"sync"
)

// Mutex is a mutex. The zero value is unlocked. It must not be copied after its
// first use.
type Mutex struct {
	init  sync.Once
	token chan struct{} // full while the mutex is locked
}

func (m *Mutex) channel() chan struct{} {
	m.init.Do(func() { m.token = make(chan struct{}, 1) })
	return m.token
}

// Lock locks m. It waits until m is unlocked or ctx ends; then it returns ctx's
// cause and m is not the caller's. A ctx that has ended never locks.
func (m *Mutex) Lock(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case m.channel() <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// TryLock locks m if it is unlocked, and reports whether it did.
func (m *Mutex) TryLock() bool {
	select {
	case m.channel() <- struct{}{}:
		return true
	default:
		return false
	}
}

// Unlock unlocks m. It panics if m is not locked. Another goroutine than the one
// that locked m may call it.
func (m *Mutex) Unlock() {
	select {
	case <-m.channel():
	default:
		panic("cmutex: unlock of an unlocked mutex")
	}
}
