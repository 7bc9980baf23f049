package api

import (
	"context"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

func (h *handlers) CreateWebhook(ctx context.Context, req oapi.CreateWebhookRequestObject) (oapi.CreateWebhookResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	made, secret, err := h.s.service.CreateWebhook(ctx, callerOf(ctx), service.NewWebhook{
		URL: req.Body.URL, Description: value(req.Body.Description), Events: textsOf(value(req.Body.Events)),
	})
	if err != nil {
		return nil, err
	}
	w := webhook(made)
	return oapi.CreateWebhook201JSONResponse{Body: oapi.CreatedWebhook{
		ID: w.ID, URL: w.URL, Description: w.Description, Events: w.Events, Enabled: w.Enabled, CreatedAt: w.CreatedAt, UpdatedAt: w.UpdatedAt, Secret: secret,
	}}, nil
}

func (h *handlers) ListWebhooks(ctx context.Context, _ oapi.ListWebhooksRequestObject) (oapi.ListWebhooksResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	all, err := h.s.service.ListWebhooks(ctx, callerOf(ctx))
	if err != nil {
		return nil, err
	}
	answer := oapi.ListWebhooks200JSONResponse{Body: []oapi.Webhook{}} // none is [], not null
	for i := range all {
		answer.Body = append(answer.Body, webhook(&all[i]))
	}
	return answer, nil
}

// webhookID returns the id in a path; what cannot be one is NotFound.
func webhookID(text string) (wrenn.WebhookID, error) {
	id, err := wrenn.ParseWebhookID(text)
	if err != nil {
		return "", wrenn.Errorf(wrenn.NotFound, "there is no webhook of that id")
	}
	return id, nil
}

func (h *handlers) GetWebhook(ctx context.Context, req oapi.GetWebhookRequestObject) (oapi.GetWebhookResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	id, err := webhookID(req.Webhook)
	if err != nil {
		return nil, err
	}
	found, err := h.s.service.Webhook(ctx, callerOf(ctx), id)
	if err != nil {
		return nil, err
	}
	return oapi.GetWebhook200JSONResponse{Body: webhook(found)}, nil
}

func (h *handlers) UpdateWebhook(ctx context.Context, req oapi.UpdateWebhookRequestObject) (oapi.UpdateWebhookResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	id, err := webhookID(req.Webhook)
	if err != nil {
		return nil, err
	}
	change := service.ChangeWebhook{URL: req.Body.URL, Description: req.Body.Description, Enabled: req.Body.Enabled}
	if req.Body.Events != nil {
		change.Events = new(textsOf(*req.Body.Events))
	}
	changed, err := h.s.service.UpdateWebhook(ctx, callerOf(ctx), id, change)
	if err != nil {
		return nil, err
	}
	return oapi.UpdateWebhook200JSONResponse{Body: webhook(changed)}, nil
}

func (h *handlers) DeleteWebhook(ctx context.Context, req oapi.DeleteWebhookRequestObject) (oapi.DeleteWebhookResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	id, err := webhookID(req.Webhook)
	if err != nil {
		return nil, err
	}
	if err := h.s.service.DeleteWebhook(ctx, callerOf(ctx), id); err != nil {
		return nil, err
	}
	return oapi.DeleteWebhook204Response{}, nil
}

func (h *handlers) TestWebhook(ctx context.Context, req oapi.TestWebhookRequestObject) (oapi.TestWebhookResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	id, err := webhookID(req.Webhook)
	if err != nil {
		return nil, err
	}
	sent, err := h.s.service.TestWebhook(ctx, callerOf(ctx), id)
	if err != nil {
		return nil, err
	}
	return oapi.TestWebhook200JSONResponse{Body: delivery(sent)}, nil
}

func (h *handlers) ListWebhookDeliveries(ctx context.Context, req oapi.ListWebhookDeliveriesRequestObject) (oapi.ListWebhookDeliveriesResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	id, err := webhookID(req.Webhook)
	if err != nil {
		return nil, err
	}
	all, err := h.s.service.WebhookDeliveries(ctx, callerOf(ctx), id, value(req.Params.Limit))
	if err != nil {
		return nil, err
	}
	answer := oapi.ListWebhookDeliveries200JSONResponse{Body: []oapi.WebhookDelivery{}}
	for i := range all {
		answer.Body = append(answer.Body, delivery(&all[i]))
	}
	return answer, nil
}

func webhook(w *wrenn.Webhook) oapi.Webhook {
	out := oapi.Webhook{
		ID: string(w.ID), URL: w.URL, Description: w.Description, Events: oapi.WebhookEvents{}, Enabled: w.Enabled, DisabledReason: optional(w.DisabledReason),
		FailingSince: moment(w.FailingSince), CreatedAt: w.CreatedAt.UTC(), UpdatedAt: w.UpdatedAt.UTC(),
	}
	for _, kind := range w.Events {
		out.Events = append(out.Events, oapi.WebhookEvent(kind))
	}
	return out
}

func delivery(d *wrenn.WebhookDelivery) oapi.WebhookDelivery {
	out := oapi.WebhookDelivery{
		ID: d.ID, Event: d.Event, SandboxID: optional(string(d.Sandbox)), State: oapi.WebhookDeliveryState(d.State), Attempts: d.Attempts, Error: optional(d.Error),
		CreatedAt: d.CreatedAt.UTC(), AttemptedAt: moment(d.AttemptedAt), NextAt: moment(d.NextAt),
	}
	if d.Status != 0 {
		out.Status = new(d.Status)
	}
	return out
}
