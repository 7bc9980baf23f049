// Package publicnet tells addresses of the public internet from those that only this
// machine, its network or its cloud should reach: what is dialed for a user goes to the
// former alone.
package publicnet

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Reserved are the IPv4 networks that are not the public internet: RFC 6890
// and its successors, https://www.iana.org/assignments/iana-ipv4-special-registry.
var Reserved = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"), // holds the clouds' metadata service
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("224.0.0.0/3"), // multicast, and class E up to the broadcast address
}

// CloudHosts are public addresses at which a cloud's own machine answers its guests.
var CloudHosts = []netip.Prefix{
	netip.MustParsePrefix("168.63.129.16/32"), // Azure's WireServer, which gives out credentials
}

// closed6 are the IPv6 networks that are not the public internet, or lead to an
// IPv4 address that may not be it.
var closed6 = []netip.Prefix{
	netip.MustParsePrefix("::/8"),
	netip.MustParsePrefix("64:ff9b::/96"),   // NAT64
	netip.MustParsePrefix("64:ff9b:1::/48"), // NAT64 of one site
	netip.MustParsePrefix("100::/64"),       // discarded
	netip.MustParsePrefix("2001::/32"),      // Teredo
	netip.MustParsePrefix("2001:db8::/32"),  // of documents
	netip.MustParsePrefix("2002::/16"),      // 6to4
	netip.MustParsePrefix("fc00::/7"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("fec0::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// IsClosed reports whether addr is no address of the public internet, or one that
// is closed to everything that acts for a user. The addresses of this machine and
// what its operator closed are not known here.
func IsClosed(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	in := func(p netip.Prefix) bool { return p.Contains(addr) }
	return slices.ContainsFunc(Reserved, in) || slices.ContainsFunc(CloudHosts, in) || slices.ContainsFunc(closed6, in)
}

// IsPublic reports whether addr may be dialed for a user: it is not closed, in none of
// the networks that the operator closed besides, and no address of this machine. It fails when
// those cannot be read.
func IsPublic(addr netip.Addr, closed []netip.Prefix) (bool, error) {
	addr = addr.Unmap().WithZone("")
	if IsClosed(addr) || slices.ContainsFunc(closed, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return false, nil
	}
	own, err := IsOwn(addr)
	if err != nil {
		return false, fmt.Errorf("addresses of this machine: %w", err)
	}
	return !own, nil
}

// IsOwn reports whether addr is an address of this machine, which may be public. It
// fails when those cannot be read.
func IsOwn(addr netip.Addr) (bool, error) {
	addr = addr.Unmap().WithZone("")
	all, err := net.InterfaceAddrs()
	return slices.ContainsFunc(all, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr().Unmap().WithZone("") == addr
	}), err
}
