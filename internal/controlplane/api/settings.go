package api

import (
	"context"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

func (h *handlers) ChangeSandbox(ctx context.Context, req oapi.ChangeSandboxRequestObject) (oapi.ChangeSandboxResponseObject, error) {
	change := service.ChangeSandbox{
		OnTimeout: (*wrenn.OnTimeout)(req.Body.OnTimeout), AutoResume: req.Body.AutoResume, OnHostLoss: (*wrenn.OnHostLoss)(req.Body.OnHostLoss),
	}
	if every := req.Body.CheckpointEverySec; every != nil {
		change.CheckpointEvery = new(time.Duration(*every) * time.Second)
	}
	sb, err := h.change(ctx, req.ID, func(ctx context.Context, c service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
		return h.s.service.ChangeSandbox(ctx, c, id, change)
	})
	if err != nil {
		return nil, err
	}
	return oapi.ChangeSandbox200JSONResponse{OneSandboxJSONResponse: *sb}, nil
}
