package cmutex

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

func TestLockExcludes(t *testing.T) {
	var m Mutex
	var workers sync.WaitGroup
	n := 0
	for range 50 {
		workers.Go(func() {
			if err := m.Lock(t.Context()); err != nil {
				t.Error(err)
				return
			}
			defer m.Unlock()
			n++
		})
	}
	workers.Wait()
	if n != 50 {
		t.Errorf("n = %d", n)
	}
}

func TestLockEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Mutex
		if !m.TryLock() {
			t.Fatal("the zero Mutex is locked")
		}
		cause := errors.New("cause")
		ctx, cancel := context.WithCancelCause(t.Context())
		result := make(chan error, 1)
		go func() { result <- m.Lock(ctx) }()
		synctest.Wait()
		cancel(cause)
		if err := <-result; !errors.Is(err, cause) {
			t.Errorf("Lock() = %v", err)
		}
		m.Unlock()
		if err := m.Lock(ctx); !errors.Is(err, cause) {
			t.Errorf("Lock() of an unlocked mutex with a context that has ended = %v", err)
		}
		if !m.TryLock() || m.TryLock() {
			t.Error("TryLock() must succeed once")
		}
	})
}

func TestUnlockOfAnUnlockedMutexPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("it did not")
		}
	}()
	new(Mutex).Unlock()
}
