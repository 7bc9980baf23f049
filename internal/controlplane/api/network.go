package api

import (
	"context"
	"maps"
	"slices"

	"wrenn"
	"wrenn/internal/controlplane/api/internal/oapi"
	"wrenn/internal/controlplane/service"
)

func parsePolicy(p oapi.SetNetworkPolicy) (wrenn.NetworkPolicy, error) {
	out, err := wrenn.ParseNetworkPolicy(value(p.Default) == oapi.Deny, value(p.Allow), value(p.Deny))
	if err != nil {
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
	return out, nil
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
	out := oapi.NetworkPolicy{Default: oapi.Allow, Allow: p.AllowTexts(), Deny: p.DenyTexts(), Headers: headerRules(p.Headers)}
	if p.DenyByDefault {
		out.Default = oapi.Deny
	}
	return out
}

func (h *handlers) GetSandboxNetwork(ctx context.Context, req oapi.GetSandboxNetworkRequestObject) (oapi.GetSandboxNetworkResponseObject, error) {
	p, err := h.network(ctx, req.ID, h.s.service.Sandbox)
	if err != nil {
		return nil, err
	}
	return oapi.GetSandboxNetwork200JSONResponse{OneNetworkPolicyJSONResponse: *p}, nil
}

func (h *handlers) SetSandboxNetwork(ctx context.Context, req oapi.SetSandboxNetworkRequestObject) (oapi.SetSandboxNetworkResponseObject, error) {
	wanted, err := parsePolicy(*req.Body)
	if err != nil {
		return nil, err
	}
	p, err := h.network(ctx, req.ID, func(ctx context.Context, c service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
		return h.s.service.SetNetwork(ctx, c, id, wanted)
	})
	if err != nil {
		return nil, err
	}
	return oapi.SetSandboxNetwork200JSONResponse{OneNetworkPolicyJSONResponse: *p}, nil
}

// network calls do for one sandbox, within the time limit of a call, and returns
// the policy of its result.
func (h *handlers) network(ctx context.Context, id string, do func(context.Context, service.Caller, wrenn.SandboxID) (*wrenn.Sandbox, error)) (*oapi.OneNetworkPolicyJSONResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	sb, err := do(ctx, callerOf(ctx), wrenn.SandboxID(id))
	if err != nil {
		return nil, err
	}
	return &oapi.OneNetworkPolicyJSONResponse{Body: policy(sb.Network)}, nil
}
