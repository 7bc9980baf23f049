package gateway

import (
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"wrenn"
	"wrenn/internal/recent"
)

const (
	// missesPerSecond and missBurst are the requests of one address for sandboxes
	// that do not exist, and with signatures that no sandbox accepts: each costs a
	// query. A client that polls a sandbox that has ended stays far below.
	missesPerSecond, missBurst = 20, 200
	// maxMissing and missingTTL are of the addresses that have missed.
	maxMissing, missingTTL = 64 << 10, time.Minute
	// maxKnown and knownTTL are of the sandboxes that were reached: requests for
	// them are served whatever else comes from their clients' addresses.
	maxKnown, knownTTL = 64 << 10, time.Minute

	tooManyMisses = "too many requests from this address for sandboxes that do not exist: wait a moment"
)

// misses count the requests of each address that found nothing.
type misses struct {
	addresses *recent.Cache[netip.Prefix, *rate.Limiter]
	known     *recent.Cache[wrenn.SandboxID, struct{}]
}

func newMisses() *misses {
	return &misses{
		addresses: recent.New[netip.Prefix, *rate.Limiter](maxMissing, missingTTL),
		known:     recent.New[wrenn.SandboxID, struct{}](maxKnown, knownTTL),
	}
}

// client is what counts as one address: of IPv6 the network, of which a client has all.
func client(remote string) netip.Prefix {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	addr := at.Addr().Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	prefix, _ := addr.Prefix(bits) // cannot fail: the bits fit
	return prefix
}

// add counts a request that found nothing.
func (m *misses) add(remote string) {
	now := time.Now()
	key := client(remote)
	limiter, ok := m.addresses.Get(key, now)
	if !ok {
		limiter = rate.NewLimiter(missesPerSecond, missBurst)
	}
	m.addresses.Put(key, limiter, now)
	limiter.AllowN(now, 1)
}

// tooMany reports whether requests of the address have found nothing too often.
func (m *misses) tooMany(remote string) bool {
	now := time.Now()
	limiter, ok := m.addresses.Get(client(remote), now)
	return ok && limiter.TokensAt(now) < 1
}

// reached records that a sandbox exists.
func (m *misses) reached(id wrenn.SandboxID) { m.known.Put(id, struct{}{}, time.Now()) }

// refuses reports whether a request is not even looked up.
func (m *misses) refuses(remote string, id wrenn.SandboxID) bool {
	if !m.tooMany(remote) {
		return false
	}
	_, known := m.known.Get(id, time.Now())
	return !known
}
