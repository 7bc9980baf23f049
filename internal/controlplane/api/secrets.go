package api

import (
	"context"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

func (h *handlers) SetSecret(ctx context.Context, req oapi.SetSecretRequestObject) (oapi.SetSecretResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	set := service.NewSecret{Name: req.Secret, Value: req.Body.Value}
	if req.Body.Metadata != nil {
		set.Metadata = *req.Body.Metadata
	}
	found, _, err := h.s.service.SetSecret(ctx, callerOf(ctx), set)
	if err != nil {
		return nil, err
	}
	return oapi.SetSecret200JSONResponse{Body: secret(found)}, nil
}

func (h *handlers) ListSecrets(ctx context.Context, _ oapi.ListSecretsRequestObject) (oapi.ListSecretsResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	answer := oapi.ListSecrets200JSONResponse{Body: []oapi.Secret{}} // none is [], not null
	for after := ""; ; {
		page, err := h.s.service.ListSecrets(ctx, callerOf(ctx), after, 0)
		if err != nil {
			return nil, err
		}
		for i := range page {
			answer.Body = append(answer.Body, secret(&page[i]))
		}
		if len(page) < maxSecretPage {
			return answer, nil
		}
		after = page[len(page)-1].Name
	}
}

// maxSecretPage is how many secrets the service returns at once.
const maxSecretPage = 1000

func (h *handlers) GetSecret(ctx context.Context, req oapi.GetSecretRequestObject) (oapi.GetSecretResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	found, err := h.s.service.Secret(ctx, callerOf(ctx), req.Secret)
	if err != nil {
		return nil, err
	}
	return oapi.GetSecret200JSONResponse{Body: secret(found)}, nil
}

func (h *handlers) DeleteSecret(ctx context.Context, req oapi.DeleteSecretRequestObject) (oapi.DeleteSecretResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	if err := h.s.service.DeleteSecret(ctx, callerOf(ctx), req.Secret); err != nil {
		return nil, err
	}
	return oapi.DeleteSecret204Response{}, nil
}

func secret(s *wrenn.Secret) oapi.Secret {
	metadata := s.Metadata
	if metadata == nil {
		metadata = map[string]string{}
	}
	return oapi.Secret{ID: string(s.ID), Name: s.Name, Version: s.Version, Metadata: metadata, CreatedAt: s.CreatedAt.UTC(), UpdatedAt: s.UpdatedAt.UTC()}
}
