package api

import (
	"context"
	"net/netip"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
)

func (h *handlers) GetSandboxNetworkLog(ctx context.Context, req oapi.GetSandboxNetworkLogRequestObject) (oapi.GetSandboxNetworkLogResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	wait := time.Duration(value(req.Params.WaitSec)) * time.Second
	log, err := h.s.service.EgressLog(ctx, callerOf(ctx), wrenn.SandboxID(req.ID), uint64(value(req.Params.After)), wait)
	if err != nil {
		return nil, err
	}
	body := oapi.NetworkLog{Events: make([]oapi.NetworkEvent, len(log.Events)), Dropped: int64(log.Dropped)}
	for i := range log.Events {
		body.Events[i] = networkEvent(&log.Events[i])
	}
	return oapi.GetSandboxNetworkLog200JSONResponse{Body: body}, nil
}

func networkEvent(e *wrenn.EgressEvent) oapi.NetworkEvent {
	out := oapi.NetworkEvent{
		Seq: int64(e.Seq), Time: e.At, Protocol: string(e.Protocol), Verdict: oapi.NetworkEventVerdict(e.Verdict),
		Name: optional(e.Name), Address: optional(addressText(e.Address)), Reason: optional(e.Reason), Via: optional(e.Via),
	}
	if e.Port != 0 {
		out.Port = new(int(e.Port))
	}
	if e.Verdict == wrenn.EgressEnded {
		out.SentBytes, out.ReceivedBytes, out.DurationMs = new(e.Sent), new(e.Received), new(e.Took.Milliseconds())
	}
	return out
}

func (h *handlers) ExplainSandboxNetwork(ctx context.Context, req oapi.ExplainSandboxNetworkRequestObject) (oapi.ExplainSandboxNetworkResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	e, err := h.s.service.ExplainEgress(ctx, callerOf(ctx), wrenn.SandboxID(req.ID), req.Params.Host, uint16(value(req.Params.Port)))
	if err != nil {
		return nil, err
	}
	body := oapi.NetworkExplanation{Allowed: e.Allowed, Rule: optional(e.Rule), Layer: layerText(e.Layer), Reason: e.Reason, Addresses: make([]oapi.NetworkAddress, len(e.Addresses))}
	for i, a := range e.Addresses {
		body.Addresses[i] = oapi.NetworkAddress{Address: a.Address.String(), Allowed: a.Allowed, Rule: a.Rule, Layer: layerText(a.Layer)}
	}
	return oapi.ExplainSandboxNetwork200JSONResponse{Body: body}, nil
}

// layerText returns nil for "", which is that of an older host.
func layerText(l wrenn.NetworkLayer) *oapi.NetworkLayer {
	if l == "" {
		return nil
	}
	return new(oapi.NetworkLayer(l))
}

// optional returns nil for "".
func optional(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

func addressText(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.String()
}
