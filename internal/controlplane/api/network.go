package api

import (
	"context"
	"maps"
	"slices"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
)

func parsePolicy(p oapi.SetNetworkPolicy) (wrenn.NetworkPolicy, error) {
	out, err := wrenn.ParseNetworkPolicy(value(p.Default) == oapi.Deny, value(p.Allow), value(p.Deny))
	if err != nil {
		return out, err
	}
	if out.DNSServers, err = wrenn.ParseDNSServers(value(p.DNSServers)); err != nil {
		return out, err
	}
	for _, r := range value(p.Headers) {
		rule := wrenn.HeaderRule{}
		if rule.Host, err = wrenn.ParseNetworkName(r.Host); err != nil {
			return out, err
		}
		for _, name := range slices.Sorted(maps.Keys(r.Headers)) {
			rule.Headers = append(rule.Headers, wrenn.Header{Name: name, Text: r.Headers[name]})
		}
		out.Headers = append(out.Headers, rule)
	}
	out.Proxy, err = parseProxy(p.Proxy)
	return out, err
}

// parseProxy returns nil for nil.
func parseProxy(p *oapi.SetEgressProxy) (out *wrenn.EgressProxy, err error) {
	if p == nil {
		return nil, nil //nolint:nilnil // most policies have none
	}
	out = &wrenn.EgressProxy{Protocol: wrenn.ProxyProtocol(p.Protocol), Username: value(p.Username), Password: value(p.Password)}
	out.HasPassword = out.Password != ""
	if out.Host, out.Port, err = wrenn.ParseProxyAddress(p.Address); err != nil {
		return nil, err
	}
	if p.TLS != nil {
		out.TLS = &wrenn.ProxyTLS{ServerName: value(p.TLS.ServerName), CA: value(p.TLS.Ca)}
	}
	return out, out.Check()
}

// egressProxy shows no password. It returns nil for nil.
func egressProxy(p *wrenn.EgressProxy) *oapi.EgressProxy {
	if p == nil {
		return nil
	}
	out := &oapi.EgressProxy{Protocol: oapi.EgressProxyProtocol(p.Protocol), Address: p.Address(), Username: optional(p.Username), HasPassword: p.HasPassword}
	if p.TLS != nil {
		out.TLS = &oapi.EgressProxyTLS{ServerName: optional(p.TLS.ServerName), Ca: optional(p.TLS.CA)}
	}
	return out
}

// headerRules returns nil without rules.
func headerRules(rules []wrenn.HeaderRule) *[]oapi.HeaderRule {
	if len(rules) == 0 {
		return nil
	}
	out := make([]oapi.HeaderRule, len(rules))
	for i, r := range rules {
		out[i] = oapi.HeaderRule{Host: r.Host.String(), Headers: map[string]string{}}
		for _, h := range r.Headers {
			out[i].Headers[h.Name] = h.Text
		}
	}
	return &out
}

func policy(p wrenn.NetworkPolicy) oapi.NetworkPolicy {
	out := oapi.NetworkPolicy{Default: defaultOf(p), Allow: p.AllowTexts(), Deny: p.DenyTexts(), Headers: headerRules(p.Headers), Proxy: egressProxy(p.Proxy)}
	if len(p.DNSServers) > 0 {
		out.DNSServers = &[]string{}
		for _, addr := range p.DNSServers {
			*out.DNSServers = append(*out.DNSServers, addr.String())
		}
	}
	if len(p.Layers) > 0 {
		out.Layers = &[]oapi.NetworkLayerPolicy{}
		for _, l := range p.Layers {
			rules := l.Policy()
			*out.Layers = append(*out.Layers, oapi.NetworkLayerPolicy{
				Layer: oapi.NetworkLayerPolicyLayer(l.Layer), Default: defaultOf(rules), Allow: rules.AllowTexts(), Deny: rules.DenyTexts(),
			})
		}
	}
	return out
}

func defaultOf(p wrenn.NetworkPolicy) oapi.NetworkVerdict {
	if p.DenyByDefault {
		return oapi.Deny
	}
	return oapi.Allow
}

func parseLayer(p oapi.SetLayerPolicy) (wrenn.NetworkPolicy, error) {
	return wrenn.ParseNetworkPolicy(value(p.Default) == oapi.Deny, value(p.Allow), value(p.Deny))
}

func (h *handlers) GetTeamNetwork(ctx context.Context, _ oapi.GetTeamNetworkRequestObject) (oapi.GetTeamNetworkResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	p, err := h.s.service.TeamNetwork(ctx, callerOf(ctx))
	if err != nil {
		return nil, err
	}
	return oapi.GetTeamNetwork200JSONResponse{OneNetworkPolicyJSONResponse: oapi.OneNetworkPolicyJSONResponse{Body: policy(p)}}, nil
}

func (h *handlers) SetTeamNetwork(ctx context.Context, req oapi.SetTeamNetworkRequestObject) (oapi.SetTeamNetworkResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	p, err := parseLayer(*req.Body)
	if err == nil {
		err = h.s.service.SetTeamNetwork(ctx, callerOf(ctx), p)
	}
	if err != nil {
		return nil, err
	}
	return oapi.SetTeamNetwork200JSONResponse{OneNetworkPolicyJSONResponse: oapi.OneNetworkPolicyJSONResponse{Body: policy(p)}}, nil
}

func (h *handlers) GetTemplateNetwork(ctx context.Context, req oapi.GetTemplateNetworkRequestObject) (oapi.GetTemplateNetworkResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	p, err := h.s.service.TemplateNetwork(ctx, callerOf(ctx), req.Template)
	if err != nil {
		return nil, err
	}
	return oapi.GetTemplateNetwork200JSONResponse{OneNetworkPolicyJSONResponse: oapi.OneNetworkPolicyJSONResponse{Body: policy(p)}}, nil
}

func (h *handlers) SetTemplateNetwork(ctx context.Context, req oapi.SetTemplateNetworkRequestObject) (oapi.SetTemplateNetworkResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	p, err := parseLayer(*req.Body)
	if err == nil {
		err = h.s.service.SetTemplateNetwork(ctx, callerOf(ctx), req.Template, p)
	}
	if err != nil {
		return nil, err
	}
	return oapi.SetTemplateNetwork200JSONResponse{OneNetworkPolicyJSONResponse: oapi.OneNetworkPolicyJSONResponse{Body: policy(p)}}, nil
}

func (h *handlers) GetSandboxNetwork(ctx context.Context, req oapi.GetSandboxNetworkRequestObject) (oapi.GetSandboxNetworkResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	p, err := h.s.service.Network(ctx, callerOf(ctx), wrenn.SandboxID(req.ID))
	if err != nil {
		return nil, err
	}
	return oapi.GetSandboxNetwork200JSONResponse{OneNetworkPolicyJSONResponse: oapi.OneNetworkPolicyJSONResponse{Body: policy(p)}}, nil
}

func (h *handlers) SetSandboxNetwork(ctx context.Context, req oapi.SetSandboxNetworkRequestObject) (oapi.SetSandboxNetworkResponseObject, error) {
	wanted, err := parsePolicy(*req.Body)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	sb, err := h.s.service.SetNetwork(ctx, callerOf(ctx), wrenn.SandboxID(req.ID), wanted)
	if err != nil {
		return nil, err
	}
	return oapi.SetSandboxNetwork200JSONResponse{OneNetworkPolicyJSONResponse: oapi.OneNetworkPolicyJSONResponse{Body: policy(sb.Network)}}, nil
}
