package api

import (
	"context"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
)

func (h *handlers) GetSandboxMetrics(ctx context.Context, req oapi.GetSandboxMetricsRequestObject) (oapi.GetSandboxMetricsResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	samples, err := h.s.service.SandboxMetrics(ctx, callerOf(ctx), wrenn.SandboxID(req.ID), unixTime(req.Params.Start), unixTime(req.Params.End))
	if err != nil {
		return nil, err
	}
	body := oapi.Metrics{Samples: make([]oapi.MetricsSample, len(samples))}
	for i := range samples {
		body.Samples[i] = oapi.MetricsSample{
			Time: samples[i].At, Cpus: samples[i].CPUs, CPUPercent: samples[i].CPUPercent,
			MemoryUsedBytes: samples[i].MemoryUsed, MemoryTotalBytes: samples[i].MemoryTotal, MemoryCacheBytes: samples[i].MemoryCache,
			DiskUsedBytes: samples[i].DiskUsed, DiskTotalBytes: samples[i].DiskTotal,
		}
	}
	return oapi.GetSandboxMetrics200JSONResponse{Body: body}, nil
}

// unixTime returns the time of Unix seconds; zero for none.
func unixTime(seconds *int64) time.Time {
	if seconds == nil {
		return time.Time{}
	}
	return time.Unix(*seconds, 0)
}
