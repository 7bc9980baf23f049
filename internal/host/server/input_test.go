package server

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// take returns the next piece as text, or "END".
func take(t *testing.T, q *inputQueue) string {
	t.Helper()
	piece, end, err := q.receive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if end {
		return "END"
	}
	return string(piece)
}

func TestInputQueueKeepsTheOrder(t *testing.T) {
	q := newInputQueue()
	put := func(text string) {
		if err := q.put(t.Context(), []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want ...string) {
		for _, w := range want {
			if got := take(t, &q); got != w {
				t.Errorf("took %q, want %q", got, w)
			}
		}
	}
	put("a")
	put("b")
	q.finish()
	put("c") // a terminal's input goes on
	expect("ab", "END", "c")
	q.finish()
	expect("END")
}

func TestInputQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newInputQueue()
		piece := bytes.Repeat([]byte("x"), inputPiece)
		put := 0
		done := make(chan error, 1)
		go func() {
			for put < 2*maxQueue {
				if err := q.put(t.Context(), piece); err != nil {
					done <- err
					return
				}
				put += len(piece)
			}
			q.finish()
			done <- nil
		}()
		synctest.Wait()
		if put != maxQueue {
			t.Errorf("%d bytes wait, want %d", put, maxQueue)
		}
		got := 0
		for {
			piece := take(t, &q)
			if piece == "END" {
				break
			}
			got += len(piece)
		}
		if err := <-done; err != nil || got != 2*maxQueue {
			t.Errorf("took %d bytes, %v", got, err)
		}
	})
}

func TestInputQueueEndsWithItsContext(t *testing.T) {
	q := newInputQueue()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := q.receive(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("take() = %v", err)
	}
	if err := q.put(t.Context(), make([]byte, maxQueue)); err != nil {
		t.Fatal(err)
	}
	if err := q.put(ctx, []byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("put() = %v", err)
	}
}
