package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/netns"
)

// logGroup is the number under which the kernel logs packets of a slot, in its namespace.
const logGroup = 5

// Packets of one kind that are logged in a second, and at once: a guest that floods
// costs the agent no more.
const (
	logRate  = 10
	logBurst = 100
)

// The kinds of logged packets, which are the prefixes of the kernel's messages.
const (
	logAllowed  = "allowed"
	logClosed   = "closed"
	logProtocol = "protocol"
	logPolicy   = "policy"
	logRapid    = "rapid"
	logMany     = "many"
)

// reasons say why a packet was dropped.
var reasons = map[string]string{
	logClosed:   "this address is closed to all sandboxes",
	logProtocol: "only TCP, UDP and ICMP may leave",
	logPolicy:   "the network policy does not allow this address",
	logRapid:    "too many new connections in a short time",
	logMany:     "too many open connections",
}

// logged logs packets and continues with the next rule.
func logged(kind string) []expr.Any {
	const headers = 64 // bytes: as long as an IPv4 header can be, and the ports
	return append(atMost(logRate, logBurst), &expr.Log{
		Group: logGroup, Snaplen: headers, QThreshold: 1, Data: []byte(kind),
		Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN | 1<<unix.NFTA_LOG_QTHRESHOLD | 1<<unix.NFTA_LOG_PREFIX,
	})
}

// deny appends a rule that logs what matches, and one that drops it.
func (t table) deny(chain *nftables.Chain, comment, kind string, match ...expr.Any) {
	t.rule(chain, "log: "+comment, match, logged(kind))
	t.rule(chain, comment, match, drop())
}

// observers read what the kernel logs of the guests in slots: with a socket inside
// each slot's namespace, and a goroutine that sleeps until a packet is logged.
type observers struct {
	log  *slog.Logger
	work sync.WaitGroup

	mu   sync.Mutex            // guards open
	open map[int]*netlink.Conn // by the slot's index
}

func newObservers(log *slog.Logger) *observers {
	return &observers{log: log, open: map[int]*netlink.Conn{}}
}

// observe gives record what happens in the namespace at path, of slot index, until
// stop. It replaces the slot's earlier observer.
func (o *observers) observe(index int, path string, record func(wrenn.EgressEvent)) error {
	o.stop(index)
	conn, err := listenNFLog(path)
	if err != nil {
		return fmt.Errorf("read what the kernel logs: %w", err)
	}
	o.mu.Lock()
	o.open[index] = conn
	o.mu.Unlock()
	o.work.Go(func() {
		if err := recordAll(conn, record); o.drop(index, conn) {
			_ = conn.Close() // it is of no use now
			o.log.Warn("egress log of network slot stopped", slog.Int("slot", index), slog.Any("err", err))
		}
	})
	return nil
}

// drop forgets an observer whose socket failed; false for one that was stopped.
func (o *observers) drop(index int, conn *netlink.Conn) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open[index] != conn {
		return false
	}
	delete(o.open, index)
	return true
}

// stop ends the observer of a slot and closes its socket.
func (o *observers) stop(index int) {
	o.mu.Lock()
	conn := o.open[index]
	delete(o.open, index)
	o.mu.Unlock()
	if conn != nil {
		_ = conn.Close() // it is only read
	}
}

// close ends all observers and returns when their goroutines have ended.
func (o *observers) close() {
	o.mu.Lock()
	for _, conn := range o.open {
		_ = conn.Close() // as in stop
	}
	clear(o.open)
	o.mu.Unlock()
	o.work.Wait()
}

// Numbers of linux/netfilter/nfnetlink_log.h.
const (
	nflogPacket = unix.NFNL_SUBSYS_ULOG << 8   // NFULNL_MSG_PACKET
	nflogConfig = unix.NFNL_SUBSYS_ULOG<<8 | 1 // NFULNL_MSG_CONFIG

	nfulaCfgCmd      = 1
	nfulaCfgMode     = 2
	nfulnlCmdBind    = 1
	nfulnlCopyPacket = 2
	nfulaPayload     = 9
	nfulaPrefix      = 10
)

// listenNFLog opens a socket for the messages of logGroup.
func listenNFLog(path string) (conn *netlink.Conn, err error) {
	err = netns.Do(path, func() (err error) {
		conn, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	const headers = 64
	bind := netlink.NewAttributeEncoder()
	bind.Uint8(nfulaCfgCmd, nfulnlCmdBind)
	mode := netlink.NewAttributeEncoder()
	mode.Bytes(nfulaCfgMode, append(binary.BigEndian.AppendUint32(nil, headers), nfulnlCopyPacket, 0))
	for _, attrs := range []*netlink.AttributeEncoder{bind, mode} {
		data, err := attrs.Encode()
		if err == nil {
			_, err = conn.Execute(netlink.Message{
				Header: netlink.Header{Type: nflogConfig, Flags: netlink.Request | netlink.Acknowledge},
				Data:   append([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, logGroup}, data...),
			})
		}
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	return conn, nil
}

// recordAll records what the kernel logs until conn is closed or fails.
func recordAll(conn *netlink.Conn, record func(wrenn.EgressEvent)) error {
	for {
		messages, err := conn.Receive()
		if errors.Is(err, unix.ENOBUFS) { // the agent was slow, and messages are lost
			continue
		}
		if err != nil {
			return err
		}
		for _, m := range messages {
			if m.Header.Type != nflogPacket {
				continue
			}
			if event, ok := eventOf(m.Data); ok {
				record(event)
			}
		}
	}
}

// eventOf returns what a message of the kernel says.
func eventOf(data []byte) (event wrenn.EgressEvent, ok bool) {
	if len(data) < nfGenMsgLen {
		return event, false
	}
	attrs, err := netlink.NewAttributeDecoder(data[nfGenMsgLen:])
	if err != nil {
		return event, false
	}
	var kind string
	for attrs.Next() {
		switch attrs.Type() {
		case nfulaPrefix:
			kind = attrs.String()
		case nfulaPayload:
			event = eventOfPacket(attrs.Bytes())
		}
	}
	event.Verdict, event.Reason = wrenn.EgressDenied, reasons[kind]
	if kind == logAllowed {
		event.Verdict = wrenn.EgressAllowed
	}
	return event, attrs.Err() == nil && event.Address.IsValid() && (event.Reason != "" || kind == logAllowed)
}

// eventOfPacket returns where an IPv4 packet, of which the headers suffice, goes to.
// It has no address if the packet is none.
func eventOfPacket(p []byte) (event wrenn.EgressEvent) {
	const shortest = 20 // bytes of a header
	if len(p) < shortest || p[0]>>4 != 4 {
		return event
	}
	event.Address = netip.AddrFrom4([4]byte(p[ipDestination : ipDestination+4]))
	header := int(p[0]&15) * 4
	switch protocol := p[9]; protocol {
	case unix.IPPROTO_TCP:
		event.Protocol = wrenn.EgressTCP
	case unix.IPPROTO_UDP:
		event.Protocol = wrenn.EgressUDP
	case unix.IPPROTO_ICMP:
		event.Protocol = wrenn.EgressICMP
		return event
	default:
		event.Protocol = wrenn.EgressProtocol(fmt.Sprintf("ip-%d", protocol))
		return event
	}
	fragment := binary.BigEndian.Uint16(p[6:]) & 0x1fff
	if fragment == 0 && header >= shortest && len(p) >= header+4 {
		event.Port = binary.BigEndian.Uint16(p[header+2:])
	}
	return event
}
