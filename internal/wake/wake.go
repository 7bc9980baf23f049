// Package wake has what a goroutine waits for: a channel that wakes it when it has
// something to do, and a time that passes.
package wake

import (
	"context"
	"time"
)

// Chan wakes its receiver. Notifications that come before it receives are one:
// it must look for itself what there is to do. Make one by New.
type Chan chan struct{}

// New returns a channel without a notification.
func New() Chan { return make(Chan, 1) }

// Notify wakes the receiver, now or when it next receives. It never blocks.
func (c Chan) Notify() {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Sleep reports whether d passed before ctx ended.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
