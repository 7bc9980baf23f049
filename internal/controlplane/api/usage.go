package api

import (
	"context"

	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

// GetUsage answers with what a team used over time.
func (h *handlers) GetUsage(ctx context.Context, req oapi.GetUsageRequestObject) (oapi.GetUsageResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	use, err := h.s.service.Usage(ctx, callerOf(ctx), service.UsageQuery{
		Team: value(req.Params.Team), From: value(req.Params.From), To: value(req.Params.To), Step: string(value(req.Params.Step)),
	})
	if err != nil {
		return nil, err
	}
	answer := oapi.Usage{
		From: use.From, To: use.To, Step: oapi.UsageStep(use.Step), CountedFrom: use.Counted.From, CountedUntil: use.Counted.Until,
		Total: used(&use.Total), Steps: make([]oapi.UsedInStep, 0, len(use.Steps)),
	}
	for i := range use.Steps {
		u := used(&use.Steps[i])
		answer.Steps = append(answer.Steps, oapi.UsedInStep{
			From: use.Steps[i].Begins, Creates: u.Creates, SandboxSeconds: u.SandboxSeconds, PausedSeconds: u.PausedSeconds, VcpuSeconds: u.VcpuSeconds,
			MemoryMibSeconds: u.MemoryMibSeconds, DiskMibSeconds: u.DiskMibSeconds, VolumeMibSeconds: u.VolumeMibSeconds, TemplateMibSeconds: u.TemplateMibSeconds,
		})
	}
	return oapi.GetUsage200JSONResponse{Body: answer}, nil
}

func used(u *service.UsedStep) oapi.Used {
	return oapi.Used{
		Creates: u.Creates, SandboxSeconds: u.Sandboxes.Seconds(), PausedSeconds: u.Paused.Seconds(), VcpuSeconds: u.VCPUs.Seconds(),
		MemoryMibSeconds: u.MemoryMiB.Seconds(), DiskMibSeconds: u.DiskMiB.Seconds(), VolumeMibSeconds: u.VolumeMiB.Seconds(), TemplateMibSeconds: u.TemplateMiB.Seconds(),
	}
}

// ListLimits answers with the limits of the caller's team.
func (h *handlers) ListLimits(ctx context.Context, _ oapi.ListLimitsRequestObject) (oapi.ListLimitsResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	limits, err := h.s.service.Limits(ctx, callerOf(ctx))
	if err != nil {
		return nil, err
	}
	answer := oapi.ListLimits200JSONResponse{Body: make([]oapi.Limit, 0, len(limits))}
	for _, l := range limits {
		out := oapi.Limit{Name: l.Name, Of: oapi.LimitOfTeam, Allowed: l.Allowed, Unit: l.Unit, ChangedBy: oapi.LimitChangedBy(l.ChangedBy), Setting: l.Setting}
		if l.OfSandbox {
			out.Of = oapi.LimitOfSandbox
		}
		if l.Used != nil {
			out.Used = new(float64(*l.Used))
		}
		answer.Body = append(answer.Body, out)
	}
	return answer, nil
}
