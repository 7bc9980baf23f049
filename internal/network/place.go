package network

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/network/ntp"
	"wrenn.dev/internal/rollback"
)

const (
	// uplink is the slot's end of the veth pair.
	uplink = "uplink"
	// slotTable is the nftables table inside a slot.
	slotTable = "wrenn"
	// aliasPrefix begins the alias of the host's end (ifalias), which holds the id of a complete slot.
	aliasPrefix = "wrenn slot "
	sysctlDir   = "/proc/sys/"
)

// makeSteps make a slot out of nothing. Rules come before links. Admission, the
// right to send, comes last but one; the id, which marks the slot as complete,
// comes last. No step has a way back: remove takes apart an incomplete slot.
func makeSteps(m *maker) []rollback.Step {
	return []rollback.Step{
		step("namespace", m.createNamespace),
		step("sysctls", m.writeSysctls),
		step("rules", m.writeRules),
		step("veth", m.addVeth),
		step("uplink", m.setUplink),
		step("rate", m.setRate),
		step("tap", m.addTAP),
		step("gateway", m.setTAP),
		step("clock", m.serveTime),
		step("admission", func() error { return m.host.admit(m.index) }),
		step("id", m.writeID),
	}
}

// recycleSteps make a used slot as good as new. The TAP is replaced, because
// offloads and header sizes that a VMM sets outlive the VMM.
func recycleSteps(m *maker) []rollback.Step {
	return []rollback.Step{
		step("unused", m.checkUnused),
		step("old tap", m.deleteTAP),
		step("rules", m.writeRules),
		step("rate", m.setRate),
		step("connections", m.flushConnections),
		step("host connections", func() error { return m.host.forget(m.index) }),
		step("tap", m.addTAP),
		step("gateway", m.setTAP),
		step("clock", m.serveTime),
		step("id", m.writeID),
	}
}

// step is a short sequence of system calls, which ignores the context.
func step(name string, do func() error) rollback.Step {
	return rollback.Step{Name: name, Do: func(context.Context) error { return do() }}
}

// maker holds what the steps share.
type maker struct {
	cfg   Config
	host  *host
	index int
	id    string          // the slot's new id
	ns    *netlink.Handle // sockets in the slot's namespace; nil until the first use
}

// run makes or recycles slot index and returns its new id. When run fails the
// caller must remove the slot.
func (h *host) run(ctx context.Context, index int, steps func(*maker) []rollback.Step, hook rollback.Hook) (id string, err error) {
	m := &maker{cfg: h.cfg, host: h, index: index, id: rand.Text()}
	defer m.close()
	if err := (rollback.Runner{Hook: hook}).Run(ctx, steps(m)...); err != nil {
		return "", fmt.Errorf("slot %s: %w", h.cfg.name(index), err)
	}
	return m.id, nil
}

// remove removes all parts of slot index that exist; none is no error. It goes
// on after errors.
func (h *host) remove(index int, hook rollback.Hook) error {
	h.clocks.stop(index) // a socket would keep the namespace alive
	h.byName.stop(index)
	h.observers.stop(index)
	errs := []error{h.expel(index), h.removeLink(index), netns.Delete(h.cfg.name(index))}
	if index < h.cfg.capacity() { // else the slot is of another range
		errs = append(errs, h.forget(index))
	}
	errs = append(errs, hook.At("remove"))
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

// link returns a link of the namespace, and the sockets to change it with.
func (m *maker) link(name string) (*netlink.Handle, netlink.Link, error) {
	nl, err := m.inside()
	if err != nil {
		return nil, nil, err
	}
	link, err := nl.LinkByName(name)
	return nl, link, err
}

// bringUp gives a link its address and sets it up.
func bringUp(nl *netlink.Handle, link netlink.Link, addr netip.Addr, bits int) error {
	if err := nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr, bits)}); err != nil {
		return err
	}
	return nl.LinkSetUp(link)
}

func (m *maker) createNamespace() error {
	_, err := netns.Create(m.cfg.name(m.index))
	return err
}

// writeSysctls makes a router of the namespace. A new namespace has copies of the
// host's values for IPv4, so every value that matters is set.
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

// disableIPv6 disables IPv6 on all future links of the calling thread's namespace.
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

// writeRules replaces the slot's own table with one that allows all that is not closed.
func (m *maker) writeRules() error { return m.writeRulesWith(wrenn.NetworkPolicy{}) }

// writeRulesWith is writeRules with a sandbox's policy.
func (m *maker) writeRulesWith(policy wrenn.NetworkPolicy) error {
	err := batch(m.path(), func(conn *nftables.Conn) error {
		t := newTable(conn, slotTable)
		closed, err := t.closedSet(m.cfg.closed())
		if err != nil {
			return err
		}
		out, in, err := t.addPolicy(policy, closed)
		if err != nil {
			return err
		}
		m.writeChains(t, closed, out, in)
		return nil
	})
	if err != nil {
		return err
	}
	// The first rule that needs the kernel's module has loaded it, and so made the file.
	return netns.Do(m.path(), func() error { return writeSysctl(timeWaitSysctl, strconv.Itoa(closingSeconds)) })
}

func (m *maker) writeChains(t table, closed *nftables.Set, policyOut, policyIn *nftables.Chain) {
	fromGuest, toGuest := linkIs(expr.MetaKeyIIFNAME, TAP), linkIs(expr.MetaKeyOIFNAME, TAP)
	toHost := linkIs(expr.MetaKeyOIFNAME, uplink)

	pre := t.base("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, nftables.ChainPolicyAccept)
	m.writePacketRate(t, pre)
	t.rule(pre, "not IPv4", fromGuest, notIPv4(), drop())
	t.rule(pre, "spoofed MAC", fromGuest, etherSource(expr.CmpOpNeq, mac(GuestMAC)), drop())
	t.rule(pre, "spoofed address", fromGuest, ipSourceIs(expr.CmpOpNeq, netip.MustParseAddr(GuestAddress)), drop())

	// The services at the gateway's address. They come before the answers to the
	// agent: else a guest that has an open flow would bypass the rate limit.
	offered := t.sub("offered")
	t.rule(offered, "time", ipDestinationIs(netip.MustParseAddr(NTPAddress)), toUDPPort(ntp.Port), atMost(ntpRate, ntpBurst), accept())
	t.rule(offered, "too many questions for the time", toUDPPort(ntp.Port), drop())
	t.rule(offered, "volumes", ipDestinationIs(netip.MustParseAddr(GatewayAddress)), toTCPPort(VolumePort), accept())
	limits := m.writeLimits(t)
	t.writeByName(offered, limits)
	input := t.base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	t.rule(input, "offered", fromGuest, jump(offered))
	t.rule(input, "answers to the agent", fromGuest, answers(), accept())
	t.rule(input, "answers to connections by name", linkIs(expr.MetaKeyIIFNAME, uplink), established(), accept())
	t.rule(input, "to the gateway", drop())

	m.writeForward(t, closed, policyOut, policyIn, limits)

	// The agent's connections to the guest, and what the slot's own stack answers it.
	output := t.base("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	t.rule(output, "to the guest", toGuest, ipDestinationIs(netip.MustParseAddr(GuestAddress)), accept())
	t.rule(output, "to a closed network", toHost, ipIn(ipDestination, closed), drop())
	t.rule(output, "connections by name", toHost, marked(byNameMark), accept())
	t.rule(output, "from the slot", drop())

	post := t.base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	t.rule(post, "out", toHost, masquerade())
}

// writeLimits adds the chain that drops what is more than the slot's share of the
// connection table. It is one chain, so that all that the guest opens counts.
func (m *maker) writeLimits(t table) *nftables.Chain {
	limits := t.sub("limits")
	rapid, many := t.sub("rapid"), t.sub("many")
	t.rule(rapid, "log: too many new connections", logged(logRapid))
	t.rule(rapid, "too many new connections", drop())
	t.rule(many, "log: too many connections", logged(logMany))
	t.rule(many, "too many connections", drop())
	t.rule(limits, "rate of new connections", firstPacket(), faster(m.host.cfg.share.perSecond, m.host.cfg.share.burst), jump(rapid))
	t.rule(limits, "open connections", connState(expr.CtStateBitNEW), connectionsOver(m.host.cfg.share.open), jump(many))
	return limits
}

// writeForward adds the rules for what passes between the guest and the host.
func (m *maker) writeForward(t table, closed *nftables.Set, policyOut, policyIn, limits *nftables.Chain) {
	egress := t.sub("egress")
	t.deny(egress, "to a closed network", logClosed, ipIn(ipDestination, closed)...)
	t.deny(egress, "neither TCP nor UDP nor ICMP", logProtocol, otherProtocol()...)
	t.rule(egress, "without a connection", connState(expr.CtStateBitINVALID), drop())
	t.rule(egress, "policy", jump(policyOut))
	t.rule(egress, "limits", jump(limits))
	t.rule(egress, "log: new connections", firstPacket(), logged(logAllowed))
	t.rule(egress, "out", accept())

	fromGuest, toGuest := linkIs(expr.MetaKeyIIFNAME, TAP), linkIs(expr.MetaKeyOIFNAME, TAP)
	fromHost, toHost := linkIs(expr.MetaKeyIIFNAME, uplink), linkIs(expr.MetaKeyOIFNAME, uplink)
	forward := t.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	t.rule(forward, "policy", fromHost, toGuest, established(), jump(policyIn)) // not for ICMP errors: routers send them
	t.rule(forward, "answers to the guest", fromHost, toGuest, answers(), accept())
	t.rule(forward, "egress", fromGuest, toHost, jump(egress))
	t.rule(forward, "unasked", drop())
}

// addVeth makes the pair, with one end in the namespace, and sets up the host's end.
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
	nl, link, err := m.link(uplink)
	if err != nil {
		return err
	}
	if err := bringUp(nl, link, m.cfg.slotAddr(m.index), 31); err != nil {
		return err
	}
	return nl.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: m.cfg.hostAddr(m.index).AsSlice()})
}

// addTAP makes a TAP that stays when no process has it open.
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
		// Both VMMs use these flags; the kernel refuses to attach with others.
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

// setTAP gives the TAP its addresses and a permanent neighbor entry for the
// guest, so that nothing waits for ARP after a restore.
func (m *maker) setTAP() error {
	nl, tap, err := m.link(TAP)
	if err != nil {
		return err
	}
	if err := nl.LinkSetHardwareAddr(tap, mac(gatewayMAC)); err != nil {
		return err
	}
	if err := bringUp(nl, tap, netip.MustParseAddr(GatewayAddress), linkBits); err != nil {
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

// writeID completes the slot: Adopt finds it by its id.
func (m *maker) writeID() error {
	link, err := m.host.nl.LinkByName(m.cfg.name(m.index))
	if err != nil {
		return err
	}
	return m.host.nl.LinkSetAlias(link, aliasPrefix+m.id)
}

// errInUse means that a released slot is not free.
var errInUse = errors.New("a process still has the TAP open")

// checkUnused fails while a VMM is attached to the TAP, which then has a carrier.
func (m *maker) checkUnused() error {
	_, tap, err := m.link(TAP)
	if err != nil {
		return err
	}
	if tap.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 {
		return errInUse
	}
	return nil
}

func (m *maker) deleteTAP() error {
	nl, tap, err := m.link(TAP)
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
