package clienttest

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane/service"
)

const hookID = "wh_00000000000000000001"

func (f *fake) CreateWebhook(_ context.Context, _ service.Caller, want service.NewWebhook) (*wrenn.Webhook, string, error) {
	return &wrenn.Webhook{ID: hookID, URL: want.URL, Description: want.Description, Events: want.Events, Enabled: true, CreatedAt: made, UpdatedAt: made}, "whsec_x", nil
}

func (f *fake) ListWebhooks(ctx context.Context, c service.Caller) ([]wrenn.Webhook, error) {
	one, err := f.Webhook(ctx, c, hookID)
	return []wrenn.Webhook{*one}, err
}

func (f *fake) Webhook(_ context.Context, _ service.Caller, id wrenn.WebhookID) (*wrenn.Webhook, error) {
	if id != hookID {
		return nil, wrenn.Errorf(wrenn.NotFound, "there is none of that id")
	}
	return &wrenn.Webhook{ID: id, URL: "https://example.com/", DisabledReason: "the reason", FailingSince: made, CreatedAt: made, UpdatedAt: made}, nil
}

func (f *fake) UpdateWebhook(ctx context.Context, c service.Caller, id wrenn.WebhookID, change service.ChangeWebhook) (*wrenn.Webhook, error) {
	out, err := f.Webhook(ctx, c, id)
	if err == nil {
		out.Enabled, out.Events = *change.Enabled, *change.Events
	}
	return out, err
}

func (f *fake) DeleteWebhook(ctx context.Context, c service.Caller, id wrenn.WebhookID) error {
	_, err := f.Webhook(ctx, c, id)
	return err
}

func (f *fake) TestWebhook(context.Context, service.Caller, wrenn.WebhookID) (*wrenn.WebhookDelivery, error) {
	return &wrenn.WebhookDelivery{ID: "d", Event: wrenn.EventTest, State: wrenn.DeliveryFailed, Attempts: 1, Status: 500, Error: "no", CreatedAt: made, AttemptedAt: made}, nil
}

func (f *fake) WebhookDeliveries(_ context.Context, _ service.Caller, _ wrenn.WebhookID, limit int) ([]wrenn.WebhookDelivery, error) {
	return []wrenn.WebhookDelivery{{ID: "d", Event: "sandbox.running", Sandbox: boxID, State: wrenn.DeliveryPending, Attempts: limit, CreatedAt: made, NextAt: made}}, nil
}

func TestWebhooks(t *testing.T) {
	c := serve(t, &fake{})
	want := client.Webhook{ID: hookID, URL: "https://example.com/x", Description: "ci", Events: []string{"sandbox.running"}, Enabled: true, CreatedAt: made, UpdatedAt: made}
	got, secret, err := c.CreateWebhook(t.Context(), client.CreateWebhook{URL: want.URL, Events: want.Events, Description: "ci"})
	if diff := cmp.Diff(want, got); err != nil || secret != "whsec_x" || diff != "" {
		t.Errorf("CreateWebhook: %q, %v (-want +got):\n%s", secret, err, diff)
	}
	want = client.Webhook{ID: hookID, URL: "https://example.com/", Events: []string{}, DisabledReason: "the reason", FailingSince: made, CreatedAt: made, UpdatedAt: made}
	if one, err := c.Webhook(t.Context(), hookID); err != nil || cmp.Diff(&want, one) != "" {
		t.Errorf("Webhook: %+v, %v", one, err)
	}
	if all, err := c.Webhooks(t.Context()); err != nil || cmp.Diff([]client.Webhook{want}, all) != "" {
		t.Errorf("Webhooks: %+v, %v", all, err)
	}
	changed, err := c.UpdateWebhook(t.Context(), hookID, client.UpdateWebhook{Enabled: new(true), Events: &[]string{"sandbox.failed"}})
	if err != nil || !changed.Enabled || len(changed.Events) != 1 {
		t.Errorf("UpdateWebhook: %+v, %v", changed, err)
	}
	sent, err := c.TestWebhook(t.Context(), hookID)
	if diff := cmp.Diff(&client.WebhookDelivery{ID: "d", Event: "webhook.test", State: "failed", Attempts: 1, Status: 500, Error: "no", CreatedAt: made, AttemptedAt: made}, sent); err != nil || diff != "" {
		t.Errorf("TestWebhook: %v (-want +got):\n%s", err, diff)
	}
	list, err := c.WebhookDeliveries(t.Context(), hookID, 7)
	if err != nil || len(list) != 1 || list[0].Attempts != 7 || list[0].SandboxID != string(boxID) || list[0].NextAt != made || list[0].AttemptedAt != (time.Time{}) {
		t.Errorf("WebhookDeliveries: %+v, %v", list, err)
	}
	if err := c.DeleteWebhook(t.Context(), "wh_00000000000000000009"); client.CodeOf(err) != client.NotFound {
		t.Errorf("deleted what is missing: %v", err)
	}
}
