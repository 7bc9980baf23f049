package network

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"

	"wrenn.dev"
)

// span is IPv4 addresses as numbers, both ends included.
type span struct{ first, last uint32 }

// spans are in order, and neither overlap nor touch each other.
type spans []span

// everyAddress has all IPv4 addresses.
var everyAddress = spans{{0, ^uint32(0)}}

// spansOf returns the addresses of the networks, which may overlap.
func spansOf(networks []netip.Prefix) spans {
	var all []span
	for _, p := range networks {
		first := numberOf(p.Masked().Addr())
		all = append(all, span{first, first | ^uint32(0)>>p.Bits()})
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	var out spans
	for _, s := range all {
		if n := len(out); n > 0 && uint64(s.first) <= uint64(out[n-1].last)+1 {
			out[n-1].last = max(out[n-1].last, s.last)
		} else {
			out = append(out, s)
		}
	}
	return out
}

// others returns the addresses that s has not.
func (s spans) others() (out spans) {
	next := uint64(0)
	for _, one := range s {
		if uint64(one.first) > next {
			out = append(out, span{uint32(next), one.first - 1})
		}
		next = uint64(one.last) + 1
	}
	if next <= uint64(^uint32(0)) {
		out = append(out, span{uint32(next), ^uint32(0)})
	}
	return out
}

// both returns the addresses that s and t have.
func (s spans) both(t spans) (out spans) {
	for i, j := 0, 0; i < len(s) && j < len(t); {
		if first, last := max(s[i].first, t[j].first), min(s[i].last, t[j].last); first <= last {
			out = append(out, span{first, last})
		}
		if s[i].last < t[j].last {
			i++
		} else {
			j++
		}
	}
	return out
}

// either returns the addresses that s or t has.
func (s spans) either(t spans) spans { return s.others().both(t.others()).others() }

// elements returns the addresses as elements of a set of intervals.
func (s spans) elements() (elements []nftables.SetElement) {
	for _, one := range s {
		elements = append(elements, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, one.first)})
		// The end is exclusive; a span that ends at the last address has none.
		if one.last != ^uint32(0) {
			elements = append(elements, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, one.last+1), IntervalEnd: true})
		}
	}
	return elements
}

func numberOf(addr netip.Addr) uint32 {
	b := addr.As4()
	return binary.BigEndian.Uint32(b[:])
}

// byAddress returns the addresses that each layer of a policy allows to connections that
// say no name.
func byAddress(p wrenn.NetworkPolicy) spans {
	out := everyAddress
	for _, own := range p.Each() {
		out = out.both(ofLayer(own))
	}
	return out
}

// whateverName returns the addresses that each layer of a policy allows to all
// connections, whatever name they say.
func whateverName(p wrenn.NetworkPolicy) spans {
	out := everyAddress
	for _, own := range p.Each() {
		if len(own.DenyNames) > 0 {
			out = out.both(spansOf(own.Allow))
		} else {
			out = out.both(ofLayer(own))
		}
	}
	return out
}

// ofLayer returns the addresses that one layer allows to connections that say no name.
func ofLayer(p wrenn.NetworkPolicy) spans {
	if p.DenyByDefault {
		return spansOf(p.Allow)
	}
	return spansOf(p.Allow).either(spansOf(p.Deny).others())
}
