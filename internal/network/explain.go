package network

import (
	"cmp"
	"context"
	"net/netip"
	"slices"

	"wrenn"
	"wrenn/internal/network/egress"
)

// Explain reports whether a guest whose slot follows policy may reach a host, a name or
// an IPv4 address in the form of wrenn.CheckEgressHost, at a port; 0 is any. It
// resolves a name as the host would. Invalid when host is neither.
func (p *Pool) Explain(ctx context.Context, policy wrenn.NetworkPolicy, host string, port uint16) (wrenn.EgressExplanation, error) {
	if err := wrenn.CheckEgressHost(host); err != nil {
		return wrenn.EgressExplanation{}, err
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return p.explainAddress(policy, addr), nil
	}
	byName := policy.NameRule(host, port)
	if byName == "" && policy.DenyByDefault && len(policy.Allow) == 0 {
		return wrenn.EgressExplanation{Rule: "default deny", Reason: "no rule allows this name at this port"}, nil
	}
	addrs, err := egress.Resolve(ctx, p.host.byName.upstream().Exchange, host)
	if err != nil {
		if ctx.Err() != nil {
			return wrenn.EgressExplanation{}, context.Cause(ctx)
		}
		return wrenn.EgressExplanation{Rule: byName, Reason: err.Error()}, nil
	}
	e := p.explainName(policy, addrs, byName)
	if rule, ok := policy.HeaderRule(host, cmp.Or(port, httpsPort)); ok && e.Allowed {
		e.Reason += "; requests by TLS get the headers of the rule for " + rule.Host.String()
	}
	return e, nil
}

// httpsPort is the port of header rules that name none.
const httpsPort = 443

// explainAddress reports whether an address may be reached.
func (p *Pool) explainAddress(policy wrenn.NetworkPolicy, addr netip.Addr) wrenn.EgressExplanation {
	if rule, closed := p.closedBy(addr); closed {
		return wrenn.EgressExplanation{
			Rule: rule, Reason: "this network is closed to all sandboxes, whatever their policy allows",
			Addresses: []wrenn.EgressAddress{{Address: addr, Rule: rule}},
		}
	}
	rule, allowed := policy.AddressRule(addr)
	e := wrenn.EgressExplanation{Allowed: allowed, Rule: rule, Addresses: []wrenn.EgressAddress{{Address: addr, Allowed: allowed, Rule: rule}}}
	switch {
	case allowed:
		e.Reason = "the network policy allows this address, by TCP, UDP and ICMP"
	case len(policy.Names) > 0:
		e.Reason = "no rule allows this address; TCP connections to it that name an allowed host lead to that host"
	default:
		e.Reason = "the network policy does not allow this address"
	}
	return e
}

// explainName reports whether a name with these addresses may be reached. ByName is the
// rule that allows the name, if there is one.
func (p *Pool) explainName(policy wrenn.NetworkPolicy, addrs []netip.Addr, byName string) wrenn.EgressExplanation {
	e := wrenn.EgressExplanation{Rule: byName}
	for _, addr := range addrs {
		if _, closed := p.closedBy(addr); closed {
			continue
		}
		rule, allowed := policy.AddressRule(addr)
		if byName != "" && !policy.DeniesAddress(addr) && !allowed {
			rule, allowed = byName, true
		}
		e.Addresses = append(e.Addresses, wrenn.EgressAddress{Address: addr, Allowed: allowed, Rule: rule})
		if allowed && !e.Allowed || e.Rule == "" {
			e.Allowed, e.Rule = allowed, rule
		}
	}
	switch {
	case e.Allowed && e.Rule == byName:
		e.Reason = "the network policy allows this name, by TCP with TLS (SNI) or HTTP/1 (Host)"
	case e.Allowed:
		e.Reason = "the network policy allows an address of this name, by TCP, UDP and ICMP"
	case len(e.Addresses) == 0:
		e.Reason = "this name leads to no address of the public internet"
	case byName != "":
		e.Reason = "a rule allows this name, but its addresses are denied"
	default:
		e.Reason = "the network policy allows neither this name nor its addresses"
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
