package network

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"wrenn/internal/netns"
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
		return conn.Flush()
	})
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
)

// closedSet adds the set of networks that no guest may reach.
func (t table) closedSet(slots netip.Prefix) (*nftables.Set, error) {
	set := &nftables.Set{Table: t.Table, ID: closedSetID, Name: "closed", KeyType: nftables.TypeIPAddr, Interval: true}
	var elements []nftables.SetElement
	for _, p := range closedTo(slots) {
		first := p.Addr()
		elements = append(elements, nftables.SetElement{Key: first.AsSlice()})
		// The end is exclusive; a network that ends at the last address has none.
		if end := nth(first, 1<<(32-p.Bits())); end.Compare(first) > 0 {
			elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	if err := t.conn.AddSet(set, elements); err != nil {
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

func ipDestinationIn(set *nftables.Set) []expr.Any {
	return []expr.Any{ipField(1, ipDestination), &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}}
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

// toUDPPort matches datagrams to a port; by its offset in the header, RFC 768.
func toUDPPort(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, compare(expr.CmpOpEq, []byte{unix.IPPROTO_UDP}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		compare(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(port)),
	}
}

// atMost matches up to n packets a second, and burst at once.
func atMost(n uint64, burst uint32) []expr.Any {
	return []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: n, Unit: expr.LimitTimeSecond, Burst: burst}}
}

// connectionsOver matches when more than n connections that reached this rule are open.
func connectionsOver(n int) []expr.Any {
	return []expr.Any{&expr.Connlimit{Count: uint32(n), Flags: expr.NFT_CONNLIMIT_F_INV}}
}

func drop() []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func jump(chain *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain.Name}}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// reserved are the IPv4 networks that are not the public internet: RFC 6890
// and its successors, https://www.iana.org/assignments/iana-ipv4-special-registry.
var reserved = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"), // holds the clouds' metadata service
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("224.0.0.0/3"), // multicast, and class E up to the broadcast address
}

// closedTo returns the networks that no guest may reach: the reserved ones and
// the range of the slots, which an operator may put anywhere.
func closedTo(slots netip.Prefix) []netip.Prefix {
	covered := false
	var closed []netip.Prefix
	for _, p := range reserved {
		switch {
		case !p.Overlaps(slots):
			closed = append(closed, p)
		case p.Bits() <= slots.Bits():
			closed = append(closed, p)
			covered = true
		}
	}
	if !covered {
		closed = append(closed, slots)
	}
	return closed
}
