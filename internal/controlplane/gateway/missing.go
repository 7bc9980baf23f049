package gateway

import (
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/misses"
	"wrenn.dev/internal/recent"
)

const (
	// maxKnown and knownTTL are of the sandboxes that were reached: requests for
	// them are served whatever else comes from their clients' addresses.
	maxKnown, knownTTL = 64 << 10, time.Minute

	tooManyMisses = "too many requests from this address for sandboxes that do not exist: wait a moment"
)

// missing counts the requests of each address for sandboxes that do not exist, and
// with signatures that no sandbox accepts.
type missing struct {
	*misses.Addresses

	known *recent.Cache[wrenn.SandboxID, struct{}]
}

func newMissing() *missing {
	return &missing{Addresses: misses.New(), known: recent.New[wrenn.SandboxID, struct{}](maxKnown, knownTTL)}
}

// reached records that a sandbox exists.
func (m *missing) reached(id wrenn.SandboxID) { m.known.Put(id, struct{}{}, time.Now()) }

// refuses reports whether a request is not even looked up.
func (m *missing) refuses(remote string, id wrenn.SandboxID) bool {
	if !m.TooMany(remote) {
		return false
	}
	_, known := m.known.Get(id, time.Now())
	return !known
}
