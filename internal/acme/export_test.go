package acme

import "time"

// SetFirstPause sets the pause after the first failure; call the result to undo that.
func SetFirstPause(pause time.Duration) (undo func()) {
	before := firstPause
	firstPause = pause
	return func() { firstPause = before }
}

// SetRenewalCheck sets how often certificates are looked at; call the result to undo that.
func SetRenewalCheck(interval time.Duration) (undo func()) {
	before := renewalCheck
	renewalCheck = interval
	return func() { renewalCheck = before }
}
