package network

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn.dev"
)

// maxMbit fits the 32 bits that the kernel has for the rate in bytes.
const maxMbit = 30_000

// The bounds of Config.PacketsPerSecond. With fewer the calls of a sandbox's API, whose
// packets count, would fail.
const minPackets, maxPackets = 100, 10_000_000

const (
	// burstDivisor is the part of a second whose bytes may be sent at once, and queueDivisor
	// that whose bytes may wait: more are dropped, from which senders learn the rate.
	burstDivisor, queueDivisor = 50, 10
	// leastBurst fits a packet that the kernel has merged of many.
	leastBurst = 128 << 10
)

// writePacketRate adds the rules that drop what exceeds the rate of packets, before the kernel
// does anything else with them.
func (m *maker) writePacketRate(t table, pre *nftables.Chain) {
	n := uint64(m.cfg.PacketsPerSecond)
	if n == 0 {
		return
	}
	for _, link := range []string{TAP, uplink} {
		t.rule(pre, "too many packets", linkIs(expr.MetaKeyIIFNAME, link), faster(n, uint32(n)), drop())
	}
}

// setRate bounds the rate at both ends of the veth pair, each of which sends in one
// direction, or removes the bound of an earlier configuration.
func (m *maker) setRate() error {
	outer, err := m.host.nl.LinkByName(m.cfg.name(m.index))
	if err != nil {
		return err
	}
	ns, inner, err := m.link(uplink)
	if err != nil {
		return err
	}
	return errors.Join(m.shape(m.host.nl, outer), m.shape(ns, inner))
}

func (m *maker) shape(nl *netlink.Handle, link netlink.Link) error {
	attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	if m.cfg.MbitPerSecond == 0 {
		err := nl.QdiscDel(&netlink.Tbf{QdiscAttrs: attrs})
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) { // there is none
			return nil
		}
		return err
	}
	bytes := m.cfg.MbitPerSecond * 1_000_000 / 8
	burst := max(bytes/burstDivisor, leastBurst)
	err := nl.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: attrs, Rate: uint64(bytes), Buffer: netlink.Xmittime(uint64(bytes), uint32(burst)), Limit: uint32(burst + bytes/queueDivisor),
	})
	if errors.Is(err, unix.ENOENT) {
		return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "network.mbit_per_second needs the kernel module sch_tbf, which this host does not have", Err: err}
	}
	if err != nil {
		return fmt.Errorf("bound the rate of %s: %w", link.Attrs().Name, err)
	}
	return nil
}
