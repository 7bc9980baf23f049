package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"wrenn.dev/internal/netns"
)

// Names of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	ctDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE

	ctaTupleOrig       = 1
	ctaFilter          = 25
	ctaTupleIP         = 1 // in a tuple
	ctaIPv4Src         = 1 // in that
	ctaFilterOrigFlags = 1 // in a filter
	ctaFilterSource    = 1 << 0

	nfGenMsgLen = 4 // struct nfgenmsg, in front of the attributes
)

// forget deletes slot index's connections from the host's table: a machine that
// is gone closes none of them, and an established one would stay for five days
// (nf_conntrack_tcp_timeout_established). Linux filters them since 5.8: that took
// 30 ms among 60,000 connections, against 400 ms to read them all.
func (h *host) forget(index int) error {
	source := h.cfg.slotAddr(index)
	err := netns.Do(h.cfg.HostNamespace, func() error {
		conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }() // every request was acknowledged
		found, err := connectionsFrom(conn, source)
		if err != nil {
			return err
		}
		for _, data := range found {
			_, err := conn.Execute(netlink.Message{
				Header: netlink.Header{Type: ctDelete, Flags: netlink.Request | netlink.Acknowledge},
				Data:   data,
			})
			if err != nil && !errors.Is(err, unix.ENOENT) { // it may have ended by itself
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete connections from %s: %w", source, err)
	}
	return nil
}

// connectionsFrom returns the connections that source opened, in the form that
// ctDelete takes.
func connectionsFrom(conn *netlink.Conn, source netip.Addr) ([][]byte, error) {
	attrs := netlink.NewAttributeEncoder()
	attrs.Nested(ctaTupleOrig, func(tuple *netlink.AttributeEncoder) error {
		tuple.Nested(ctaTupleIP, func(ip *netlink.AttributeEncoder) error {
			ip.Bytes(ctaIPv4Src, source.AsSlice())
			return nil
		})
		return nil
	})
	attrs.Nested(ctaFilter, func(filter *netlink.AttributeEncoder) error {
		filter.Uint32(ctaFilterOrigFlags, ctaFilterSource)
		return nil
	})
	data, err := attrs.Encode()
	if err != nil {
		return nil, err
	}
	messages, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: ctGet, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}, data...),
	})
	if err != nil {
		return nil, err
	}
	var found [][]byte
	for _, m := range messages {
		opener, err := openerOf(m.Data)
		if err != nil {
			return nil, err
		}
		if opener == source { // an old kernel ignores the filter
			found = append(found, m.Data)
		}
	}
	return found, nil
}

// openerOf returns the source address of a connection's first packet.
func openerOf(data []byte) (opener netip.Addr, err error) {
	if len(data) < nfGenMsgLen {
		return opener, errors.New("short conntrack message")
	}
	attrs, err := netlink.NewAttributeDecoder(data[nfGenMsgLen:])
	if err != nil {
		return opener, err
	}
	for attrs.Next() {
		if attrs.Type() != ctaTupleOrig {
			continue
		}
		attrs.Nested(func(tuple *netlink.AttributeDecoder) error {
			for tuple.Next() {
				if tuple.Type() != ctaTupleIP {
					continue
				}
				tuple.Nested(func(ip *netlink.AttributeDecoder) error {
					for ip.Next() {
						if ip.Type() == ctaIPv4Src {
							opener, _ = netip.AddrFromSlice(ip.Bytes())
						}
					}
					return nil
				})
			}
			return nil
		})
	}
	return opener, attrs.Err()
}
