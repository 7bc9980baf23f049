package api

import (
	"context"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
)

// portVariable stands for the number of a port in the URL of ports.
const portVariable = "{port}"

func parseIngress(p oapi.SetPorts) wrenn.Ingress {
	return wrenn.Ingress{Private: value(p.Private), MaskHost: value(p.MaskHost), HTTPSPorts: value(p.HTTPS)}
}

// sandboxWithPorts returns sb as sandbox does, and how its ports are reached if it has
// not ended.
func (h *handlers) sandboxWithPorts(ctx context.Context, sb *wrenn.Sandbox) (oapi.Sandbox, error) {
	out := sandbox(sb)
	if sb.State.Ended() {
		return out, nil
	}
	ingress, err := h.s.service.Ingress(ctx, sb.ID)
	if wrenn.CodeOf(err) == wrenn.NotFound { // it has ended since
		return out, nil
	}
	if err != nil {
		return out, err
	}
	out.Ports = &oapi.Ports{URL: h.s.portsURL(sb.ID), Private: ingress.Private}
	if ingress.MaskHost != "" {
		out.Ports.MaskHost = &ingress.MaskHost
	}
	if len(ingress.HTTPSPorts) > 0 {
		out.Ports.HTTPS = &ingress.HTTPSPorts
	}
	if ingress.Private && callerOf(ctx).Scopes.Allow(wrenn.ScopeSandboxes) {
		token, err := h.s.service.TrafficToken(ctx, sb.ID)
		if err != nil {
			return out, err
		}
		out.Ports.Token = &token
	}
	return out, nil
}

func (s *Server) portsURL(id wrenn.SandboxID) string {
	if s.domain == "" {
		return "/p/" + string(id) + "/" + portVariable + "/"
	}
	return "https://" + portVariable + "-" + string(id) + "." + s.domain + "/"
}
