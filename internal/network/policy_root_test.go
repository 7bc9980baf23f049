//go:build root

package network

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/testkit"
)

// worldOther is another public address of the world.
const worldOther = "9.9.9.9"

// policyLab has a guest that may reach two public addresses.
func policyLab(t *testing.T, change func(*Config)) (*lab, *Slot, *guest) {
	t.Helper()
	l := newLab(t)
	inside(t, l.world, func(nl *netlink.Handle) { setUp(t, nl, "eth0", worldOther+"/32") })
	addRoute(t, l.host, worldOther+"/32", worldPublic)
	serve(t, l.world, 80)
	s := acquire(t, l.open(t, change), "a")
	return l, s, newGuest(t, s)
}

func policy(tb testing.TB, denyByDefault bool, allow, deny []string) wrenn.NetworkPolicy {
	tb.Helper()
	p, err := wrenn.ParseNetworkPolicy(denyByDefault, allow, deny)
	testkit.Must(tb, err)
	return p
}

// reaches opens a connection that is closed at the end of the test.
func reaches(t *testing.T, g *guest, address string) net.Conn {
	t.Helper()
	conn, err := dial(t.Context(), g.path, "tcp4", address+":80")
	testkit.Must(t, err)
	t.Cleanup(func() { conn.Close() })
	echo(t, conn)
	return conn
}

func TestPolicies(t *testing.T) {
	_, s, g := policyLab(t, nil)
	denied := func() uint64 { return counted(t, s.Namespace(), slotTable, "denied by the sandbox's policy") }
	closed := func() uint64 { return counted(t, s.Namespace(), slotTable, "to a closed network") }
	for _, tc := range []struct {
		name          string
		policy        wrenn.NetworkPolicy
		public, other bool // which may be reached
	}{
		{"all", policy(t, false, nil, nil), true, true},
		{"an address", policy(t, false, nil, []string{worldPublic}), false, true},
		{"a network", policy(t, false, nil, []string{"8.0.0.0/7"}), false, false},
		{"an address of a denied network", policy(t, false, []string{worldOther}, []string{"8.0.0.0/7", "9.0.0.0/8"}), false, true},
		{"nothing", policy(t, true, nil, nil), false, false},
		{"one alone", policy(t, true, []string{"8.8.8.0/24", worldPublic}, nil), true, false},
		{"a closed network is no exception", policy(t, true, []string{"0.0.0.0/0"}, nil), true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testkit.Must(t, s.SetPolicy(t.Context(), tc.policy))
			for address, open := range map[string]bool{worldPublic: tc.public, worldOther: tc.other} {
				if open {
					reaches(t, g, address)
					continue
				}
				for _, network := range []string{"tcp4", "udp4"} {
					knock(t, g.path, network, address+":80", denied)
				}
			}
			knock(t, g.path, "tcp4", worldPrivate+":80", closed)
			knock(t, g.path, "tcp4", metadata+":80", closed)
		})
	}
}

// A change ends what it denies, in both directions, and nothing else.
func TestPolicyChangesUnderOpenConnections(t *testing.T) {
	_, s, g := policyLab(t, nil)
	stays, ends := reaches(t, g, worldPublic), reaches(t, g, worldOther)
	testkit.Must(t, s.SetPolicy(t.Context(), policy(t, true, []string{worldPublic}, nil)))
	echo(t, stays)
	before := counted(t, s.Namespace(), slotTable, "denied by the sandbox's policy")
	ends.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	_, err := ends.Write([]byte("hello\n"))
	testkit.Must(t, err)
	if n, err := ends.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a denied connection answers: %d, %v", n, err)
	}
	if after := counted(t, s.Namespace(), slotTable, "denied by the sandbox's policy"); after == before {
		t.Error("the denied packet was not counted")
	}
	ends.SetReadDeadline(time.Time{})
	testkit.Must(t, s.SetPolicy(t.Context(), policy(t, false, nil, []string{worldPublic})))
	echo(t, ends) // the kernel repeats what was dropped
	testkit.Must(t, s.SetPolicy(t.Context(), wrenn.NetworkPolicy{}))
	echo(t, stays)
}

// What a peer sends on its own is dropped, too, once it is denied.
func TestDeniedPeersAreNotHeard(t *testing.T) {
	l, s, g := policyLab(t, nil)
	var server net.PacketConn
	testkit.Must(t, netns.Do(l.world, func() (err error) {
		server, err = new(net.ListenConfig).ListenPacket(t.Context(), "udp4", worldPublic+":7")
		return err
	}))
	defer server.Close()
	conn, err := dial(t.Context(), g.path, "udp4", worldPublic+":7")
	testkit.Must(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("subscribe"))
	testkit.Must(t, err)
	_, guest, err := server.ReadFrom(make([]byte, 20))
	testkit.Must(t, err)
	testkit.Must(t, s.SetPolicy(t.Context(), policy(t, true, nil, nil)))
	testkit.WaitUntil(t, "what the peer sends is dropped", func() bool {
		_, err := server.WriteTo([]byte("push"), guest)
		testkit.Must(t, err)
		return counted(t, s.Namespace(), slotTable, "from a denied address") > 0
	})
}

// The next owner of a slot has no policy of the last one.
func TestPolicyEndsWithTheSlot(t *testing.T) {
	l := newLab(t)
	serve(t, l.world, 80)
	p := l.open(t, func(c *Config) { c.Ready, c.Max = 1, 1 })
	waitReady(t, p, 1)
	first := acquire(t, p, "first")
	testkit.Must(t, first.SetPolicy(t.Context(), policy(t, true, nil, nil)))
	testkit.Must(t, first.Release(t.Context()))
	if err := first.SetPolicy(t.Context(), wrenn.NetworkPolicy{}); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("SetPolicy after Release = %v", err)
	}
	reaches(t, newGuest(t, acquire(t, p, "second")), worldPublic)
}

func TestInvalidPolicy(t *testing.T) {
	_, s, _ := policyLab(t, nil)
	err := s.SetPolicy(t.Context(), wrenn.NetworkPolicy{Deny: []netip.Prefix{netip.MustParsePrefix("fd00::/8")}})
	if wrenn.CodeOf(err) != wrenn.Invalid {
		t.Errorf("SetPolicy() = %v", err)
	}
}

// A slot whose rules an older agent wrote gets new ones, with its connections.
func TestPolicyOfAnOlderAgentsSlot(t *testing.T) {
	_, s, g := policyLab(t, nil)
	conn := reaches(t, g, worldPublic)
	testkit.Must(t, batch(s.Namespace(), func(c *nftables.Conn) error {
		table := newTable(c, slotTable) // without the sets
		chain := table.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
		table.rule(chain, "out", accept())
		return nil
	}))
	testkit.Must(t, s.SetPolicy(t.Context(), policy(t, true, []string{worldPublic}, nil)))
	echo(t, conn)
	knock(t, g.path, "tcp4", worldOther+":80", func() uint64 {
		return counted(t, s.Namespace(), slotTable, "denied by the sandbox's policy")
	})
}

// The rate bounds what is in the table after connections were closed: the kernel
// does not count those that are in TIME_WAIT.
func TestNewConnectionsAreLimited(t *testing.T) {
	_, s, g := policyLab(t, func(c *Config) { c.Connections = 8 }) // 1 a second, 5 at once
	dropped := func() uint64 { return counted(t, s.Namespace(), slotTable, "too many new connections") }
	conn, err := dial(t.Context(), g.path, "udp4", worldPublic+":80")
	testkit.Must(t, err)
	defer conn.Close()
	for range 50 { // one connection, whatever the number of its packets
		_, err := conn.Write([]byte("hello"))
		testkit.Must(t, err)
	}
	echo(t, conn)
	if n := dropped(); n != 0 {
		t.Errorf("%d packets of one connection were dropped", n)
	}
	testkit.WaitUntil(t, "new connections are dropped", func() bool {
		burst, err := dial(t.Context(), g.path, "udp4", worldPublic+":80")
		testkit.Must(t, err)
		defer burst.Close()
		_, err = burst.Write([]byte("hello"))
		testkit.Must(t, err)
		return dropped() > 0
	})
}

// Closed connections leave the tables of the host and of the slot after ten seconds.
func TestClosedConnectionsLeaveTheTable(t *testing.T) {
	l, s, g := policyLab(t, nil)
	conn, err := dial(t.Context(), g.path, "tcp4", worldPublic+":80")
	testkit.Must(t, err)
	echo(t, conn)
	conn.Close()
	const timeWait = 7 // TCP_CONNTRACK_TIME_WAIT of linux/netfilter/nf_conntrack_tcp.h
	for _, path := range []string{l.host, s.Namespace()} {
		testkit.WaitUntil(t, "the connection is closing", func() bool {
			for _, f := range flows(t, path) {
				info, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
				if ok && info.State == timeWait && f.TimeOut <= closingSeconds {
					return true
				}
			}
			return false
		})
	}
}

// IP in IP, GRE and the others would be another way out, and no rule knows their ports.
func TestOtherProtocolsStayInside(t *testing.T) {
	l, s, g := policyLab(t, nil)
	for _, from := range []struct { // in this order: the second removes the rules of the first
		name, path string
		rule       func() uint64
	}{
		{"guest", g.path, func() uint64 { return counted(t, s.Namespace(), slotTable, "neither TCP nor UDP nor ICMP") }},
		{"slot", s.Namespace(), func() uint64 { return counted(t, l.host, l.cfg.Prefix, "neither TCP nor UDP nor ICMP") }},
	} {
		t.Run(from.name, func(t *testing.T) {
			if from.path == s.Namespace() {
				removeSlotTable(t, s)
			}
			for _, protocol := range []int{unix.IPPROTO_GRE, unix.IPPROTO_IPIP, unix.IPPROTO_SCTP, 253} {
				before := from.rule()
				testkit.WaitUntil(t, "the packet is dropped", func() bool {
					sendRaw(t, from.path, protocol)
					return from.rule() > before
				})
			}
		})
	}
}

// sendRaw sends a packet of an IP protocol to the world.
func sendRaw(t *testing.T, path string, protocol int) {
	t.Helper()
	testkit.Must(t, netns.Do(path, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, make([]byte, 40), 0, &unix.SockaddrInet4{Addr: netip.MustParseAddr(worldPublic).As4()})
	}))
}
