package api

import (
	"context"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

func (h *handlers) SetSandboxMetadata(ctx context.Context, req oapi.SetSandboxMetadataRequestObject) (oapi.SetSandboxMetadataResponseObject, error) {
	sb, err := h.change(ctx, req.ID, func(ctx context.Context, c service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
		return h.s.service.SetMetadata(ctx, c, id, req.Body.Metadata)
	})
	if err != nil {
		return nil, err
	}
	return oapi.SetSandboxMetadata200JSONResponse{OneSandboxJSONResponse: *sb}, nil
}
