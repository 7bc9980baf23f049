package sandbox

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/testkit"
)

// queue has n starts wait for the place of a turns, and returns what each was told
// last, and the order in which they got it.
func queue(t *testing.T, turns *turns, n int) (told []int, order chan int) {
	t.Helper()
	told, order = make([]int, n), make(chan int, n)
	for i := range n {
		go func() {
			release, err := turns.acquire(t.Context(), false, func(ahead int) { told[i] = ahead })
			if err != nil {
				t.Error(err)
				return
			}
			order <- i
			release()
		}()
		testkit.WaitUntil(t, "it waits", func() bool { return turns.queued() == i+1 })
	}
	return told, order
}

func TestTurnsAreInOrder(t *testing.T) {
	turns := &turns{places: 1}
	release, err := turns.acquire(t.Context(), false, nil)
	testkit.Must(t, err)
	told, order := queue(t, turns, 3)
	turns.mu.Lock()
	if diff := cmp.Diff([]int{0, 1, 2}, told); diff != "" {
		t.Errorf("positions (-want +got):\n%s", diff)
	}
	turns.mu.Unlock()
	urgent := make(chan func(), 1)
	go func() {
		release, err := turns.acquire(t.Context(), true, func(int) {})
		if err != nil {
			t.Error(err)
		}
		urgent <- release
	}()
	testkit.WaitUntil(t, "the urgent one waits", func() bool { return turns.queued() == 4 })
	turns.mu.Lock()
	if diff := cmp.Diff([]int{1, 2, 3}, told); diff != "" {
		t.Errorf("positions behind an urgent one (-want +got):\n%s", diff)
	}
	turns.mu.Unlock()
	release()
	select {
	case next := <-urgent:
		next()
	case i := <-order:
		t.Fatalf("%d came before the urgent one", i)
	}
	var got []int
	for range 3 {
		got = append(got, <-order)
	}
	if diff := cmp.Diff([]int{0, 1, 2}, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	testkit.WaitUntil(t, "all places are free", func() bool { turns.mu.Lock(); defer turns.mu.Unlock(); return turns.taken == 0 })
}

func TestTurnsOfCallersThatLeave(t *testing.T) {
	turns := &turns{places: 1}
	release, err := turns.acquire(t.Context(), false, nil)
	testkit.Must(t, err)
	ctx, leave := context.WithCancelCause(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := turns.acquire(ctx, false, func(int) {})
		left <- err
	}()
	testkit.WaitUntil(t, "it waits", func() bool { return turns.queued() == 1 })
	turn := queueBehind(t, turns)
	gone := errors.New("gone")
	leave(gone)
	if err := <-left; !errors.Is(err, gone) {
		t.Errorf("acquire() = %v", err)
	}
	release()
	<-turn
	again, err := turns.acquire(t.Context(), false, nil)
	testkit.Must(t, err)
	again()
}

// queueBehind has a start wait as the second in the queue, and returns what is
// sent when it got its turn.
func queueBehind(t *testing.T, turns *turns) (turn chan struct{}) {
	t.Helper()
	turn = make(chan struct{})
	go func() {
		release, err := turns.acquire(t.Context(), false, nil)
		if err != nil {
			t.Error(err)
			return
		}
		turn <- struct{}{}
		release()
	}()
	testkit.WaitUntil(t, "it waits", func() bool { return turns.queued() == 2 })
	return turn
}

// TestTurnsWithoutLimit never wait.
func TestTurnsWithoutLimit(t *testing.T) {
	turns := &turns{}
	for range 100 {
		_, err := turns.acquire(t.Context(), false, nil)
		testkit.Must(t, err)
	}
}
