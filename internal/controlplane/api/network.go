package api

import (
	"context"

	"wrenn"
	"wrenn/internal/controlplane/api/internal/oapi"
	"wrenn/internal/controlplane/service"
)

func parsePolicy(p oapi.SetNetworkPolicy) (wrenn.NetworkPolicy, error) {
	return wrenn.ParseNetworkPolicy(value(p.Default) == oapi.Deny, value(p.Allow), value(p.Deny))
}

func policy(p wrenn.NetworkPolicy) oapi.NetworkPolicy {
	out := oapi.NetworkPolicy{Default: oapi.Allow, Allow: p.AllowTexts(), Deny: p.DenyTexts()}
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
