package service

import (
	"context"
	"testing"
	"time"
)

// TestFlushIsNotCutShort: what a canceled call has written, the last one would write again.
func TestFlushIsNotCutShort(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	soon := make(chan struct{}, 1)
	soon <- struct{}{}
	flushes := 0
	flushEvery(ctx, time.Hour, soon, func(flush context.Context) {
		flushes++
		stop()
		if err := flush.Err(); err != nil {
			t.Errorf("flush %d was cut short: %v", flushes, err)
		}
	})
	if flushes != 2 {
		t.Errorf("%d flushes, want the one that was asked for and the last", flushes)
	}
}
