package network

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/network/egress"
)

// The sets of a slot's table that hold the policy of its sandbox. A change of the
// policy changes their elements, all at once, and nothing else: counters, limits
// and connections that stay allowed do not notice.
const (
	allowedSet = "allowed"
	deniedSet  = "denied"
	namedSet   = "named" // what can be reached by name alone
	// headerPortsSet has the ports of hosts with header rules.
	headerPortsSet = "header_ports"
)

// policySets returns the sets of a slot's table.
func (t table) policySets() (allowed, denied, named *nftables.Set) {
	return t.networks(allowedSetID, allowedSet), t.networks(deniedSetID, deniedSet), t.networks(namedSetID, namedSet)
}

// networks returns a set of IPv4 networks.
func (t table) networks(id uint32, name string) *nftables.Set {
	return &nftables.Set{Table: t.Table, ID: id, Name: name, KeyType: nftables.TypeIPAddr, Interval: true}
}

// addPolicy adds the sets, which follow the policy, and the chains that look
// addresses up in them: one for what the guest sends, one for what it gets. The
// second stops a peer that sends on after it was denied.
//
// It also redirects to the agent what may be allowed by its name.
func (t table) addPolicy(policy wrenn.NetworkPolicy, closed *nftables.Set) (out, in *nftables.Chain, err error) {
	allowed, denied, named := t.policySets()
	of := addressesOf(policy)
	if err := errors.Join(
		t.conn.AddSet(allowed, of.allowed.elements()),
		t.conn.AddSet(denied, of.denied.elements()),
		t.conn.AddSet(named, of.named.elements()),
	); err != nil {
		return nil, nil, fmt.Errorf("sets of the sandbox's policy: %w", err)
	}
	ports := t.headerPorts()
	if err := t.conn.AddSet(ports, portElements(policy.HeaderPorts())); err != nil {
		return nil, nil, fmt.Errorf("ports of the sandbox's header rules: %w", err)
	}
	nat := t.base("redirect", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, nftables.ChainPolicyAccept)
	byName, byRule := t.sub("by_name"), t.sub("by_header_rule")
	t.rule(nat, "by header rule", linkIs(expr.MetaKeyIIFNAME, TAP), toTCPPortIn(ports), jump(byRule))
	t.rule(byRule, "closed", ipIn(ipDestination, closed), leave())
	t.rule(byRule, "connections that may need headers", protocolIs(expr.CmpOpEq, unix.IPPROTO_TCP), redirect(namesPort))
	t.rule(nat, "by name", linkIs(expr.MetaKeyIIFNAME, TAP), ipIn(ipDestination, named), jump(byName))
	t.rule(byName, "closed", ipIn(ipDestination, closed), leave())
	t.rule(byName, "allowed by address", ipIn(ipDestination, allowed), leave())
	t.rule(byName, "questions for names", toUDPPort(dnsPort), redirect(dnsPort))
	t.rule(byName, "questions for names", toTCPPort(dnsPort), redirect(dnsPort))
	t.rule(byName, "connections by name", protocolIs(expr.CmpOpEq, unix.IPPROTO_TCP), redirect(namesPort))

	out, in = t.sub("policy_out"), t.sub("policy_in")
	t.rule(out, "allowed by the sandbox's policy", ipIn(ipDestination, allowed), leave())
	t.deny(out, "denied by the sandbox's policy", logPolicy, ipIn(ipDestination, denied)...)
	t.rule(in, "allowed by the sandbox's policy", ipIn(ipSource, allowed), leave())
	t.rule(in, "from a denied address", ipIn(ipSource, denied), drop())
	return out, in, nil
}

// changePolicy replaces the elements of the sets of an existing table.
func changePolicy(conn *nftables.Conn, policy wrenn.NetworkPolicy) error {
	t := table{conn: conn, Table: &nftables.Table{Family: nftables.TableFamilyINet, Name: slotTable}}
	allowed, denied, named := t.policySets()
	of := addressesOf(policy)
	for set, addresses := range map[*nftables.Set]spans{allowed: of.allowed, denied: of.denied, named: of.named} {
		conn.FlushSet(set)
		if elements := addresses.elements(); len(elements) > 0 {
			if err := conn.SetAddElements(set, elements); err != nil {
				return err
			}
		}
	}
	ports := t.headerPorts()
	conn.FlushSet(ports)
	if elements := portElements(policy.HeaderPorts()); len(elements) > 0 {
		return conn.SetAddElements(ports, elements)
	}
	return nil
}

// headerPorts returns the set of the ports of header rules.
func (t table) headerPorts() *nftables.Set {
	return &nftables.Set{Table: t.Table, ID: headerPortsSetID, Name: headerPortsSet, KeyType: nftables.TypeInetService}
}

// portElements returns ports as elements of a set.
func portElements(ports []uint16) (elements []nftables.SetElement) {
	for _, p := range ports {
		elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(p)})
	}
	return elements
}

// policyAddresses are the contents of the sets of a policy.
type policyAddresses struct {
	allowed spans // to all connections, whatever name they say
	denied  spans // to connections that say no name
	named   spans // connections to these are decided by their name, unless their address is allowed
}

// addressesOf returns what the slot's rules need to know of a policy with its layers.
func addressesOf(p wrenn.NetworkPolicy) policyAddresses {
	if p.Proxy != nil { // nothing leaves but by the agent
		return policyAddresses{denied: everyAddress, named: everyAddress}
	}
	of := policyAddresses{denied: byAddress(p).others()}
	if p.NeedsNames() {
		of.allowed, of.named = whateverName(p), everyAddress
	}
	return of
}

// SetCredentials sets what the header rules of the policy need, for the next SetPolicy. A
// new slot has none.
func (s *Slot) SetCredentials(c egress.Credentials) { s.credentials.Store(&c) }

// SetPolicy makes the policy that of the slot's guest, at once. Connections that
// it allows continue; packets of others are dropped from now on. A new slot
// allows all. Invalid when the policy cannot be followed, FailedPrecondition
// after Release.
func (s *Slot) SetPolicy(_ context.Context, policy wrenn.NetworkPolicy) error {
	if err := policy.Check(); err != nil {
		return err
	}
	if s.released.Load() {
		return errReleased
	}
	var credentials egress.Credentials
	if c := s.credentials.Load(); c != nil {
		credentials = *c
	}
	s.policy.Store(&policy)
	if err := s.pool.host.byName.follow(s.ref.Index, policy, credentials, s.observed); err != nil {
		return fmt.Errorf("names of slot %s: %w", s.pool.cfg.name(s.ref.Index), err)
	}
	err := batch(s.Namespace(), func(conn *nftables.Conn) error { return changePolicy(conn, policy) })
	if errors.Is(err, unix.ENOENT) { // the rules are those of an older agent
		err = (&maker{cfg: s.pool.cfg, host: s.pool.host, index: s.ref.Index}).writeRulesWith(policy)
	}
	if err != nil {
		return fmt.Errorf("network policy of slot %s: %w", s.pool.cfg.name(s.ref.Index), err)
	}
	return nil
}

// ipIn matches when the address at offset of the IPv4 header is in the set.
func ipIn(offset uint32, set *nftables.Set) []expr.Any {
	return []expr.Any{ipField(1, offset), &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}}
}
