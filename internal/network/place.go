package network

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn/internal/netns"
	"wrenn/internal/network/ntp"
)

const (
	// uplink is the slot's end of the veth pair.
	uplink = "uplink"
	// slotTable is the nftables table inside a slot.
	slotTable = "wrenn"
	// aliasPrefix begins the alias of the host's end (ifalias), which tells a finished slot's id.
	aliasPrefix = "wrenn slot "
	sysctlDir   = "/proc/sys/"
)

// step is one of those that make or recycle a slot.
type step struct {
	name string
	do   func(*maker) error
}

// makeSteps make a slot out of nothing. Rules come before links, the right to
// send comes last but one, and the id, without which a slot is not whole, last.
var makeSteps = []step{
	{"namespace", (*maker).createNamespace},
	{"sysctls", (*maker).writeSysctls},
	{"rules", (*maker).writeRules},
	{"veth", (*maker).addVeth},
	{"uplink", (*maker).setUplink},
	{"tap", (*maker).addTAP},
	{"gateway", (*maker).setTAP},
	{"clock", (*maker).serveTime},
	{"admission", func(m *maker) error { return m.host.admit(m.index) }},
	{"id", (*maker).writeID},
}

// recycleSteps make a used slot as good as new. The TAP is a new one, because
// offloads and header sizes that a VMM sets outlive it.
var recycleSteps = []step{
	{"unused", (*maker).checkUnused},
	{"old tap", (*maker).deleteTAP},
	{"rules", (*maker).writeRules},
	{"connections", (*maker).flushConnections},
	{"host connections", func(m *maker) error { return m.host.forget(m.index) }},
	{"tap", (*maker).addTAP},
	{"gateway", (*maker).setTAP},
	{"clock", (*maker).serveTime},
	{"id", (*maker).writeID},
}

// maker holds what the steps share.
type maker struct {
	cfg   Config
	host  *host
	index int
	id    string          // the slot's new one
	ns    *netlink.Handle // sockets in the slot's namespace, once there is one
}

// run takes the steps and returns the slot's new id. fault, if set, is asked
// before and after each step. When run fails the slot must be removed.
func (h *host) run(ctx context.Context, index int, steps []step, fault func(string) error) (id string, err error) {
	m := &maker{cfg: h.cfg, host: h, index: index, id: rand.Text()}
	defer m.close()
	for _, s := range steps {
		if err := m.take(ctx, s, fault); err != nil {
			return "", fmt.Errorf("slot %s: %s: %w", h.cfg.name(index), s.name, err)
		}
	}
	return m.id, nil
}

func (m *maker) take(ctx context.Context, s step, fault func(string) error) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if fault == nil {
		return s.do(m)
	}
	if err := fault("before " + s.name); err != nil {
		return err
	}
	if err := s.do(m); err != nil {
		return err
	}
	return fault("after " + s.name)
}

// remove takes away whatever there is of slot index: all, a part, or nothing.
// It goes as far as it can.
func (h *host) remove(index int, fault func(string) error) error {
	h.clocks.stop(index) // a socket would keep the namespace
	errs := []error{h.expel(index), h.removeLink(index), netns.Delete(h.cfg.name(index))}
	if index < h.cfg.capacity() { // else it was made for another range
		errs = append(errs, h.forget(index))
	}
	if fault != nil {
		errs = append(errs, fault("remove"))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove slot %s: %w", h.cfg.name(index), err)
	}
	return nil
}

func (m *maker) close() {
	if m.ns != nil {
		m.ns.Close()
	}
}

func (m *maker) path() string { return m.cfg.namespace(m.index) }

// inside returns the sockets in the namespace; close closes them.
func (m *maker) inside() (*netlink.Handle, error) {
	if m.ns != nil {
		return m.ns, nil
	}
	ns, err := openNetlink(m.path())
	m.ns = ns
	return ns, err
}

func (m *maker) createNamespace() error {
	_, err := netns.Create(m.cfg.name(m.index))
	return err
}

// writeSysctls makes a router of the namespace. A new one has copies of the
// host's values for IPv4, so everything that matters is set.
func (m *maker) writeSysctls() error {
	return netns.Do(m.path(), func() error {
		for _, s := range []struct{ name, value string }{
			{"net/ipv4/ip_forward", "1"},
			{"net/ipv4/conf/all/rp_filter", "1"},
			{"net/ipv4/conf/all/arp_ignore", "1"}, // do not tell guests the uplink's address
			{"net/ipv4/conf/all/accept_source_route", "0"},
			{"net/ipv4/conf/all/accept_redirects", "0"},
			{"net/ipv4/conf/default/accept_redirects", "0"},
			{"net/ipv4/conf/all/send_redirects", "0"},
			{"net/ipv4/conf/default/send_redirects", "0"},
			{"net/ipv4/conf/all/route_localnet", "0"},
		} {
			if err := writeSysctl(s.name, s.value); err != nil {
				return err
			}
		}
		return disableIPv6()
	})
}

// disableIPv6 does it for links of the calling thread's namespace that are to come.
func disableIPv6() error {
	for _, name := range []string{"net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/default/disable_ipv6"} {
		// A kernel without IPv6 has no such file.
		if err := writeSysctl(name, "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// writeSysctl sets a value of the calling thread's namespace.
func writeSysctl(name, value string) error {
	f, err := os.OpenFile(sysctlDir+name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

// writeRules writes the slot's own table anew.
func (m *maker) writeRules() error {
	return batch(m.path(), func(conn *nftables.Conn) error {
		t := newTable(conn, slotTable)
		closed, err := t.closedSet(m.cfg.Range)
		if err != nil {
			return err
		}
		m.writeChains(t, closed)
		return nil
	})
}

func (m *maker) writeChains(t table, closed *nftables.Set) {
	fromGuest, toGuest := linkIs(expr.MetaKeyIIFNAME, TAP), linkIs(expr.MetaKeyOIFNAME, TAP)
	fromHost, toHost := linkIs(expr.MetaKeyIIFNAME, uplink), linkIs(expr.MetaKeyOIFNAME, uplink)

	pre := t.base("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, nftables.ChainPolicyAccept)
	t.rule(pre, "not IPv4", fromGuest, notIPv4(), drop())
	t.rule(pre, "spoofed MAC", fromGuest, etherSource(expr.CmpOpNeq, mac(GuestMAC)), drop())
	t.rule(pre, "spoofed address", fromGuest, ipSourceIs(expr.CmpOpNeq, netip.MustParseAddr(GuestAddress)), drop())

	// What is offered to the guest at the gateway's address. Before the answers
	// to the agent: else who asked once could ask without a limit.
	offered := t.sub("offered")
	t.rule(offered, "time", ipDestinationIs(netip.MustParseAddr(NTPAddress)), toUDPPort(ntp.Port), atMost(ntpRate, ntpBurst), accept())
	t.rule(offered, "too many questions for the time", toUDPPort(ntp.Port), drop())
	input := t.base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	t.rule(input, "offered", fromGuest, jump(offered))
	t.rule(input, "answers to the agent", fromGuest, answers(), accept())
	t.rule(input, "to the gateway", drop())

	// Where a sandbox's own policy will go: after what is closed to all.
	egress := t.sub("egress")
	t.rule(egress, "to a closed network", ipDestinationIn(closed), drop())
	t.rule(egress, "without a connection", connState(expr.CtStateBitINVALID), drop())
	t.rule(egress, "too many connections", connState(expr.CtStateBitNEW), connectionsOver(m.cfg.Connections), drop())
	t.rule(egress, "out", accept())

	forward := t.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	t.rule(forward, "answers to the guest", fromHost, toGuest, answers(), accept())
	t.rule(forward, "egress", fromGuest, toHost, jump(egress))
	t.rule(forward, "unasked", drop())

	post := t.base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	t.rule(post, "out", toHost, masquerade())
}

// addVeth makes the pair, with one end in the namespace, and sets up the host's.
func (m *maker) addVeth() error {
	ns, err := netns.Open(m.path())
	if err != nil {
		return err
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = m.cfg.name(m.index)
	veth := netlink.NewVeth(attrs)
	veth.PeerName = uplink
	veth.PeerNamespace = netlink.NsFd(ns.Fd())
	if err := m.host.nl.LinkAdd(veth); err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: ipNet(m.cfg.hostAddr(m.index), 31)}
	return errors.Join(m.host.nl.AddrAdd(veth, addr), m.host.nl.LinkSetUp(veth))
}

func (m *maker) setUplink() error {
	nl, err := m.inside()
	if err != nil {
		return err
	}
	link, err := nl.LinkByName(uplink)
	if err != nil {
		return err
	}
	if err := nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(m.cfg.slotAddr(m.index), 31)}); err != nil {
		return err
	}
	if err := nl.LinkSetUp(link); err != nil {
		return err
	}
	return nl.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: m.cfg.hostAddr(m.index).AsSlice()})
}

// addTAP makes a TAP that stays when nobody has it open.
func (m *maker) addTAP() error {
	return netns.Do(m.path(), func() error {
		tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("kernel module tun: %w", err)
		}
		defer tun.Close()
		fd := int(tun.Fd())
		ifr, err := unix.NewIfreq(TAP)
		if err != nil {
			return err
		}
		// The flags of both VMMs; one that attaches with others is refused.
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return fmt.Errorf("TUNSETIFF: %w", err)
		}
		if m.cfg.FirstUID != 0 {
			if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(m.cfg.FirstUID)+m.index); err != nil {
				return fmt.Errorf("TUNSETOWNER: %w", err)
			}
		}
		return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
	})
}

// setTAP gives the TAP its addresses and tells it the guest's, so that nothing
// waits for ARP after a restore.
func (m *maker) setTAP() error {
	nl, err := m.inside()
	if err != nil {
		return err
	}
	tap, err := nl.LinkByName(TAP)
	if err != nil {
		return err
	}
	if err := nl.LinkSetHardwareAddr(tap, mac(gatewayMAC)); err != nil {
		return err
	}
	if err := nl.AddrAdd(tap, &netlink.Addr{IPNet: ipNet(netip.MustParseAddr(GatewayAddress), linkBits)}); err != nil {
		return err
	}
	if err := nl.LinkSetUp(tap); err != nil {
		return err
	}
	return nl.NeighSet(&netlink.Neigh{
		LinkIndex:    tap.Attrs().Index,
		State:        netlink.NUD_PERMANENT,
		IP:           netip.MustParseAddr(GuestAddress).AsSlice(),
		HardwareAddr: mac(GuestMAC),
	})
}

// serveTime offers the time to the guest.
func (m *maker) serveTime() error { return m.host.clocks.serve(m.index, m.path()) }

// writeID makes the slot whole: Adopt knows it by its id.
func (m *maker) writeID() error {
	link, err := m.host.nl.LinkByName(m.cfg.name(m.index))
	if err != nil {
		return err
	}
	return m.host.nl.LinkSetAlias(link, aliasPrefix+m.id)
}

// errInUse says that a released slot is not free.
var errInUse = errors.New("a process still has the TAP open")

// checkUnused fails while a VMM is attached to the TAP: it has a carrier then.
func (m *maker) checkUnused() error {
	nl, err := m.inside()
	if err != nil {
		return err
	}
	tap, err := nl.LinkByName(TAP)
	if err != nil {
		return err
	}
	if tap.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 {
		return errInUse
	}
	return nil
}

func (m *maker) deleteTAP() error {
	nl, err := m.inside()
	if err != nil {
		return err
	}
	tap, err := nl.LinkByName(TAP)
	if err != nil {
		return err
	}
	return nl.LinkDel(tap)
}

func (m *maker) flushConnections() error {
	nl, err := m.inside()
	if err != nil {
		return err
	}
	return nl.ConntrackTableFlush(netlink.ConntrackTable)
}
