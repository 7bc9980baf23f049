package api

import (
	"context"
	"encoding/base64"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/hostjoin"
)

func (h *handlers) ListHosts(ctx context.Context, _ oapi.ListHostsRequestObject) (oapi.ListHostsResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	hosts, err := h.s.service.ListHosts(ctx, callerOf(ctx))
	if err != nil {
		return nil, err
	}
	answer := oapi.ListHosts200JSONResponse{Body: []oapi.Host{}} // none is [], not null
	for i := range hosts {
		answer.Body = append(answer.Body, host(&hosts[i]))
	}
	return answer, nil
}

func (h *handlers) GetHost(ctx context.Context, req oapi.GetHostRequestObject) (oapi.GetHostResponseObject, error) {
	found, err := h.oneHost(ctx, req.Host, h.s.service.Host)
	return oapi.GetHost200JSONResponse{Body: found}, err
}

func (h *handlers) CordonHost(ctx context.Context, req oapi.CordonHostRequestObject) (oapi.CordonHostResponseObject, error) {
	now, err := h.oneHost(ctx, req.Host, h.s.service.CordonHost)
	return oapi.CordonHost200JSONResponse{Body: now}, err
}

func (h *handlers) UncordonHost(ctx context.Context, req oapi.UncordonHostRequestObject) (oapi.UncordonHostResponseObject, error) {
	now, err := h.oneHost(ctx, req.Host, h.s.service.UncordonHost)
	return oapi.UncordonHost200JSONResponse{Body: now}, err
}

func (h *handlers) DrainHost(ctx context.Context, req oapi.DrainHostRequestObject) (oapi.DrainHostResponseObject, error) {
	now, err := h.oneHost(ctx, req.Host, h.s.service.DrainHost)
	return oapi.DrainHost200JSONResponse{Body: now}, err
}

func (h *handlers) RemoveHost(ctx context.Context, req oapi.RemoveHostRequestObject) (oapi.RemoveHostResponseObject, error) {
	now, err := h.oneHost(ctx, req.Host, h.s.service.RemoveHost)
	return oapi.RemoveHost200JSONResponse{Body: now}, err
}

func (h *handlers) LoseHost(ctx context.Context, req oapi.LoseHostRequestObject) (oapi.LoseHostResponseObject, error) {
	now, err := h.oneHost(ctx, req.Host, h.s.service.LoseHost)
	return oapi.LoseHost200JSONResponse{Body: now}, err
}

// oneHost calls do for one host, within the time limit of a call, and returns its
// result: NotFound for a text that cannot be a host's id.
func (h *handlers) oneHost(ctx context.Context, text string, do func(context.Context, service.Caller, wrenn.HostID) (*service.HostState, error)) (oapi.Host, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	id, err := wrenn.ParseHostID(text)
	if err != nil {
		return oapi.Host{}, wrenn.Errorf(wrenn.NotFound, "there is no host %.64q", text)
	}
	found, err := do(ctx, callerOf(ctx), id)
	if err != nil {
		return oapi.Host{}, err
	}
	return host(found), nil
}

func (h *handlers) ExplainPlacement(ctx context.Context, req oapi.ExplainPlacementRequestObject) (oapi.ExplainPlacementResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	p, err := h.s.service.ExplainPlacement(ctx, callerOf(ctx), wrenn.SandboxID(req.ID))
	if err != nil {
		return nil, err
	}
	out := oapi.Placement{
		Sandbox: string(p.Sandbox.ID), Status: oapi.State(p.Sandbox.State), Host: string(p.Sandbox.Host), Requires: requires(p.Sandbox.Requires),
		Decisions: []oapi.PlacementDecision{}, Hosts: []oapi.PlacementHost{}, // none is [], not null
	}
	for _, d := range p.Decisions {
		out.Decisions = append(out.Decisions, oapi.PlacementDecision{At: d.At.UTC(), Host: string(d.Host), Actor: d.Actor, Reason: d.Reason})
	}
	for _, v := range p.Hosts {
		one := oapi.PlacementHost{Host: string(v.Host), Here: v.Here, Fits: v.Fits, Reason: v.Reason}
		if v.Fits {
			one.Cost = &v.Cost
		}
		out.Hosts = append(out.Hosts, one)
	}
	return oapi.ExplainPlacement200JSONResponse{Body: out}, nil
}

// requires returns labels for an answer, nil for none.
func requires(labels map[string]string) *oapi.Requires {
	if len(labels) == 0 {
		return nil
	}
	return new(oapi.Requires(labels))
}

func (h *handlers) CreateHostToken(ctx context.Context, req oapi.CreateHostTokenRequestObject) (oapi.CreateHostTokenResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	made, err := h.s.service.CreateHostToken(ctx, callerOf(ctx), service.NewHostToken{
		Host: wrenn.HostID(value(req.Body.Host)), Name: value(req.Body.Name), Zone: value(req.Body.Zone), Labels: value(req.Body.Labels),
		TTL: time.Duration(value(req.Body.TTLSec)) * time.Second,
	})
	if err != nil {
		return nil, err
	}
	return oapi.CreateHostToken201JSONResponse{Body: oapi.HostToken{Token: made.Token, Host: string(made.Host), ExpiresAt: made.ExpiresAt}}, nil
}

func (h *handlers) JoinHost(ctx context.Context, req oapi.JoinHostRequestObject) (oapi.JoinHostResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	got, err := h.s.service.JoinHost(ctx, service.JoinHost{Token: req.Body.Token, CSR: req.Body.Csr, URL: req.Body.URL, Name: value(req.Body.Name)})
	if err != nil {
		return nil, err
	}
	return oapi.JoinHost200JSONResponse{Body: hostCertificate(got)}, nil
}

func (h *handlers) RenewHost(ctx context.Context, req oapi.RenewHostRequestObject) (oapi.RenewHostResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	proof, err := base64.StdEncoding.DecodeString(req.Body.Signature)
	if err != nil {
		return nil, wrenn.Errorf(wrenn.Invalid, "signature is not in base64")
	}
	got, err := h.s.service.RenewHost(ctx, service.RenewHost{
		Renewal: hostjoin.Renewal{Certificate: req.Body.Certificate, CSR: req.Body.Csr, URL: req.Body.URL}, Proof: proof,
	})
	if err != nil {
		return nil, err
	}
	return oapi.RenewHost200JSONResponse{Body: hostCertificate(got)}, nil
}

func hostCertificate(c *service.HostCertificate) oapi.HostCertificate {
	return oapi.HostCertificate{Host: string(c.Host), Certificate: string(c.Certificate), Authority: string(c.Authority), CertificateUntil: c.Until.UTC(), Now: c.Now.UTC()}
}

func host(h *service.HostState) oapi.Host {
	labels := h.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	c := h.Info.Capacity
	out := oapi.Host{
		ID: string(h.ID), Name: h.Name, URL: h.URL, Zone: h.Zone, Labels: labels, Status: oapi.HostStatus(h.Status), Joined: h.Joined,
		Reachable: h.Reachable, Version: h.Info.Version, Driver: h.Info.Driver,
		Capacity: oapi.HostCapacity{
			Sandboxes: c.Sandboxes, SandboxesUsed: c.SandboxesUsed, MemoryMb: c.MemoryMiB, MemoryMbUsed: c.MemoryMiBUsed,
			DiskMb: c.DiskMiB, DiskFreeMb: c.DiskMiBFree, DisksMb: c.DisksMiB, DisksMbUsed: c.DisksMiBUsed,
		},
		CreatedAt: h.CreatedAt.UTC(), LastSeenAt: moment(h.SeenAt), CertificateUntil: moment(h.CertificateUntil),
	}
	if p := h.Info.Platform; p != (wrenn.Platform{}) {
		out.Platform = new(p.String())
	}
	if d := h.Drain; d != nil {
		out.Drain = &oapi.Drain{Left: d.Left, Moving: d.Moving, NotMoved: []oapi.NotMoved{}} // none is [], not null
		for _, sb := range d.Stuck {
			out.Drain.NotMoved = append(out.Drain.NotMoved, oapi.NotMoved{Sandbox: string(sb.ID), Reason: sb.Reason})
		}
	}
	return out
}
