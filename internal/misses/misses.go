// Package misses counts the requests of each address that found nothing, so that a
// client that guesses costs little.
package misses

import (
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"wrenn.dev/internal/recent"
)

const (
	// perSecond is how many requests of one address may find nothing: each costs a
	// query. A client that polls something that has ended stays far below.
	perSecond = 20
	// Burst is how many may at once.
	Burst = 200
	// maxMissing and missingTTL are of the addresses that are counted.
	maxMissing, missingTTL = 64 << 10, time.Minute
)

// Addresses count the requests of each address that found nothing: an unknown key,
// sandbox or signature. It is safe for concurrent use.
type Addresses struct {
	misses *recent.Cache[netip.Prefix, *rate.Limiter]
}

// New returns a count of none.
func New() *Addresses {
	return &Addresses{misses: recent.New[netip.Prefix, *rate.Limiter](maxMissing, missingTTL)}
}

// Count counts a request, from an address with a port, that found nothing.
func (a *Addresses) Count(remote string) {
	now := time.Now()
	key := client(remote)
	limiter, ok := a.misses.Get(key, now)
	if !ok {
		limiter = rate.NewLimiter(perSecond, Burst)
	}
	a.misses.Put(key, limiter, now)
	limiter.AllowN(now, 1)
}

// TooMany reports whether requests of the address have found nothing too often.
func (a *Addresses) TooMany(remote string) bool {
	now := time.Now()
	limiter, ok := a.misses.Get(client(remote), now)
	return ok && limiter.TokensAt(now) < 1
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
