package network

import (
	"net/netip"
	"slices"

	"wrenn.dev/internal/publicnet"
)

// closedTo returns the networks that no guest may reach: the reserved ones, the
// clouds' own machines, what the operator closed, and the range of the slots,
// which may be anywhere.
func (c Config) closed() []netip.Prefix {
	return disjoint(slices.Concat(publicnet.Reserved, publicnet.CloudHosts, c.Closed, []netip.Prefix{c.Range}))
}

// disjoint returns the networks, in order, that are in no other one.
func disjoint(networks []netip.Prefix) []netip.Prefix {
	sorted := slices.Clone(networks)
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits() // the larger one first
	})
	var out []netip.Prefix
	for _, p := range sorted {
		if len(out) == 0 || !out[len(out)-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}
