package network

import (
	"cmp"
	"context"
	"net/netip"
	"slices"

	"wrenn.dev"
	"wrenn.dev/internal/network/egress"
)

// Explain reports whether a guest whose slot follows policy may reach a host, a name or
// an IPv4 address in the form of wrenn.CheckEgressHost, at a port; 0 is any. It
// resolves a name as the host would. Invalid when host is neither.
func (p *Pool) Explain(ctx context.Context, policy wrenn.NetworkPolicy, host string, port uint16) (wrenn.EgressExplanation, error) {
	if err := wrenn.CheckEgressHost(host); err != nil {
		return wrenn.EgressExplanation{}, err
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return p.explainAddress(policy, addr, port), nil
	}
	byName := policy.DecideName(host, port)
	if !byName.Allowed && len(byAddress(policy)) == 0 {
		return deniedName(byName), nil // whatever its addresses are
	}
	if policy.Proxy != nil && byName.Allowed && policy.PassesNames() {
		return wrenn.EgressExplanation{Allowed: true, Rule: byName.Rule, Layer: byName.Layer, Reason: allows(policy, thisName, "")}, nil
	}
	addrs, err := egress.Resolve(ctx, p.host.byName.upstream().Exchange, host)
	if err != nil {
		if ctx.Err() != nil {
			return wrenn.EgressExplanation{}, context.Cause(ctx)
		}
		e := wrenn.EgressExplanation{Reason: err.Error()}
		if len(policy.DNSServers) > 0 {
			e.Reason += " (by the resolvers of the host, and not by the DNS servers of the policy)"
		}
		if byName.ByName {
			e.Rule, e.Layer = byName.Rule, byName.Layer
		}
		return e, nil
	}
	e := p.explainName(policy, host, addrs, port)
	if rule, ok := policy.HeaderRule(host, cmp.Or(port, httpsPort)); ok && e.Allowed {
		e.Reason += "; requests by TLS get the headers of the rule for " + rule.Host.String()
	}
	return e, nil
}

// Parts of reasons.
const (
	thisName      = "this name"
	everyProtocol = "by TCP, UDP and ICMP"
)

// allows is the reason of what the policy allows: by the protocols, or through the
// policy's proxy if it has one.
func allows(policy wrenn.NetworkPolicy, what, protocols string) string {
	if policy.Proxy != nil {
		protocols = "by TCP alone and through the egress proxy " + policy.Proxy.String()
	}
	return "the network policy allows " + what + ", " + protocols
}

// deniedName explains a name that is denied whatever its addresses are.
func deniedName(d wrenn.NetworkDecision) wrenn.EgressExplanation {
	return wrenn.EgressExplanation{Rule: d.Rule, Layer: d.Layer, Reason: d.Reason("this name at this port")}
}

// httpsPort is the port of header rules that name none.
const httpsPort = 443

// explainAddress reports whether an address may be reached.
func (p *Pool) explainAddress(policy wrenn.NetworkPolicy, addr netip.Addr, port uint16) wrenn.EgressExplanation {
	if rule, closed := p.closedBy(addr); closed {
		return wrenn.EgressExplanation{
			Rule: rule, Layer: wrenn.LayerHost, Reason: "this network is closed to all sandboxes, whatever their policy allows",
			Addresses: []wrenn.EgressAddress{{Address: addr, Rule: rule, Layer: wrenn.LayerHost}},
		}
	}
	d := policy.Decide("", addr, port)
	e := wrenn.EgressExplanation{Allowed: d.Allowed, Rule: d.Rule, Layer: d.Layer, Addresses: []wrenn.EgressAddress{addressOf(addr, d)}}
	switch {
	case d.Allowed && policy.DeniesNames():
		e.Reason = allows(policy, "this address", "by UDP and ICMP, and by TCP unless the connection names a host that is denied")
	case d.Allowed:
		e.Reason = allows(policy, "this address", everyProtocol)
	case policy.NeedsNames():
		e.Reason = d.Reason("this address") + "; TCP connections to it that name an allowed host lead to that host"
	default:
		e.Reason = d.Reason("this address")
	}
	return e
}

func addressOf(addr netip.Addr, d wrenn.NetworkDecision) wrenn.EgressAddress {
	return wrenn.EgressAddress{Address: addr, Allowed: d.Allowed, Rule: d.Rule, Layer: d.Layer}
}

// explainName reports whether a name with these addresses may be reached.
func (p *Pool) explainName(policy wrenn.NetworkPolicy, host string, addrs []netip.Addr, port uint16) wrenn.EgressExplanation {
	var e wrenn.EgressExplanation
	var decided wrenn.NetworkDecision // about the first address that is allowed, or the first one
	for _, addr := range addrs {
		if _, closed := p.closedBy(addr); closed {
			continue
		}
		d := policy.Decide(host, addr, port)
		if len(e.Addresses) == 0 || d.Allowed && !decided.Allowed {
			decided = d
		}
		e.Addresses = append(e.Addresses, addressOf(addr, d))
	}
	if len(e.Addresses) == 0 {
		d := policy.DecideName(host, port)
		e.Rule, e.Layer, e.Reason = d.Rule, d.Layer, "this name leads to no address of the public internet"
		return e
	}
	e.Allowed, e.Rule, e.Layer = decided.Allowed, decided.Rule, decided.Layer
	switch byName := policy.DecideName(host, port); {
	case decided.ByName:
		e.Reason = allows(policy, thisName, "by TCP with TLS (SNI) or HTTP/1 (Host)")
	case decided.Allowed:
		e.Reason = allows(policy, "an address of this name", everyProtocol)
	case byName.Allowed:
		e.Reason = "this name is allowed, but its addresses are not: " + decided.Reason("them")
	default:
		e.Reason = decided.Reason("this name at this port")
	}
	return e
}

// closedBy returns the network that closes an address to all guests.
func (p *Pool) closedBy(addr netip.Addr) (rule string, closed bool) {
	networks := p.cfg.closed()
	i := slices.IndexFunc(networks, func(n netip.Prefix) bool { return n.Contains(addr) })
	if i < 0 {
		return "", false
	}
	return "closed " + networks[i].String(), true
}
