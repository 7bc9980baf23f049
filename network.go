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
// or HTTP/1, unless its address is in Deny and not in Allow. The networks that are
// closed to all sandboxes stay closed. The zero value allows the whole public
// internet. The JSON form is that of host journals and of the database.
type NetworkPolicy struct {
	DenyByDefault bool           `json:"deny_by_default,omitempty"`
	Allow         []netip.Prefix `json:"allow,omitempty"` // IPv4
	Deny          []netip.Prefix `json:"deny,omitempty"`  // IPv4
	Names         []NetworkName  `json:"names,omitempty"` // only with DenyByDefault
	// Headers are for requests to hosts that may be reached; they allow none.
	Headers []HeaderRule `json:"headers,omitempty"`
}

// IsZero reports whether the policy allows the whole public internet, without header rules.
func (p NetworkPolicy) IsZero() bool {
	return !p.DenyByDefault && len(p.Allow) == 0 && len(p.Deny) == 0 && len(p.Names) == 0 && len(p.Headers) == 0
}

// Equal reports whether p and q have the same rules in the same order.
func (p NetworkPolicy) Equal(q NetworkPolicy) bool {
	return p.DenyByDefault == q.DenyByDefault && slices.Equal(p.Allow, q.Allow) && slices.Equal(p.Deny, q.Deny) && slices.Equal(p.Names, q.Names) &&
		slices.EqualFunc(p.Headers, q.Headers, HeaderRule.equal)
}

// ParseNetworkPolicy reads a policy whose rules are IPv4 addresses and networks,
// such as 1.2.3.4 and 10.0.0.0/8, and in allow also names as ParseNetworkName reads
// them. To deny 0.0.0.0/0 is to deny by default. Invalid names the first rule that
// cannot be followed.
func ParseNetworkPolicy(denyByDefault bool, allow, deny []string) (NetworkPolicy, error) {
	p := NetworkPolicy{DenyByDefault: denyByDefault}
	if err := p.parseAllow(allow); err != nil {
		return NetworkPolicy{}, err
	}
	var err error
	if p.Deny, err = parseNetworkRules("deny", deny); err != nil {
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

// parseAllow reads the rules to allow: names, and what can only be an address.
func (p *NetworkPolicy) parseAllow(texts []string) (err error) {
	var addresses []string
	for _, text := range texts {
		if !looksLikeName(text) {
			addresses = append(addresses, text)
			continue
		}
		name, err := ParseNetworkName(text)
		if err != nil {
			return err
		}
		p.Names = append(p.Names, name)
	}
	if len(texts) > MaxNetworkRules {
		return tooManyRules("allow", len(texts))
	}
	p.Allow, err = parseNetworkRules("allow", addresses)
	return err
}

func tooManyRules(list string, n int) error {
	return Errorf(Invalid, "a network policy has at most %d rules to %s, not %d", MaxNetworkRules, list, n)
}

// checkNames refuses names that would have no effect.
func (p NetworkPolicy) checkNames() error {
	if len(p.Names) > 0 && !p.DenyByDefault {
		return Errorf(Invalid, "a network policy that allows the name %q allows all other addresses, too: deny by default (default deny, denyOut 0.0.0.0/0), or leave the names out", p.Names[0])
	}
	return nil
}

// parseNetworkRules reads one list of rules.
func parseNetworkRules(list string, texts []string) ([]netip.Prefix, error) {
	if len(texts) > MaxNetworkRules {
		return nil, tooManyRules(list, len(texts))
	}
	var rules []netip.Prefix
	for _, text := range texts {
		rule, err := parseNetworkRule(text)
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule)
	}
	return rules, nil
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
		return rule, Errorf(Invalid, "network rule %.80q is not an IPv4 address such as 1.2.3.4 or a network such as 1.2.3.0/24; names are for rules that allow, and addresses have no ports", text)
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
	if n := len(p.Allow) + len(p.Names); n > MaxNetworkRules {
		return tooManyRules("allow", n)
	}
	for _, n := range p.Names {
		if err := n.check(); err != nil {
			return err
		}
	}
	return cmp.Or(p.checkNames(), p.checkHeaders())
}

// AllowTexts and DenyTexts return the rules as people write them: an address
// without /32, and names after all addresses. Deny by default is not among them.
func (p NetworkPolicy) AllowTexts() []string {
	texts := ruleTexts(p.Allow)
	for _, n := range p.Names {
		texts = append(texts, n.String())
	}
	return texts
}

// DenyTexts is described at AllowTexts.
func (p NetworkPolicy) DenyTexts() []string { return ruleTexts(p.Deny) }

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
