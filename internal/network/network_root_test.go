//go:build root

package network

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/testkit"
)

func TestGuestReachesTheWorld(t *testing.T) {
	l := newLab(t)
	heard := serve(t, l.world, 80)
	g := newGuest(t, acquire(t, l.open(t, nil), "a"))
	for _, network := range []string{"tcp4", "udp4"} {
		conn, err := dial(t.Context(), g.path, network, worldPublic+":80")
		testkit.Must(t, err)
		echo(t, conn)
		conn.Close()
	}
	if peers := slices.Compact(heard()); !slices.Equal(peers, []string{hostPublic}) {
		t.Errorf("the world saw %v, want the host's address %s alone", peers, hostPublic)
	}
}

// knock sends from a namespace until the rule has dropped a packet, and fails if
// an answer came.
func knock(t *testing.T, from, network, address string, rule func() uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	before := rule()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := dial(ctx, from, network, address)
		if err != nil {
			return
		}
		defer conn.Close()
		if network == "tcp4" {
			t.Errorf("%s answered", address)
			return
		}
		for ctx.Err() == nil { // UDP always connects
			conn.Write([]byte("hello"))
			conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			if _, err := conn.Read(make([]byte, 10)); err == nil {
				t.Errorf("%s answered", address)
				return
			}
		}
	}()
	testkit.WaitUntil(t, "what was sent to "+address+" is dropped", func() bool { return rule() > before })
	cancel()
	<-done
}

// The rules inside the slot drop the guest's packets, and those of the host drop
// them again should the slot's fail: the packets then come as if the slot itself
// had sent them.
func TestGuestIsKeptFromEverythingElse(t *testing.T) {
	l := newLab(t)
	serve(t, l.world, 80)
	serve(t, l.host, 80)
	addRoute(t, l.host, azure+"/32", worldPublic)
	p := l.open(t, func(c *Config) { c.Closed = []netip.Prefix{netip.MustParsePrefix("8.8.8.9/32")} })
	a, b := acquire(t, p, "a"), acquire(t, p, "b")
	ga, gb := newGuest(t, a), newGuest(t, b)
	serve(t, gb.path, 80)
	slotRule := func(comment string) func() uint64 {
		return func() uint64 { return counted(t, a.Namespace(), slotTable, comment) }
	}
	hostRule := func(comment string) func() uint64 {
		return func() uint64 { return counted(t, l.host, l.cfg.Prefix, comment) }
	}
	otherSlot := p.cfg.slotAddr(b.Index()).String()
	for _, tc := range []struct {
		name, from, address string
		rule                func() uint64
	}{
		{"LAN", ga.path, worldPrivate, slotRule("to a closed network")},
		{"metadata", ga.path, metadata, slotRule("to a closed network")},
		{"host's LAN address", ga.path, hostPrivate, slotRule("to a closed network")},
		{"host's end of the pair", ga.path, p.cfg.hostAddr(a.Index()).String(), slotRule("to a closed network")},
		{"host's end of another pair", ga.path, p.cfg.hostAddr(b.Index()).String(), slotRule("to a closed network")},
		{"another slot", ga.path, otherSlot, slotRule("to a closed network")},
		{"Azure's host", ga.path, azure, slotRule("to a closed network")},
		{"protocol assignments", ga.path, "192.0.0.8", slotRule("to a closed network")},
		{"closed by the operator", ga.path, "8.8.8.9", slotRule("to a closed network")},
		{"carrier NAT", ga.path, "100.64.1.1", slotRule("to a closed network")},
		{"class E", ga.path, "240.0.0.1", slotRule("to a closed network")},
		{"host's public address", ga.path, hostPublic, hostRule("to the host")},
		{"gateway", ga.path, GatewayAddress, slotRule("to the gateway")},
		{"own uplink", ga.path, p.cfg.slotAddr(a.Index()).String(), slotRule("to the gateway")},
		{"the slot itself to the world", a.Namespace(), worldPublic, slotRule("from the slot")},
		{"LAN, from the slot", "", worldPrivate, hostRule("to a closed network")},
		{"metadata, from the slot", "", metadata, hostRule("to a closed network")},
		{"Azure's host, from the slot", "", azure, hostRule("to a closed network")},
		{"host's LAN address, from the slot", "", hostPrivate, hostRule("to the host")},
		{"host's end, from the slot", "", p.cfg.hostAddr(a.Index()).String(), hostRule("to the host")},
		{"another slot, from the slot", "", otherSlot, hostRule("between slots")},
	} {
		if tc.from == "" {
			tc.from = a.Namespace()
			removeSlotTable(t, a)
		}
		for _, network := range []string{"tcp4", "udp4"} {
			t.Run(tc.name+"/"+network, func(t *testing.T) {
				knock(t, tc.from, network, tc.address+":80", tc.rule)
			})
		}
	}
}

func TestSpoofedPacketsAreDropped(t *testing.T) {
	l := newLab(t)
	serve(t, l.world, 80)
	s := acquire(t, l.open(t, nil), "a")
	g := newGuest(t, s)
	conn, err := dial(t.Context(), g.path, "tcp4", worldPublic+":80") // the gateway answers no ARP of others
	testkit.Must(t, err)
	conn.Close()

	t.Run("address of the guest", func(t *testing.T) {
		inside(t, g.path, func(nl *netlink.Handle) { setUp(t, nl, "eth0", "8.8.4.4/32") })
		from := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP("8.8.4.4")}}
		sendUntil(t, g.path, from, func() bool { return counted(t, s.Namespace(), slotTable, "spoofed address") > 0 })
	})
	t.Run("MAC of the guest", func(t *testing.T) {
		inside(t, g.path, func(nl *netlink.Handle) {
			link, err := nl.LinkByName("eth0")
			testkit.Must(t, err)
			testkit.Must(t, nl.LinkSetHardwareAddr(link, mac("02:fc:00:00:00:99")))
		})
		sendUntil(t, g.path, net.Dialer{}, func() bool { return counted(t, s.Namespace(), slotTable, "spoofed MAC") > 0 })
	})
	t.Run("address of the slot", func(t *testing.T) {
		removeSlotTable(t, s)
		inside(t, s.Namespace(), func(nl *netlink.Handle) { setUp(t, nl, uplink, "8.8.4.4/32") })
		from := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP("8.8.4.4")}}
		sendUntil(t, s.Namespace(), from, func() bool { return counted(t, l.host, l.cfg.Prefix, "spoofed") > 0 })
	})
}

// removeSlotTable removes the slot's own rules, so that the host's alone are tested.
func removeSlotTable(t *testing.T, s *Slot) {
	t.Helper()
	testkit.Must(t, batch(s.Namespace(), func(conn *nftables.Conn) error {
		table := &nftables.Table{Family: nftables.TableFamilyINet, Name: slotTable}
		conn.AddTable(table) // to delete one that does not exist is an error
		conn.DelTable(table)
		return nil
	}))
}

// sendUntil sends datagrams to the world.
func sendUntil(t *testing.T, path string, dialer net.Dialer, ok func() bool) {
	t.Helper()
	var conn net.Conn
	testkit.Must(t, netns.Do(path, func() (err error) {
		conn, err = dialer.DialContext(t.Context(), "udp4", worldPublic+":80")
		return err
	}))
	defer conn.Close()
	testkit.WaitUntil(t, "a spoofed packet is dropped", func() bool {
		conn.Write([]byte("hello"))
		return ok()
	})
}

func TestSlotsHaveNoIPv6(t *testing.T) {
	l := newLab(t)
	s := acquire(t, l.open(t, nil), "a")
	for _, link := range []string{TAP, uplink} {
		var value []byte
		err := netns.Do(s.Namespace(), func() (err error) {
			value, err = os.ReadFile(sysctlDir + "net/ipv6/conf/" + link + "/disable_ipv6")
			return err
		})
		if os.IsNotExist(err) {
			continue // a kernel without IPv6
		}
		if testkit.Must(t, err); strings.TrimSpace(string(value)) != "1" {
			t.Errorf("disable_ipv6 of %s is %q", link, value)
		}
	}
}

func TestOnlyTheSlotDialsItsGuest(t *testing.T) {
	l := newLab(t)
	p := l.open(t, nil)
	s := acquire(t, p, "a")
	g := newGuest(t, s)
	heard := serve(t, g.path, 49983)

	conn, err := s.DialContext(t.Context(), "tcp", EnvdAddress)
	testkit.Must(t, err)
	echo(t, conn)
	conn.Close()

	slot := p.cfg.slotAddr(s.Index()).String() + ":49983"
	knock(t, l.host, "tcp4", slot, func() uint64 { return counted(t, l.host, l.cfg.Prefix, "from the host") })
	addRoute(t, l.world, p.cfg.Range.String(), hostPublic)
	knock(t, l.world, "tcp4", slot, func() uint64 { return counted(t, l.host, l.cfg.Prefix, "unasked") })
	// A process of the host sends to the guest's own address.
	addRoute(t, l.host, GuestAddress+"/32", p.cfg.slotAddr(s.Index()).String())
	knock(t, l.host, "tcp4", EnvdAddress, func() uint64 { return counted(t, l.host, l.cfg.Prefix, "from the host") })
	// Without the host's table, the slot's own drops it.
	testkit.Must(t, p.host.deleteTable())
	knock(t, l.host, "tcp4", EnvdAddress, func() uint64 { return counted(t, s.Namespace(), slotTable, "unasked") })
	if peers := slices.Compact(heard()); !slices.Equal(peers, []string{GatewayAddress}) {
		t.Errorf("the guest heard %v", peers)
	}
	testkit.Must(t, p.host.writeTable(t.Context(), []int{s.Index()}))
}

func TestDial(t *testing.T) {
	l := newLab(t)
	s := acquire(t, l.open(t, nil), "a")
	for _, tc := range []struct{ network, address string }{
		{"tcp", "localhost:80"}, {"tcp", GuestAddress}, {"tcp", ""}, {"tcp", "[::1]:80"}, {"unix", EnvdAddress},
	} {
		if _, err := s.DialContext(t.Context(), tc.network, tc.address); wrenn.CodeOf(err) != wrenn.Invalid {
			t.Errorf("DialContext(%q, %q) = %v", tc.network, tc.address, err)
		}
	}
	g := newGuest(t, s)
	if _, err := s.DialContext(t.Context(), "tcp", EnvdAddress); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	serve(t, g.path, 49983)
	for _, network := range []string{"tcp", "udp"} {
		conn, err := s.DialContext(t.Context(), network, EnvdAddress)
		testkit.Must(t, err)
		if got := conn.RemoteAddr().String(); got != EnvdAddress {
			t.Errorf("connected to %s", got)
		}
		echo(t, conn)
		conn.Close()
	}
}

// Many dials of a guest that drops everything must not use up threads.
func TestDialsThatHangHoldNoThreads(t *testing.T) {
	l := newLab(t)
	s := acquire(t, l.open(t, nil), "a")
	gone := errors.New("the caller went away")
	ctx, cancel := context.WithCancelCause(t.Context())
	threads := func() int {
		tasks, err := os.ReadDir("/proc/self/task")
		testkit.Must(t, err)
		return len(tasks)
	}
	const dials = 200
	before := threads()
	var wg sync.WaitGroup
	for range dials {
		wg.Go(func() {
			if _, err := s.DialContext(ctx, "tcp", EnvdAddress); !errors.Is(err, gone) {
				t.Errorf("DialContext() = %v", err)
			}
		})
	}
	testkit.WaitUntil(t, "all hang", func() bool { return synSent(t, s.Namespace()) == dials })
	if n := threads(); n > before+dials/2 {
		t.Errorf("%d threads, %d before", n, before)
	}
	cancel(gone)
	wg.Wait()
	testkit.WaitUntil(t, "their sockets are closed", func() bool { return synSent(t, s.Namespace()) == 0 })
}

// synSent counts the sockets of a namespace that wait for an answer to a SYN.
func synSent(t *testing.T, path string) int {
	t.Helper()
	var table []byte
	testkit.Must(t, netns.Do(path, func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/tcp")
		return err
	}))
	n := 0
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 3 && f[3] == "02" { // TCP_SYN_SENT
			n++
		}
	}
	return n
}

func TestAnotherFirewallIsNamed(t *testing.T) {
	l := newLab(t)
	drop := nftables.ChainPolicyDrop
	testkit.Must(t, batch(l.host, func(conn *nftables.Conn) error {
		table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "corporate"})
		conn.AddChain(&nftables.Chain{Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
		return nil
	}))
	var log strings.Builder
	cfg := l.cfg
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	p, err := Open(t.Context(), cfg)
	testkit.Must(t, err)
	testkit.Must(t, p.Close(t.Context()))
	if !strings.Contains(log.String(), "table=corporate chain=FORWARD") {
		t.Errorf("the log does not name it:\n%s", log.String())
	}
	if left := l.left(t); !slices.Equal(left, []string{"table corporate"}) {
		t.Errorf("tables = %v", left)
	}
}

// One guest cannot fill the host's table of connections.
func TestConnectionsAreBounded(t *testing.T) {
	l := newLab(t)
	serve(t, l.world, 80)
	s := acquire(t, l.open(t, func(c *Config) { c.Connections = 8 }), "a")
	g := newGuest(t, s)
	for range 8 {
		conn, err := dial(t.Context(), g.path, "tcp4", worldPublic+":80")
		testkit.Must(t, err)
		defer conn.Close()
	}
	knock(t, g.path, "tcp4", worldPublic+":80", func() uint64 {
		return counted(t, s.Namespace(), slotTable, "too many connections")
	})
}

// A restored guest remembers its gateway's MAC and must not be asked for its own.
func TestNeighborsAreKnownBeforeTheyTalk(t *testing.T) {
	l := newLab(t)
	p := l.open(t, nil)
	for _, s := range []*Slot{acquire(t, p, "a"), acquire(t, p, "b")} {
		inside(t, s.Namespace(), func(nl *netlink.Handle) {
			tap, err := nl.LinkByName(TAP)
			testkit.Must(t, err)
			if got := tap.Attrs().HardwareAddr.String(); got != gatewayMAC {
				t.Errorf("MAC of the gateway = %s", got)
			}
			neighbors, err := nl.NeighList(tap.Attrs().Index, netlink.FAMILY_V4)
			testkit.Must(t, err)
			if len(neighbors) != 1 || neighbors[0].State != netlink.NUD_PERMANENT ||
				neighbors[0].IP.String() != GuestAddress || neighbors[0].HardwareAddr.String() != GuestMAC {
				t.Errorf("neighbors = %v", neighbors)
			}
		})
	}
}

func TestTheRangeMustBeFree(t *testing.T) {
	for _, tc := range []struct{ name, route, names string }{
		{"route inside", "10.191.3.0/24", "10.191.3.0/24 dev out0"},
		{"route around", "10.0.0.0/8", "10.0.0.0/8 dev out0"},
		{"address of the host", "", "10.191.0.77 dev lo"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			if tc.route != "" {
				addRoute(t, l.host, tc.route, worldPublic)
			} else {
				inside(t, l.host, func(nl *netlink.Handle) { setUp(t, nl, "lo", "10.191.0.77/32") })
			}
			p, err := Open(t.Context(), l.cfg)
			if err == nil {
				l.close(t, p)
				t.Fatal("Open did not notice")
			}
			if wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), tc.names) {
				t.Errorf("Open() = %v, want it to name %s", err, tc.names)
			}
			if left := l.left(t); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
			free := err.Error()[strings.LastIndex(err.Error(), " ")+1:]
			l.open(t, func(c *Config) { c.Range = netip.MustParsePrefix(free) })
		})
	}
}

func TestDefaultRoutesDoNotClash(t *testing.T) {
	l := newLab(t)
	for _, dst := range []string{"0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1"} {
		addRoute(t, l.host, dst, worldPublic)
	}
	l.open(t, nil)
}

func TestOnePoolHasAPrefixAndARange(t *testing.T) {
	l := newLab(t)
	p := l.open(t, nil)
	other := l.cfg
	other.Prefix, other.Range = "other", freeTestRange
	for name, cfg := range map[string]Config{
		"same prefix":  {Prefix: l.cfg.Prefix, Range: freeTestRange},
		"same range":   {Prefix: "other", Range: p.cfg.Range},
		"in the range": {Prefix: "other", Range: netip.PrefixFrom(p.cfg.hostAddr(512), 24)},
	} {
		cfg.HostNamespace, cfg.RunDir, cfg.Log = l.cfg.HostNamespace, l.cfg.RunDir, l.cfg.Log
		if _, err := Open(t.Context(), cfg); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
			t.Errorf("%s: Open() = %v", name, err)
		}
	}
	second, err := Open(t.Context(), other)
	testkit.Must(t, err)
	testkit.Must(t, second.Close(t.Context()))
	locks, err := os.ReadDir(l.cfg.RunDir)
	testkit.Must(t, err)
	if len(locks) != 1 {
		t.Errorf("lock files: %v", locks)
	}
}

// Other tables of the host, such as Docker's, rewrite destinations before the
// packet is routed.
func TestRewrittenDestinationsAreNoWayAround(t *testing.T) {
	l := newLab(t)
	serve(t, l.world, 80)
	serve(t, l.host, 80)
	g := newGuest(t, acquire(t, l.open(t, nil), "a"))
	for _, tc := range []struct{ to, comment string }{
		{worldPrivate, "to a closed network"},
		{hostPrivate, "rewritten to the host"},
	} {
		t.Run(tc.to, func(t *testing.T) {
			rewrite := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "rewrite"}
			testkit.Must(t, batch(l.host, func(conn *nftables.Conn) error {
				conn.AddTable(rewrite)
				chain := conn.AddChain(&nftables.Chain{Name: "dnat", Table: rewrite, Type: nftables.ChainTypeNAT,
					Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
				conn.AddRule(&nftables.Rule{Table: rewrite, Chain: chain, Exprs: []expr.Any{
					&expr.Immediate{Register: 1, Data: netip.MustParseAddr(tc.to).AsSlice()},
					&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
				}})
				return nil
			}))
			knock(t, g.path, "tcp4", worldPublic+":80", func() uint64 { return counted(t, l.host, l.cfg.Prefix, tc.comment) })
			testkit.Must(t, batch(l.host, func(conn *nftables.Conn) error { conn.DelTable(rewrite); return nil }))
		})
	}
}
