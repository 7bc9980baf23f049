// Package network makes the network slots of sandboxes and pools them ahead of
// need. A slot is a network namespace with a TAP device for the guest, which has
// the same names and addresses in every slot, a veth pair to the host, and rules
// that drop everything but outgoing traffic to the public internet. The package
// knows nothing of the machine in a slot.
//
// Everything is made with netlink and nftables, in atomic batches; no program
// is run. Objects in the kernel are named after Config.Prefix and a slot's
// index, so that an agent finds those that a killed agent left.
package network

import (
	"cmp"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"strconv"

	"wrenn.dev"
	"wrenn.dev/internal/netns"
)

// What every slot looks like from the guest's side. A snapshot holds these
// addresses, so it restores in any slot.
const (
	// TAP is the name of the guest's device inside the slot's namespace.
	TAP = "tap0"
	// GuestMAC and GuestAddress are the guest's.
	GuestMAC     = "02:fc:00:00:00:05"
	GuestAddress = "169.254.0.21"
	// GatewayAddress is the address of the TAP, the guest's default gateway.
	GatewayAddress = "169.254.0.22"
	// EnvdAddress is where the guest's agent listens.
	EnvdAddress = GuestAddress + ":49983"

	// gatewayMAC is the same in every slot: a restored guest remembers it.
	gatewayMAC = "02:fc:00:00:00:06"
	// linkBits is the length of the prefix that guest and gateway share.
	linkBits = 30
)

// Limits that keep "<prefix>-<index>" within the 15 characters that the kernel
// gives the name of a link (IFNAMSIZ - 1).
const (
	maxPrefixLen = 8
	maxSlots     = 1_000_000
)

// Config sets how many slots exist and how they are named.
type Config struct {
	// Prefix begins the name of every namespace, link and table, and tells
	// the pools of one machine apart: a letter, then letters and digits, at most
	// 8; default "wrenn". One pool at a time has a prefix.
	Prefix string
	// Range gives each slot two addresses (a /31) for the link to the host;
	// default 10.191.0.0/16, which is good for 32768 slots. No route of the
	// host may lead into it.
	Range netip.Prefix
	// Ready is how many slots are made ahead; up to twice as many are kept.
	Ready int
	// Max bounds the slots that exist at a time; default and limit: what Range holds.
	Max int
	// FirstUID, if not 0, makes user FirstUID+Index the owner of a slot's TAP; an
	// owner needs no capability to attach to it. With 0 the owner is root.
	FirstUID uint32
	// Connections bounds the open connections of one guest, and by that the rate of
	// new ones, so that it cannot fill the connection table of the host. Default: an
	// equal share of three quarters of the table, 682 to 4096.
	Connections int
	// MbitPerSecond bounds what one guest sends to, and what it receives from, outside of
	// its host, each; default 0, no bound.
	MbitPerSecond int
	// PacketsPerSecond bounds the packets that one guest sends and those that it is sent from
	// outside, each; as many may come at once. Those that exceed it are dropped. Zero is no bound.
	PacketsPerSecond int
	// Closed are IPv4 networks that no guest may reach, besides those that are
	// always closed.
	Closed []netip.Prefix
	// Resolvers are the DNS servers that answer for sandboxes whose policy has names;
	// default: those of the host's /etc/resolv.conf. They are asked from HostNamespace.
	Resolvers []netip.AddrPort
	// Roots are the authorities that certificates of hosts with header rules are verified
	// by; default: those of this machine. Tests use others.
	Roots *x509.CertPool
	// HostNamespace is the path of the network namespace that the slots are
	// attached to; default the agent's. Tests use another.
	HostNamespace string
	// RunDir holds the lock of the prefix; default /run/wrenn.
	RunDir string
	Log    *slog.Logger // required

	share share // of each slot in the connection table; known when the table is written
}

var validPrefix = regexp.MustCompile(`^[a-z][a-z0-9]{0,` + strconv.Itoa(maxPrefixLen-1) + `}$`)

func (c Config) withDefaults() Config {
	c.Prefix = cmp.Or(c.Prefix, "wrenn")
	c.Range = cmp.Or(c.Range, netip.MustParsePrefix("10.191.0.0/16"))
	c.HostNamespace = cmp.Or(c.HostNamespace, "/proc/self/ns/net")
	c.RunDir = cmp.Or(c.RunDir, "/run/wrenn")
	c.Max = cmp.Or(c.Max, c.capacity())
	return c
}

// Check returns an Invalid error, which names the field and its allowed values,
// if Open would refuse c on every machine.
func (c Config) Check() error { return c.withDefaults().check() }

// check is Check for a configuration that has its defaults.
func (c Config) check() error {
	switch {
	case !validPrefix.MatchString(c.Prefix):
		return wrenn.Errorf(wrenn.Invalid, "network prefix %.80q: use a lower-case letter, then letters and digits, at most %d", c.Prefix, maxPrefixLen)
	case !c.Range.IsValid() || !c.Range.Addr().Is4() || c.Range != c.Range.Masked() || c.Range.Bits() < 8 || c.Range.Bits() > 31:
		return wrenn.Errorf(wrenn.Invalid, "network range %s: use an IPv4 network between /8 and /31, such as 10.191.0.0/16", c.Range)
	case !c.Range.Addr().IsGlobalUnicast():
		return wrenn.Errorf(wrenn.Invalid, "network range %s: these addresses have a special meaning; use a private network such as 10.191.0.0/16", c.Range)
	case c.Max < 1 || c.Max > c.capacity():
		return wrenn.Errorf(wrenn.Invalid, "at most %d network slots: range %s holds 1 to %d", c.Max, c.Range, c.capacity())
	case c.Ready < 0 || c.Ready > c.Max:
		return wrenn.Errorf(wrenn.Invalid, "%d ready network slots: use 0 to %d", c.Ready, c.Max)
	case c.MbitPerSecond < 0 || c.MbitPerSecond > maxMbit:
		return wrenn.Errorf(wrenn.Invalid, "%d Mbit/s for a guest: use 1 to %d, or 0 for no bound", c.MbitPerSecond, maxMbit)
	case c.PacketsPerSecond != 0 && (c.PacketsPerSecond < minPackets || c.PacketsPerSecond > maxPackets):
		return wrenn.Errorf(wrenn.Invalid, "%d packets a second for a guest: use %d to %d, or 0 for no bound", c.PacketsPerSecond, minPackets, maxPackets)
	case c.Connections < 0:
		return wrenn.Errorf(wrenn.Invalid, "%d connections a network slot: use 1 or more", c.Connections)
	}
	for _, r := range c.Resolvers {
		if !r.Addr().Is4() || r.Port() == 0 {
			return wrenn.Errorf(wrenn.Invalid, "resolver %s: use an IPv4 address such as 1.1.1.1", r.Addr())
		}
	}
	for _, p := range c.Closed {
		if !p.IsValid() || !p.Addr().Is4() || p != p.Masked() {
			return wrenn.Errorf(wrenn.Invalid, "closed network %s: use an IPv4 network such as 192.0.2.0/24", p)
		}
	}
	return nil
}

// capacity returns how many slots Range holds; 0 if it is not a valid range.
func (c Config) capacity() int {
	if !c.Range.Addr().Is4() || c.Range.Bits() > 31 {
		return 0
	}
	return min(1<<(31-c.Range.Bits()), maxSlots)
}

// userBits is how many bits of an address FirstUser uses: those in which the networks
// for private use, shared address space and benchmarks differ.
const userBits = 28

// FirstUser returns a FirstUID, base or more, such that no slot of another range has the
// same user. Pools of one machine have ranges that do not overlap, so two agents on one
// machine do not run VMMs as the same user. Of networks that are not for private use,
// those that differ in the first four bits alone share users. It adds less than 2^27.
func (c Config) FirstUser(base uint32) uint32 {
	addr := c.withDefaults().Range.Addr().As4()
	return base + binary.BigEndian.Uint32(addr[:])&(1<<userBits-1)/2 // a slot has two addresses
}

// name is the name of slot index's namespace, and of the host's end of its veth pair.
func (c Config) name(index int) string { return c.links() + strconv.Itoa(index) }

// links is the prefix of the names of the slots' links on the host.
func (c Config) links() string { return c.Prefix + "-" }

// indexOf is the reverse of name; ok is false for names that name cannot return.
func (c Config) indexOf(name string) (index int, ok bool) {
	if len(name) <= len(c.links()) {
		return 0, false
	}
	index, err := strconv.Atoi(name[len(c.links()):])
	return index, err == nil && index >= 0 && index < maxSlots && c.name(index) == name
}

func (c Config) namespace(index int) string { return netns.Path(c.name(index)) }

// hostAddr and slotAddr are the two ends of slot index's veth pair.
func (c Config) hostAddr(index int) netip.Addr { return nth(c.Range.Addr(), 2*index) }
func (c Config) slotAddr(index int) netip.Addr { return nth(c.Range.Addr(), 2*index+1) }

// nth returns the address n after the IPv4 address a.
func nth(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		n += int(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	return netip.AddrFrom4(b)
}

// ipNet is addr/bits as the netlink library takes it.
func ipNet(addr netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}
}

func mac(s string) net.HardwareAddr {
	hw, err := net.ParseMAC(s)
	if err != nil {
		panic(fmt.Sprintf("network: constant %q is no MAC address", s))
	}
	return hw
}
