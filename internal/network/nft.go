package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"wrenn.dev/internal/netns"
)

// batch changes the nftables of the namespace at path: all changes that build
// makes are applied, or none.
func batch(path string, build func(*nftables.Conn) error) error {
	return netns.Do(path, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		if err := build(conn); err != nil {
			return err
		}
		return explainMissing(conn.Flush())
	})
}

// explainMissing says what an error of nftables means when the kernel cannot load a
// module for a rule: it answers ENOENT.
func explainMissing(err error) error {
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	return fmt.Errorf("the kernel lacks a part of nftables, such as the modules nft_ct, nft_connlimit, nft_limit, nft_nat, nft_masq, nft_fib_inet, nft_redir, nft_log and nfnetlink_log: load or build them: %w", err)
}

// table is a table that is written from scratch. It replaces an earlier table of
// its name in the same batch, counters included.
type table struct {
	conn *nftables.Conn
	*nftables.Table
}

func newTable(conn *nftables.Conn, name string) table {
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: name}
	conn.AddTable(t) // to delete a table that does not exist would fail the batch
	conn.DelTable(t)
	return table{conn: conn, Table: conn.AddTable(t)}
}

// base adds a chain that the kernel calls at a hook.
func (t table) base(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority, policy nftables.ChainPolicy) *nftables.Chain {
	return t.conn.AddChain(&nftables.Chain{Name: name, Table: t.Table, Type: kind, Hooknum: hook, Priority: prio, Policy: &policy})
}

// sub adds a chain that rules jump to.
func (t table) sub(name string) *nftables.Chain {
	return t.conn.AddChain(&nftables.Chain{Name: name, Table: t.Table})
}

// rule appends a rule with all of parts in order. "nft list" shows the comment.
func (t table) rule(chain *nftables.Chain, comment string, parts ...[]expr.Any) {
	t.conn.AddRule(&nftables.Rule{
		Table:    t.Table,
		Chain:    chain,
		Exprs:    slices.Concat(parts...),
		UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
	})
}

// The ids of sets tell them apart within a batch. By default the library takes
// them from a counter that concurrent batches write without a lock.
const (
	closedSetID = iota + 1
	slotSetID
	allowedSetID
	deniedSetID
	namedSetID
	headerPortsSetID
)

// closedSet adds the set of networks that no guest may reach.
func (t table) closedSet(closed []netip.Prefix) (*nftables.Set, error) {
	set := t.networks(closedSetID, "closed")
	if err := t.conn.AddSet(set, spansOf(closed).elements()); err != nil {
		return nil, fmt.Errorf("set of closed networks: %w", err)
	}
	return set, nil
}

// The parts of rules. All of them compare register 1.

func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: 1, Data: data}
}

// linkIs matches the whole name of the incoming (MetaKeyIIFNAME) or outgoing
// (MetaKeyOIFNAME) link.
func linkIs(key expr.MetaKey, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, compare(expr.CmpOpEq, padded)}
}

// linkBegins matches links whose name has the prefix, or with CmpOpNeq the others.
func linkBegins(key expr.MetaKey, op expr.CmpOp, prefix string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, compare(op, []byte(prefix))}
}

func notIPv4() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, compare(expr.CmpOpNeq, []byte{unix.NFPROTO_IPV4})}
}

func etherSource(op expr.CmpOp, hw []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
		compare(op, hw),
	}
}

// Offsets in the IPv4 header, RFC 791.
const (
	ipSource      = 12
	ipDestination = 16
)

func ipField(register, offset uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
}

func ipSourceIs(op expr.CmpOp, addr netip.Addr) []expr.Any {
	return []expr.Any{ipField(1, ipSource), compare(op, addr.AsSlice())}
}

func ipDestinationIs(addr netip.Addr) []expr.Any {
	return []expr.Any{ipField(1, ipDestination), compare(expr.CmpOpEq, addr.AsSlice())}
}

func ipSourceIn(p netip.Prefix) []expr.Any {
	return []expr.Any{
		ipField(1, ipSource),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: ipNet(p.Addr(), p.Bits()).Mask, Xor: make([]byte, 4)},
		compare(expr.CmpOpEq, p.Addr().AsSlice()),
	}
}

// notFromSlot matches when link and source address together are not in the set.
func notFromSlot(set *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		ipField(2, ipSource), // register 2 follows the 16 bytes of register 1
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: true},
	}
}

// notUnicast matches packets to the host itself, broadcasts, multicasts, and
// addresses without a route.
func notUnicast() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		compare(expr.CmpOpNeq, binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST)),
	}
}

// connState matches when the state of the packet's connection is one of bits.
func connState(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		compare(expr.CmpOpNeq, make([]byte, 4)),
	}
}

func answers() []expr.Any { return connState(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED) }

func established() []expr.Any { return connState(expr.CtStateBitESTABLISHED) }

// toUDPPort matches datagrams to a port.
func toUDPPort(port uint16) []expr.Any { return toPort(unix.IPPROTO_UDP, port) }

// toTCPPort matches segments to a port.
func toTCPPort(port uint16) []expr.Any { return toPort(unix.IPPROTO_TCP, port) }

// toPort matches by the port's offset in the header, which is that of RFC 768 and RFC 9293.
func toPort(protocol byte, port uint16) []expr.Any {
	return append(protocolIs(expr.CmpOpEq, protocol),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		compare(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(port)))
}

// toTCPPortIn matches segments to the ports in the set.
func toTCPPortIn(set *nftables.Set) []expr.Any {
	return append(protocolIs(expr.CmpOpEq, unix.IPPROTO_TCP),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID})
}

// atMost matches up to n packets a second, and burst at once.
func atMost(n uint64, burst uint32) []expr.Any {
	return []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: n, Unit: expr.LimitTimeSecond, Burst: burst}}
}

// faster matches packets over n a second, and burst at once.
func faster(n uint64, burst uint32) []expr.Any {
	return []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: n, Unit: expr.LimitTimeSecond, Burst: burst, Over: true}}
}

// firstPacket matches the packet that opens a connection. Its state alone is no
// sign: that of a datagram is new until the first answer.
func firstPacket() []expr.Any {
	const confirmed = 1 << 3 // IPS_CONFIRMED: the connection is in the table
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(confirmed), Xor: make([]byte, 4)},
		compare(expr.CmpOpEq, make([]byte, 4)),
	}
}

// protocolIs matches packets of an IP protocol.
func protocolIs(op expr.CmpOp, protocol byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, compare(op, []byte{protocol})}
}

// otherProtocol matches packets that are neither TCP nor UDP nor ICMP.
func otherProtocol() []expr.Any {
	return slices.Concat(protocolIs(expr.CmpOpNeq, unix.IPPROTO_TCP), protocolIs(expr.CmpOpNeq, unix.IPPROTO_UDP), protocolIs(expr.CmpOpNeq, unix.IPPROTO_ICMP))
}

// connectionsOver matches when more than n connections that reached this rule are open.
func connectionsOver(n int) []expr.Any {
	return []expr.Any{&expr.Connlimit{Count: uint32(n), Flags: expr.NFT_CONNLIMIT_F_INV}}
}

func drop() []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
}

// leave continues after the rule that jumped here.
func leave() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}} }

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func jump(chain *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain.Name}}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// redirect changes the destination to a port of the slot itself.
func redirect(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Redir{RegisterProtoMin: 1},
	}
}

// redirected matches packets of connections whose destination was changed.
func redirected() []expr.Any {
	const dstNAT = 1 << 5 // IPS_DST_NAT
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(dstNAT), Xor: make([]byte, 4)},
		compare(expr.CmpOpNeq, make([]byte, 4)),
	}
}

// marked matches packets of sockets with a mark.
func marked(mark uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, compare(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(mark))}
}
