package e2b

import (
	"maps"
	"net/http"
	"slices"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/e2b/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

// everyAddress in denyOut denies by default.
const everyAddress = "0.0.0.0/0"

// parsePolicy returns the policy of rules, or an error that names what of them is
// not built. Internet, if not nil, is allow_internet_access.
func parsePolicy(n oapi.NetworkRules, internet *bool) (wrenn.NetworkPolicy, error) {
	p, err := wrenn.ParseNetworkPolicy(internet != nil && !*internet, n.AllowOut, n.DenyOut)
	if err != nil {
		return p, err
	}
	if len(p.DenyNames) > 0 {
		return p, invalid("network: denyOut takes addresses and networks, not %q: names are denied by /v1, `wrenn sandbox network ID --deny NAME`", p.DenyNames[0])
	}
	if p.DNSServers, err = wrenn.ParseDNSServers(n.DNSServers); err != nil {
		return p, err
	}
	if p.Headers, err = headerRules(n.Rules); err != nil {
		return p, err
	}
	p.Proxy, err = parseProxy(n.EgressProxy)
	return p, err
}

// parseProxy returns nil for nil. E2B's proxies speak SOCKS5.
func parseProxy(p *oapi.EgressProxy) (out *wrenn.EgressProxy, err error) {
	if p == nil {
		return nil, nil //nolint:nilnil // most policies have none
	}
	out = &wrenn.EgressProxy{Protocol: wrenn.ProxySOCKS5, Username: p.Username, Password: p.Password, HasPassword: p.Password != ""}
	if out.Host, out.Port, err = wrenn.ParseProxyAddress(p.Address); err != nil {
		return nil, err
	}
	switch t := p.TLS; {
	case t == nil:
	case t.Enabled:
		out.TLS = &wrenn.ProxyTLS{ServerName: t.ServerName, CA: t.CACert}
	case t.ServerName != "" || t.CACert != "":
		return nil, invalid("network: egressProxy.tls has serverName or caCert, and enabled is false")
	}
	return out, out.Check()
}

// proxyOf is the reverse of parseProxy, without what E2B never shows.
func proxyOf(p *wrenn.EgressProxy) *oapi.EgressProxy {
	if p == nil || p.Protocol != wrenn.ProxySOCKS5 {
		return nil
	}
	out := &oapi.EgressProxy{Address: p.Address(), Username: p.Username}
	if p.TLS != nil {
		out.TLS = new(oapi.EgressProxyTLS{Enabled: true, ServerName: p.TLS.ServerName})
	}
	return out
}

// headerRules returns the header rules of a request, in the order of their hosts.
func headerRules(rules oapi.HeaderRules) (out []wrenn.HeaderRule, err error) {
	for _, host := range slices.Sorted(maps.Keys(rules)) {
		name, err := wrenn.ParseNetworkName(host)
		if err != nil {
			return nil, err
		}
		for _, rule := range rules[host] {
			if rule.Transform == nil || len(rule.Transform.Headers) == 0 {
				continue // it changes nothing
			}
			r := wrenn.HeaderRule{Host: name}
			for _, header := range slices.Sorted(maps.Keys(rule.Transform.Headers)) {
				r.Headers = append(r.Headers, wrenn.Header{Name: header, Text: rule.Transform.Headers[header]})
			}
			out = append(out, r)
		}
	}
	return out, nil
}

// rulesOf is the reverse of headerRules.
func rulesOf(rules []wrenn.HeaderRule) oapi.HeaderRules {
	if len(rules) == 0 {
		return nil
	}
	out := oapi.HeaderRules{}
	for _, r := range rules {
		t := oapi.HeaderTransform{}
		t.Transform = &struct {
			Headers map[string]string `json:"headers,omitempty"`
		}{map[string]string{}}
		for _, h := range r.Headers {
			t.Transform.Headers[h.Name] = h.Text
		}
		out[r.Host.String()] = append(out[r.Host.String()], t)
	}
	return out
}

// ingressOf returns who reaches the ports of a new sandbox, and how. Without
// allowPublicTraffic, or with null, everyone does.
func ingressOf(n oapi.NetworkRules) wrenn.Ingress {
	return wrenn.Ingress{Private: n.AllowPublicTraffic != nil && !*n.AllowPublicTraffic, MaskHost: n.MaskRequestHost, HTTPSPorts: n.HTTPSPorts}
}

// networkOf returns nil for a policy without rules, and ports that everyone reaches.
func networkOf(p wrenn.NetworkPolicy, ingress wrenn.Ingress) *oapi.SandboxNetwork {
	if p.IsZero() && ingress.IsZero() {
		return nil
	}
	out := &oapi.SandboxNetwork{
		Rules: rulesOf(p.Headers), EgressProxy: proxyOf(p.Proxy),
		AllowOut: p.AllowTexts(), DenyOut: p.DenyTexts(), MaskRequestHost: ingress.MaskHost, HTTPSPorts: ingress.HTTPSPorts,
	}
	for _, addr := range p.DNSServers {
		out.DNSServers = append(out.DNSServers, addr.String())
	}
	if ingress.Private {
		out.AllowPublicTraffic = new(false)
	}
	if p.DenyByDefault {
		out.DenyOut = slices.Insert(out.DenyOut, 0, everyAddress)
	}
	return out
}

// setNetwork replaces the whole policy: no fields allow everything.
func (s *Server) setNetwork(r *http.Request, c service.Caller) (int, any, error) {
	var req oapi.UpdateNetwork
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	if req.AllowPublicTraffic != nil || req.MaskRequestHost != "" || len(req.HTTPSPorts) > 0 {
		return 0, nil, invalid("network: allowPublicTraffic, maskRequestHost and httpsPorts are set when a sandbox is created, and do not change")
	}
	policy, err := parsePolicy(oapi.NetworkRules{
		AllowOut: req.AllowOut, DenyOut: req.DenyOut, Rules: req.Rules, EgressProxy: req.EgressProxy, DNSServers: req.DNSServers,
	}, req.AllowInternetAccess)
	if err != nil {
		return 0, nil, err
	}
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	_, err = s.service.SetNetwork(r.Context(), c, sb.ID, policy)
	return http.StatusNoContent, nil, err
}
