package network

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"wrenn.dev"
	"wrenn.dev/internal/publicnet"
)

func TestNamesFitTheKernelAndReadBack(t *testing.T) {
	const ifNameSize = 16 // IFNAMSIZ, with the terminating zero
	for _, prefix := range []string{"wrenn", strings.Repeat("w", maxPrefixLen)} {
		cfg := Config{Prefix: prefix}
		for _, index := range []int{0, 9, 9999, 10000, 32767, maxSlots - 1} {
			name := cfg.name(index)
			if len(name) >= ifNameSize {
				t.Errorf("%s has %d characters", name, len(name))
			}
			if got, ok := cfg.indexOf(name); !ok || got != index {
				t.Errorf("indexOf(%s) = %d, %t", name, got, ok)
			}
		}
	}
	cfg := Config{Prefix: "wrenn"}
	for _, name := range []string{"", "wrenn", "wrenn-", "wrenn-x", "wrenn--1", "wrenn-01", "wrenn-+1", "wrenn-1000000", "wrenn2-1", "docker0"} {
		if index, ok := cfg.indexOf(name); ok {
			t.Errorf("indexOf(%q) = %d", name, index)
		}
	}
}

func TestAddressesOfSlots(t *testing.T) {
	cfg := Config{}.withDefaults()
	for _, tc := range []struct {
		index      int
		host, slot string
	}{
		{0, "10.191.0.0", "10.191.0.1"},
		{1, "10.191.0.2", "10.191.0.3"},
		{127, "10.191.0.254", "10.191.0.255"},
		{128, "10.191.1.0", "10.191.1.1"},
		{cfg.capacity() - 1, "10.191.255.254", "10.191.255.255"},
	} {
		if host, slot := cfg.hostAddr(tc.index).String(), cfg.slotAddr(tc.index).String(); host != tc.host || slot != tc.slot {
			t.Errorf("slot %d has %s and %s, want %s and %s", tc.index, host, slot, tc.host, tc.slot)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	prefix := netip.MustParsePrefix
	for _, tc := range []struct {
		name string
		cfg  Config
		want wrenn.Code
	}{
		{"defaults", Config{}, ""},
		{"one slot", Config{Range: prefix("10.0.0.2/31"), Max: 1}, ""},
		{"largest range", Config{Range: prefix("10.0.0.0/8")}, ""},
		{"long prefix", Config{Prefix: "wrenntest"}, wrenn.Invalid},
		{"dash in prefix", Config{Prefix: "w-1"}, wrenn.Invalid},
		{"path as prefix", Config{Prefix: "../x"}, wrenn.Invalid},
		{"digit first", Config{Prefix: "1w"}, wrenn.Invalid},
		{"IPv6", Config{Range: prefix("fd00::/64")}, wrenn.Invalid},
		{"host bits", Config{Range: prefix("10.1.2.3/16")}, wrenn.Invalid},
		{"too small", Config{Range: prefix("10.1.2.3/32")}, wrenn.Invalid},
		{"too large", Config{Range: prefix("0.0.0.0/0")}, wrenn.Invalid},
		{"link-local", Config{Range: prefix("169.254.0.0/16")}, wrenn.Invalid},
		{"loopback", Config{Range: prefix("127.8.0.0/16")}, wrenn.Invalid},
		{"multicast", Config{Range: prefix("224.8.0.0/16")}, wrenn.Invalid},
		{"more than the range", Config{Range: prefix("10.0.0.0/24"), Max: 129}, wrenn.Invalid},
		{"negative", Config{Max: -1}, wrenn.Invalid},
		{"more ready than there may be", Config{Max: 2, Ready: 3}, wrenn.Invalid},
		{"negative connections", Config{Connections: -1}, wrenn.Invalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.cfg.withDefaults().check(); wrenn.CodeOf(err) != tc.want {
				t.Errorf("check() = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestClash(t *testing.T) {
	route := func(dst string) netlink.Route {
		if dst == "" {
			return netlink.Route{}
		}
		_, n, err := net.ParseCIDR(dst)
		if err != nil {
			t.Fatal(err)
		}
		return netlink.Route{Dst: n}
	}
	slots := netip.MustParsePrefix("10.191.0.0/16")
	for _, tc := range []struct {
		dst  string
		want bool
	}{
		{"", false},
		{"0.0.0.0/0", false},
		{"0.0.0.0/1", false},
		{"10.190.0.0/16", false},
		{"192.168.0.0/16", false},
		{"10.191.0.0/16", true},
		{"10.191.255.255/32", true},
		{"10.0.0.0/8", true},
		{"8.0.0.0/5", true},
	} {
		if _, got := clash(slots, []netlink.Route{route("192.0.2.0/24"), route(tc.dst)}); got != tc.want {
			t.Errorf("clash with %q = %t", tc.dst, got)
		}
	}
	if got := freeRange([]netlink.Route{route("10.240.0.0/12")}); got != "10.239.0.0/16" {
		t.Errorf("freeRange() = %s", got)
	}
	if got := freeRange([]netlink.Route{route("10.0.0.0/8")}); got != "172.31.0.0/16" {
		t.Errorf("freeRange() = %s", got)
	}
}

func TestClosedNetworksDoNotOverlapAndHoldTheSlots(t *testing.T) {
	prefix := netip.MustParsePrefix
	always := len(publicnet.Reserved) + len(publicnet.CloudHosts)
	for _, tc := range []struct {
		slots string
		extra []netip.Prefix
		want  int
	}{
		{"10.191.0.0/16", nil, always},
		{"11.0.0.0/16", nil, always + 1},
		{"192.0.0.0/8", nil, always - 4 + 1}, // four reserved networks are inside
		{"10.191.0.0/16", []netip.Prefix{prefix("8.8.0.0/16"), prefix("8.8.8.0/24"), prefix("10.1.0.0/16")}, always + 1},
	} {
		closed := Config{Range: prefix(tc.slots), Closed: tc.extra}.closed()
		if len(closed) != tc.want {
			t.Errorf("%s: %d networks, want %d: %v", tc.slots, len(closed), tc.want, closed)
		}
		for i, p := range closed {
			for _, q := range closed[:i] {
				if p.Overlaps(q) {
					t.Errorf("%s: %s and %s overlap", tc.slots, p, q)
				}
			}
		}
	}
}

func TestShares(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  Config
		size int
		want share
	}{
		{"few slots", Config{Max: 10}, 262144, share{open: 4096, perSecond: 136, burst: 680}},
		{"a real share", Config{Max: 64}, 262144, share{open: 2048, perSecond: 68, burst: 340}},
		{"the least", Config{Max: 32768}, 262144, share{open: 682, perSecond: 22, burst: 110}},
		{"as configured", Config{Max: 10, Connections: 8}, 262144, share{open: 8, perSecond: 1, burst: 5}},
	} {
		got := tc.cfg.shareOf(tc.size)
		if got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
		if used := tc.cfg.Max * (got.open + int(got.burst) + int(got.perSecond)*closingSeconds); tc.cfg.Max < 100 && used > tc.size*slotParts/tableParts {
			t.Errorf("%s: all slots together have %d entries of %d", tc.name, used, tc.size)
		}
	}
	if got := (Config{Max: 100}).wantedTable(64 << 30); got != 100*largestShare/3*4 {
		t.Errorf("wantedTable() = %d", got)
	}
	if got := (Config{Max: 32768}).wantedTable(64 << 30); got != largestTable {
		t.Errorf("wantedTable() = %d", got)
	}
	if got := (Config{Max: 32768}).wantedTable(1 << 30); got != 1<<30/64/bytesPerEntry {
		t.Errorf("wantedTable() = %d", got)
	}
}

// TestSpans compares the arithmetic of spans with that of single addresses.
func TestSpans(t *testing.T) {
	prefix := netip.MustParsePrefix
	a := []netip.Prefix{prefix("0.0.0.0/30"), prefix("0.0.0.6/31"), prefix("0.0.0.7/32"), prefix("255.255.255.252/30")}
	b := []netip.Prefix{prefix("0.0.0.2/31"), prefix("0.0.0.4/30"), prefix("255.255.255.255/32")}
	has := func(s spans, n uint32) bool {
		return slices.ContainsFunc(s, func(one span) bool { return one.first <= n && n <= one.last })
	}
	x, y := spansOf(a), spansOf(b)
	for _, n := range []uint32{0, 1, 2, 3, 4, 5, 6, 7, 8, 100, ^uint32(0) - 4, ^uint32(0) - 3, ^uint32(0) - 1, ^uint32(0)} {
		inA, inB := has(x, n), has(y, n)
		if has(x.others(), n) == inA || has(x.both(y), n) != (inA && inB) || has(x.either(y), n) != (inA || inB) {
			t.Errorf("%d: others %v, both %v, either %v", n, x.others(), x.both(y), x.either(y))
		}
	}
	if got := everyAddress.others(); got != nil {
		t.Errorf("others of all: %v", got)
	}
	if diff := cmp.Diff(everyAddress, spans(nil).others(), cmp.AllowUnexported(span{})); diff != "" {
		t.Error(diff)
	}
}

func TestElementsAreDisjoint(t *testing.T) {
	prefix := netip.MustParsePrefix
	elements := spansOf([]netip.Prefix{prefix("255.255.255.0/24"), prefix("1.2.3.4/32"), prefix("1.2.0.0/16"), prefix("1.2.3.4/32"), prefix("1.3.0.0/16")}).elements()
	var got []string
	for _, e := range elements {
		addr, _ := netip.AddrFromSlice(e.Key)
		got = append(got, fmt.Sprint(addr, e.IntervalEnd))
	}
	want := []string{"1.2.0.0 false", "1.4.0.0 true", "255.255.255.0 false"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestRangesShareNoUsers(t *testing.T) {
	const base = 2_000_000_000
	owner := map[uint32]string{}
	for _, text := range []string{"", "10.0.0.0/8", "10.190.0.0/16", "10.191.0.0/24", "10.191.1.0/30", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15"} {
		var c Config
		if text != "" {
			c.Range = netip.MustParsePrefix(text)
		}
		c = c.withDefaults()
		first, last := c.FirstUser(base), c.FirstUser(base)+uint32(c.capacity())-1
		if first < base || last >= 1<<31 {
			t.Errorf("%s has the users %d to %d", c.Range, first, last)
		}
		for other, at := range owner {
			if overlaps := netip.MustParsePrefix(at).Overlaps(c.Range); !overlaps && other >= first && other <= last {
				t.Errorf("%s and %s share user %d", at, c.Range, other)
			}
		}
		owner[first], owner[last] = c.Range.String(), c.Range.String()
	}
}
