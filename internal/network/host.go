package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/netns"
)

// host is the host's side of all slots: one nftables table, and a link for
// each slot.
type host struct {
	cfg       Config
	nl        *netlink.Handle // sockets in cfg.HostNamespace
	clocks    *clocks
	byName    *byName
	observers *observers
}

// families are the netlink families in use: for links and addresses, and for connections.
var families = []int{unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER}

// openNetlink returns sockets in the namespace at path, which the caller closes.
// (The library's NewHandleAt ignores an error of the switch back to the thread's
// namespace.)
func openNetlink(path string) (nl *netlink.Handle, err error) {
	err = netns.Do(path, func() (err error) {
		nl, err = netlink.NewHandle(families...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netlink in %s: %w", path, err)
	}
	return nl, nil
}

// dump repeats a listing that was interrupted by a change (NLM_F_DUMP_INTR).
func dump[T any](list func() (T, error)) (T, error) {
	const limit = 20
	for range limit {
		if all, err := list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return list()
}

func isNoLink(err error) bool {
	_, ok := errors.AsType[netlink.LinkNotFoundError](err)
	return ok
}

// slotLink is the host's end of a slot's veth pair, as found in the kernel.
type slotLink struct {
	index int    // the slot's
	id    string // empty when the slot is incomplete
}

// slotLinks lists the links named after the prefix, by the kernel's link index.
func (h *host) slotLinks() (map[int]slotLink, error) {
	links, err := dump(h.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	found := map[int]slotLink{}
	for _, link := range links {
		if index, ok := h.cfg.indexOf(link.Attrs().Name); ok {
			id, _ := strings.CutPrefix(link.Attrs().Alias, aliasPrefix)
			found[link.Attrs().Index] = slotLink{index: index, id: id}
		}
	}
	return found, nil
}

// leftovers returns the ids of the slots of which any part is in the kernel, by
// index. The id is empty, and the slot cannot be adopted, if it is incomplete or
// of another range.
func (h *host) leftovers(links map[int]slotLink) (map[int]string, error) {
	names, err := netns.List(h.cfg.links())
	if err != nil {
		return nil, err
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return h.nl.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	found := map[int]string{}
	for _, name := range names {
		if index, ok := h.cfg.indexOf(name); ok {
			found[index] = ""
		}
	}
	for kernelIndex, link := range links {
		_, hasNamespace := found[link.index]
		found[link.index] = ""
		if hasNamespace && link.index < h.cfg.capacity() && hasAddr(addrs, kernelIndex, h.cfg.hostAddr(link.index)) {
			found[link.index] = link.id
		}
	}
	return found, nil
}

func hasAddr(addrs []netlink.Addr, link int, addr netip.Addr) bool {
	return slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
		return a.LinkIndex == link && a.IP.Equal(addr.AsSlice())
	})
}

// checkRange returns a FailedPrecondition error when an address or a route of
// the host is in the range, except default routes and those of slots.
func (h *host) checkRange(ours map[int]slotLink) error {
	routes, err := dump(func() ([]netlink.Route, error) {
		return h.nl.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	var others []netlink.Route
	for _, r := range routes {
		if _, own := ours[r.LinkIndex]; !own {
			others = append(others, r)
		}
	}
	route, ok := clash(h.cfg.Range, others)
	if !ok {
		return nil
	}
	return wrenn.Errorf(wrenn.FailedPrecondition,
		"the network range %s of the sandboxes clashes with the route %s of this host: set the range to a free one, such as %s",
		h.cfg.Range, h.describe(route), freeRange(others))
}

// clash returns a route into the range. Default routes lead everywhere and do
// not count, nor their two halves, which VPNs set.
func clash(slots netip.Prefix, routes []netlink.Route) (netlink.Route, bool) {
	for _, r := range routes {
		if dst, ok := destination(r); ok && dst.Bits() > 1 && dst.Overlaps(slots) {
			return r, true
		}
	}
	return netlink.Route{}, false
}

func destination(r netlink.Route) (netip.Prefix, bool) {
	if r.Dst == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(r.Dst.IP)
	ones, _ := r.Dst.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones), ok
}

// freeRange proposes a private /16 into which no route leads.
func freeRange(routes []netlink.Route) string {
	for _, block := range []struct{ first, last, lowest byte }{{10, 255, 0}, {172, 31, 16}} {
		for second := int(block.last); second >= int(block.lowest); second-- {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{block.first, byte(second), 0, 0}), 16)
			if _, taken := clash(p, routes); !taken {
				return p.String()
			}
		}
	}
	return "192.168.0.0/24"
}

func (h *host) describe(r netlink.Route) string {
	dst, _ := destination(r)
	text := dst.String()
	if dst.IsSingleIP() {
		text = dst.Addr().String()
	}
	if link, err := h.nl.LinkByIndex(r.LinkIndex); err == nil {
		text += " dev " + link.Attrs().Name
	}
	return text
}

// enableForwarding lets the host route packets. The setting is the whole host's
// and other programs may rely on it, so it is never switched off.
func (h *host) enableForwarding(ctx context.Context) error {
	const name = "net/ipv4/ip_forward"
	return netns.Do(h.cfg.HostNamespace, func() error {
		value, err := os.ReadFile(sysctlDir + name)
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(value)) != "0" {
			return nil
		}
		h.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "switched IPv4 forwarding of the host on", slog.String("sysctl", name))
		return writeSysctl(name, "1")
	})
}

// warnOfOthers logs which other tables drop forwarded packets by default: the
// slots' own table cannot overrule them.
func (h *host) warnOfOthers(ctx context.Context) error {
	return batch(h.cfg.HostNamespace, func(conn *nftables.Conn) error {
		chains, err := conn.ListChains()
		for _, c := range chains {
			if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop ||
				c.Table.Family == nftables.TableFamilyIPv6 || c.Table.Family == nftables.TableFamilyBridge {
				continue
			}
			h.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "a firewall drops forwarded packets by default; allow forwarding for the sandboxes' links, or sandboxes reach no network",
				slog.String("table", c.Table.Name), slog.String("chain", c.Name), slog.String("links", h.cfg.links()+"*"))
		}
		return err
	})
}

// slotSet holds link and address of every slot that may send.
func (h *host) slotSet() *nftables.Set {
	return &nftables.Set{
		Table:         &nftables.Table{Family: nftables.TableFamilyINet, Name: h.cfg.Prefix},
		ID:            slotSetID,
		Name:          "slots",
		KeyType:       nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr),
		Concatenation: true,
	}
}

func (h *host) slotElement(index int) []nftables.SetElement {
	key := make([]byte, unix.IFNAMSIZ, unix.IFNAMSIZ+4)
	copy(key, h.cfg.name(index))
	return []nftables.SetElement{{Key: append(key, h.cfg.slotAddr(index).AsSlice()...)}}
}

// writeTable replaces the host's table and admits the given slots. Its rules
// apply to all links named after the prefix, admitted or not.
func (h *host) writeTable(ctx context.Context, admitted []int) error {
	err := h.writeTableWith(admitted, table.shortTimeWait)
	if err != nil {
		h.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "the kernel cannot shorten TIME_WAIT for sandboxes (nft_ct timeouts): they may fill the host's connection table", slog.Any("err", err))
		err = h.writeTableWith(admitted, func(table) []expr.Any { return nil })
	}
	if err != nil {
		return fmt.Errorf("write nftables table %s of the host: %w", h.cfg.Prefix, err)
	}
	return nil
}

func (h *host) writeTableWith(admitted []int, timeWait func(table) []expr.Any) error {
	return batch(h.cfg.HostNamespace, func(conn *nftables.Conn) error {
		t := newTable(conn, h.cfg.Prefix)
		slots := h.slotSet()
		if err := conn.AddSet(slots, nil); err != nil {
			return err
		}
		const elementsPerMessage = 500 // a netlink attribute ends at 64 KiB
		for part := range slices.Chunk(admitted, elementsPerMessage) {
			var elements []nftables.SetElement
			for _, index := range part {
				elements = append(elements, h.slotElement(index)...)
			}
			if err := conn.SetAddElements(slots, elements); err != nil {
				return err
			}
		}
		closed, err := t.closedSet(h.cfg.closed())
		if err != nil {
			return err
		}
		h.writeRules(t, slots, closed, timeWait(t))
		return nil
	})
}

// writeRules adds the host's chains. Accepting here does not overrule other
// tables: a packet passes if all of them let it pass.
func (h *host) writeRules(t table, slots, closed *nftables.Set, timeWait []expr.Any) {
	fromSlot := linkBegins(expr.MetaKeyIIFNAME, expr.CmpOpEq, h.cfg.links())
	toSlot := linkBegins(expr.MetaKeyOIFNAME, expr.CmpOpEq, h.cfg.links())

	// This hook comes before any other table can rewrite the destination to a
	// service of the host.
	pre := t.base("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, nftables.ChainPolicyAccept)
	t.rule(pre, "not IPv4", fromSlot, notIPv4(), drop())
	t.rule(pre, "spoofed", fromSlot, notFromSlot(slots), drop())
	t.rule(pre, "to the host", fromSlot, notUnicast(), drop())

	input := t.base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	t.rule(input, "rewritten to the host", fromSlot, drop())

	output := t.base("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	t.rule(output, "ICMP errors of the host", toSlot, answers(), accept())
	t.rule(output, "from the host", toSlot, drop())

	forward := t.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	t.rule(forward, "between slots", fromSlot, toSlot, drop())
	t.rule(forward, "to a closed network", fromSlot, ipIn(ipDestination, closed), drop())
	t.rule(forward, "neither TCP nor UDP nor ICMP", fromSlot, otherProtocol(), drop())
	if len(timeWait) > 0 {
		t.rule(forward, "short TIME_WAIT", fromSlot, protocolIs(expr.CmpOpEq, unix.IPPROTO_TCP), firstPacket(), timeWait)
	}
	t.rule(forward, "answers", toSlot, answers(), accept())
	t.rule(forward, "unasked", toSlot, drop())

	post := t.base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	t.rule(post, "out", ipSourceIn(h.cfg.Range), linkBegins(expr.MetaKeyOIFNAME, expr.CmpOpNeq, h.cfg.links()), masquerade())
}

// deleteTable removes the host's table, if it exists.
func (h *host) deleteTable() error {
	err := batch(h.cfg.HostNamespace, func(conn *nftables.Conn) error {
		t := &nftables.Table{Family: nftables.TableFamilyINet, Name: h.cfg.Prefix}
		conn.AddTable(t)
		conn.DelTable(t)
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete nftables table %s of the host: %w", h.cfg.Prefix, err)
	}
	return nil
}

// admit lets slot index send through the host, by the link of its name.
func (h *host) admit(index int) error {
	return batch(h.cfg.HostNamespace, func(conn *nftables.Conn) error {
		return conn.SetAddElements(h.slotSet(), h.slotElement(index))
	})
}

// expel reverts admit; a slot that was not admitted is no error.
func (h *host) expel(index int) error {
	err := batch(h.cfg.HostNamespace, func(conn *nftables.Conn) error {
		return conn.SetDeleteElements(h.slotSet(), h.slotElement(index))
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// removeLink deletes both ends of slot index's veth pair, if it exists.
func (h *host) removeLink(index int) error {
	link, err := h.nl.LinkByName(h.cfg.name(index))
	if isNoLink(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := h.nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}
