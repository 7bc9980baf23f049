// Package wake has a channel that wakes a goroutine which has something to do.
package wake

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
