package wrenn

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// MaxNetworkRules bounds the entries of each list of a NetworkPolicy.
const MaxNetworkRules = 256

// allAddresses holds every address that a sandbox can send to.
var allAddresses = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

// NetworkPolicy is what a sandbox may reach of the public internet. An address
// in Allow may be reached, also if it is in Deny; one in Deny may not; the others
// may unless DenyByDefault. A host in Names may be reached by name, by TCP with TLS
// or HTTP/1, unless its address is in Deny and not in Allow; one in DenyNames may not,
// as far as connections say that they want it. Each of the Layers must allow a
// connection, too. The networks that are closed to all sandboxes stay closed. The zero
// value allows the whole public internet. The JSON form is that of host journals and of
// the database.
type NetworkPolicy struct {
	DenyByDefault bool           `json:"deny_by_default,omitempty"`
	Allow         []netip.Prefix `json:"allow,omitempty"` // IPv4
	Deny          []netip.Prefix `json:"deny,omitempty"`  // IPv4
	Names         []NetworkName  `json:"names,omitempty"` // only with DenyByDefault or DenyNames
	DenyNames     []NetworkName  `json:"deny_names,omitempty"`
	// DNSServers are asked for names in place of the host's; they allow nothing.
	DNSServers []netip.Addr `json:"dns_servers,omitempty"` // IPv4
	// Headers are for requests to hosts that may be reached; they allow none.
	Headers []HeaderRule `json:"headers,omitempty"`
	// Proxy is what the TCP connections that the policy allows go through; nil: none. Other
	// traffic is denied then.
	Proxy *EgressProxy `json:"proxy,omitempty"`
	// Layers are the policies of the sandbox's team and template. The policy that a
	// user sets, and that of a row, has none.
	Layers []NetworkLayerPolicy `json:"layers,omitempty"`
}

// IsZero reports whether the policy allows the whole public internet, without header
// rules, DNS servers and a proxy.
func (p NetworkPolicy) IsZero() bool {
	return !p.DenyByDefault && len(p.Allow) == 0 && len(p.Deny) == 0 && len(p.Names) == 0 && len(p.DenyNames) == 0 &&
		len(p.DNSServers) == 0 && len(p.Headers) == 0 && p.Proxy == nil && len(p.Layers) == 0
}

// Equal reports whether p and q have the same rules in the same order.
func (p NetworkPolicy) Equal(q NetworkPolicy) bool {
	return p.DenyByDefault == q.DenyByDefault && slices.Equal(p.Allow, q.Allow) && slices.Equal(p.Deny, q.Deny) &&
		slices.Equal(p.Names, q.Names) && slices.Equal(p.DenyNames, q.DenyNames) && slices.Equal(p.DNSServers, q.DNSServers) &&
		slices.EqualFunc(p.Headers, q.Headers, HeaderRule.equal) && p.Proxy.Equal(q.Proxy) && slices.EqualFunc(p.Layers, q.Layers, NetworkLayerPolicy.Equal)
}

// ParseNetworkPolicy reads a policy whose rules are IPv4 addresses and networks,
// such as 1.2.3.4 and 10.0.0.0/8, and names as ParseNetworkName reads them. To deny
// 0.0.0.0/0 is to deny by default. Invalid names the first rule that cannot be followed.
func ParseNetworkPolicy(denyByDefault bool, allow, deny []string) (NetworkPolicy, error) {
	p := NetworkPolicy{DenyByDefault: denyByDefault}
	var err error
	if p.Allow, p.Names, err = parseRules("allow", allow); err != nil {
		return NetworkPolicy{}, err
	}
	if p.Deny, p.DenyNames, err = parseRules("deny", deny); err != nil {
		return NetworkPolicy{}, err
	}
	if slices.Contains(p.Deny, allAddresses) {
		p.DenyByDefault = true
		if p.Deny = slices.DeleteFunc(p.Deny, func(d netip.Prefix) bool { return d == allAddresses }); len(p.Deny) == 0 {
			p.Deny = nil
		}
	}
	return p, p.checkNames()
}

// parseRules reads the rules of one list: names, and what can only be an address.
func parseRules(list string, texts []string) (networks []netip.Prefix, names []NetworkName, err error) {
	if len(texts) > MaxNetworkRules {
		return nil, nil, tooManyRules(list, len(texts))
	}
	for _, text := range texts {
		if !looksLikeName(text) {
			network, err := parseNetworkRule(text)
			if err != nil {
				return nil, nil, err
			}
			networks = append(networks, network)
			continue
		}
		name, err := ParseNetworkName(text)
		if err != nil {
			return nil, nil, err
		}
		names = append(names, name)
	}
	return networks, names, nil
}

func tooManyRules(list string, n int) error {
	return Errorf(Invalid, "a network policy has at most %d rules to %s, not %d", MaxNetworkRules, list, n)
}

// checkNames refuses names that would have no effect.
func (p NetworkPolicy) checkNames() error {
	if len(p.Names) > 0 && !p.DenyByDefault && len(p.DenyNames) == 0 {
		return Errorf(Invalid, "a network policy that allows the name %q allows all other addresses, too: deny by default (default deny, denyOut 0.0.0.0/0), or leave the names out", p.Names[0])
	}
	return nil
}

func parseNetworkRule(text string) (netip.Prefix, error) {
	var rule netip.Prefix
	var err error
	if strings.Contains(text, "/") {
		rule, err = netip.ParsePrefix(text)
	} else {
		var addr netip.Addr
		if addr, err = netip.ParseAddr(text); err == nil && addr.Zone() == "" {
			rule = netip.PrefixFrom(addr, addr.BitLen())
		}
	}
	switch {
	case err != nil || !rule.IsValid():
		return rule, Errorf(Invalid, "network rule %.80q is not an IPv4 address such as 1.2.3.4 or a network such as 1.2.3.0/24, and no name such as example.com; addresses have no ports", text)
	case !rule.Addr().Is4():
		return rule, Errorf(Invalid, "network rule %.80q: sandboxes have no IPv6, leave it out", text)
	}
	return rule.Masked(), nil
}

// Check returns an Invalid error unless a host can follow the policy.
func (p NetworkPolicy) Check() error {
	for _, rules := range [][]netip.Prefix{p.Allow, p.Deny} {
		if len(rules) > MaxNetworkRules {
			return Errorf(Invalid, "a network policy has at most %d rules in each list, not %d", MaxNetworkRules, len(rules))
		}
		for _, r := range rules {
			if !r.IsValid() || !r.Addr().Is4() || r != r.Masked() {
				return Errorf(Invalid, "network rule %s is not an IPv4 network", r)
			}
		}
	}
	for list, n := range map[string]int{"allow": len(p.Allow) + len(p.Names), "deny": len(p.Deny) + len(p.DenyNames)} {
		if n > MaxNetworkRules {
			return tooManyRules(list, n)
		}
	}
	for _, n := range slices.Concat(p.Names, p.DenyNames) {
		if err := n.check(); err != nil {
			return err
		}
	}
	if p.Proxy != nil {
		if err := p.Proxy.Check(); err != nil {
			return err
		}
	}
	return cmp.Or(p.checkNames(), p.checkDNSServers(), p.checkHeaders(), p.checkLayers())
}

// MaxDNSServers bounds the DNS servers of a NetworkPolicy; it is E2B's bound.
const MaxDNSServers = 10

// ParseDNSServers reads the DNS servers of a policy, which are IPv4 addresses.
func ParseDNSServers(texts []string) (servers []netip.Addr, err error) {
	for _, text := range texts {
		addr, err := netip.ParseAddr(text)
		if err != nil || !addr.Is4() {
			return nil, Errorf(Invalid, "DNS server %.80q is not an IPv4 address such as 1.1.1.1", text)
		}
		servers = append(servers, addr)
	}
	return servers, NetworkPolicy{DNSServers: servers}.checkDNSServers()
}

func (p NetworkPolicy) checkDNSServers() error {
	if n := len(p.DNSServers); n > MaxDNSServers {
		return Errorf(Invalid, "a network policy has at most %d DNS servers, not %d", MaxDNSServers, n)
	}
	for _, addr := range p.DNSServers {
		if !addr.Is4() {
			return Errorf(Invalid, "DNS server %s is not an IPv4 address", addr)
		}
	}
	return nil
}

// AllowTexts and DenyTexts return the rules as people write them: an address
// without /32, and names after all addresses. Deny by default is not among them.
func (p NetworkPolicy) AllowTexts() []string {
	return append(ruleTexts(p.Allow), nameTexts(p.Names)...)
}

// DenyTexts is described at AllowTexts.
func (p NetworkPolicy) DenyTexts() []string {
	return append(ruleTexts(p.Deny), nameTexts(p.DenyNames)...)
}

func nameTexts(names []NetworkName) (texts []string) {
	for _, n := range names {
		texts = append(texts, n.String())
	}
	return texts
}

func ruleTexts(rules []netip.Prefix) []string {
	texts := make([]string, 0, len(rules))
	for _, r := range rules {
		if r.IsSingleIP() {
			texts = append(texts, r.Addr().String())
		} else {
			texts = append(texts, r.String())
		}
	}
	return texts
}
