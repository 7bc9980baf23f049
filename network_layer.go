package wrenn

import (
	"iter"
	"net/netip"
	"slices"
)

// NetworkLayer is whose network policy applies to a sandbox.
type NetworkLayer string

// The layers. A connection is allowed only if each of them allows it.
const (
	LayerTeam     NetworkLayer = "team"
	LayerTemplate NetworkLayer = "template"
	LayerSandbox  NetworkLayer = "sandbox"
	// LayerHost closes networks to all sandboxes. It is no layer of a NetworkPolicy.
	LayerHost NetworkLayer = "host"
)

// NetworkLayerPolicy has the rules of a team or a template, as a part of the policy of a
// sandbox. The fields are those of a NetworkPolicy.
type NetworkLayerPolicy struct {
	Layer         NetworkLayer   `json:"layer"`
	DenyByDefault bool           `json:"deny_by_default,omitempty"`
	Allow         []netip.Prefix `json:"allow,omitempty"`
	Deny          []netip.Prefix `json:"deny,omitempty"`
	Names         []NetworkName  `json:"names,omitempty"`
	DenyNames     []NetworkName  `json:"deny_names,omitempty"`
}

// Policy returns the rules as a policy.
func (l NetworkLayerPolicy) Policy() NetworkPolicy {
	return NetworkPolicy{DenyByDefault: l.DenyByDefault, Allow: l.Allow, Deny: l.Deny, Names: l.Names, DenyNames: l.DenyNames}
}

// AsLayer returns the rules of the policy as those of a layer.
func (p NetworkPolicy) AsLayer(layer NetworkLayer) NetworkLayerPolicy {
	return NetworkLayerPolicy{Layer: layer, DenyByDefault: p.DenyByDefault, Allow: p.Allow, Deny: p.Deny, Names: p.Names, DenyNames: p.DenyNames}
}

// maxLayers is how many layers a policy may have besides that of the sandbox.
const maxLayers = 2

// Equal reports whether both are the same layer with the same rules in the same order.
func (l NetworkLayerPolicy) Equal(o NetworkLayerPolicy) bool {
	return l.Layer == o.Layer && l.Policy().Equal(o.Policy())
}

// CheckLayer returns an Invalid error unless the policy can be that of a team or a
// template: it has rules alone.
func (p NetworkPolicy) CheckLayer() error {
	switch {
	case len(p.Headers) > 0:
		return Errorf(Invalid, "the network policy of a team or a template has no header rules: set them for a sandbox")
	case len(p.DNSServers) > 0:
		return Errorf(Invalid, "the network policy of a team or a template has no DNS servers: set them for a sandbox")
	case p.Proxy != nil:
		return Errorf(Invalid, "the network policy of a team or a template has no egress proxy: set it for a sandbox")
	case len(p.Layers) > 0:
		return Errorf(Invalid, "the network policy of a team or a template has no layers")
	}
	return p.Check()
}

// checkLayers returns an Invalid error unless each layer is one that a sandbox may have, once.
func (p NetworkPolicy) checkLayers() error {
	if len(p.Layers) > maxLayers {
		return Errorf(Invalid, "a network policy has at most %d layers, not %d", maxLayers, len(p.Layers))
	}
	for i, l := range p.Layers {
		if l.Layer != LayerTeam && l.Layer != LayerTemplate || slices.ContainsFunc(p.Layers[:i], func(o NetworkLayerPolicy) bool { return o.Layer == l.Layer }) {
			return Errorf(Invalid, "a network policy cannot have the layer %.20q: it has that of the team and that of the template, each once", string(l.Layer))
		}
		if err := l.Policy().Check(); err != nil {
			return err
		}
	}
	return nil
}

// With returns the policy with the layers of a team and a template, in place of those
// that it has. A layer that allows everything is left out.
func (p NetworkPolicy) With(team, template NetworkPolicy) NetworkPolicy {
	p.Layers = nil
	for _, l := range []NetworkLayerPolicy{team.AsLayer(LayerTeam), template.AsLayer(LayerTemplate)} {
		if !l.Policy().IsZero() {
			p.Layers = append(p.Layers, l)
		}
	}
	return p
}

// Own returns the policy without its layers.
func (p NetworkPolicy) Own() NetworkPolicy {
	p.Layers = nil
	return p
}

// Each yields the policies that apply, those of the layers first; the last one is that
// of the sandbox, without layers.
func (p NetworkPolicy) Each() iter.Seq2[NetworkLayer, NetworkPolicy] {
	return func(yield func(NetworkLayer, NetworkPolicy) bool) {
		for _, l := range p.Layers {
			if !yield(l.Layer, l.Policy()) {
				return
			}
		}
		yield(LayerSandbox, p.Own())
	}
}

// NetworkDecision is what a policy says about a connection.
type NetworkDecision struct {
	Allowed bool
	Layer   NetworkLayer // that decided
	Rule    string       // of the layer, such as "deny *.example.com" or "default allow"
	// ByName reports that some layer allows the connection for its name alone.
	ByName bool
}

// Reason says why a connection was denied, for people. What is what the connection
// wanted, such as "this address".
func (d NetworkDecision) Reason(what string) string {
	return "the " + string(d.Layer) + "'s network policy does not allow " + what + " (" + d.Rule + ")"
}

// Decide reports whether a connection to an address, at a port, that says it wants the
// host of a canonical name, is allowed. Name is "" for a connection that says none, port
// 0 is any. The layer of the decision is the first one that denies; if all allow it is
// the last one with a rule about the connection, else that of the sandbox. If one allows
// the connection for its name, each must allow the name, as DecideName reports. That an
// address is closed to all sandboxes is not known here.
func (p NetworkPolicy) Decide(name string, addr netip.Addr, port uint16) NetworkDecision {
	d := p.decide(func(own NetworkPolicy) (string, bool, bool) { return own.decideOne(name, addr, port) })
	if d.ByName {
		if byName := p.DecideName(name, port); !byName.Allowed {
			return byName
		}
	}
	return d
}

// DecideName is Decide of a question for a name, whose addresses are not known yet.
func (p NetworkPolicy) DecideName(name string, port uint16) NetworkDecision {
	return p.decide(func(own NetworkPolicy) (string, bool, bool) {
		rule, allowed := own.nameRule(name, port)
		if rule == "" {
			rule, allowed = own.defaultRule()
			return rule, allowed, false
		}
		return rule, allowed, allowed
	})
}

// DecideServer reports whether one of the DNSServers may be asked: that it is one of
// them is as good as an allowed default of the sandbox's own policy.
func (p NetworkPolicy) DecideServer(addr netip.Addr) NetworkDecision {
	p.DenyByDefault, p.DenyNames = false, nil
	return p.Decide("", addr, 0)
}

func (p NetworkPolicy) decide(one func(NetworkPolicy) (rule string, allowed, byName bool)) NetworkDecision {
	d := NetworkDecision{Allowed: true}
	for layer, own := range p.Each() {
		rule, allowed, byName := one(own)
		if !allowed {
			return NetworkDecision{Layer: layer, Rule: rule}
		}
		d.ByName = d.ByName || byName
		if d.Rule == "" || rule != defaultAllow || d.Rule == defaultAllow {
			d.Layer, d.Rule = layer, rule
		}
	}
	return d
}

// The rules about what no other rule is about.
const (
	defaultAllow = "default allow"
	defaultDeny  = "default deny"
)

func (p NetworkPolicy) defaultRule() (rule string, allowed bool) {
	if p.DenyByDefault {
		return defaultDeny, false
	}
	return defaultAllow, true
}

// decideOne is Decide without the layers.
func (p NetworkPolicy) decideOne(name string, addr netip.Addr, port uint16) (rule string, allowed, byName bool) {
	if r, ok := find(p.Allow, addr); ok {
		return "allow " + r, true, false
	}
	rule, allowed = p.nameRule(name, port)
	if rule != "" && !allowed {
		return rule, false, false
	}
	if r, ok := find(p.Deny, addr); ok {
		return "deny " + r, false, false
	}
	if rule != "" {
		return rule, true, true
	}
	rule, allowed = p.defaultRule()
	return rule, allowed, false
}

// find returns the first network that has the address, as people write it.
func find(networks []netip.Prefix, addr netip.Addr) (text string, ok bool) {
	i := slices.IndexFunc(networks, func(n netip.Prefix) bool { return n.Contains(addr) })
	if i < 0 {
		return "", false
	}
	return ruleTexts(networks[i : i+1])[0], true
}

// nameRule returns the rule about a host of that canonical name at a port, "" for none:
// of those about it the one for the longest name, and of two for one name that which
// names the port, else the one that allows. Port 0 is any: an allowed one is enough, and
// a rule that denies must be about all.
func (p NetworkPolicy) nameRule(name string, port uint16) (rule string, allowed bool) {
	if name == "" {
		return "", false
	}
	best := -1
	for _, n := range p.Names {
		if s := n.specificity(name, port); s > best {
			best, rule, allowed = s, "allow "+n.String(), true
		}
	}
	for _, n := range p.DenyNames {
		if port == 0 && n.Port != 0 {
			continue
		}
		if s := n.specificity(name, port); s > best {
			best, rule, allowed = s, "deny "+n.String(), false
		}
	}
	return rule, allowed
}

// specificity is larger the closer a rule is to a host, and -1 for one that is not about it.
func (n NetworkName) specificity(host string, port uint16) int {
	if !n.Matches(host) || port != 0 && n.Port != 0 && n.Port != port {
		return -1
	}
	s := 2 * len(n.Domain)
	if n.Domain == host {
		s = 4 * maxName // longer than any that begins with *
	}
	if n.Port != 0 {
		s++
	}
	return s
}

// NeedsNames reports whether the policy has rules by name, so that connections must
// pass the agent's proxy.
func (p NetworkPolicy) NeedsNames() bool {
	for _, own := range p.Each() {
		if len(own.Names)+len(own.DenyNames) > 0 {
			return true
		}
	}
	return false
}

// DeniesNames reports whether the policy has rules that deny by name.
func (p NetworkPolicy) DeniesNames() bool {
	for _, own := range p.Each() {
		if len(own.DenyNames) > 0 {
			return true
		}
	}
	return false
}
