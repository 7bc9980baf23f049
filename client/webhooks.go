package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Webhook is a URL to which events of the team's sandboxes are sent, without its secret.
type Webhook struct {
	ID             string    `json:"id"`
	URL            string    `json:"url"`
	Description    string    `json:"description"`
	Events         []string  `json:"events"` // the kinds that are sent, like "sandbox.running"; none are all
	Enabled        bool      `json:"enabled"`
	DisabledReason string    `json:"disabled_reason,omitempty"`
	FailingSince   time.Time `json:"failing_since,omitzero"` // the first failure after the last success; zero: it works
	CreatedAt      time.Time `json:"created_at"`
	UpdatedAt      time.Time `json:"updated_at"`
}

// CreateWebhook says what webhook Client.CreateWebhook makes. Only URL is required.
type CreateWebhook struct {
	URL         string   `json:"url"`
	Events      []string `json:"events,omitempty"` // none are all
	Description string   `json:"description,omitempty"`
}

// UpdateWebhook says what Client.UpdateWebhook changes; what is nil stays.
type UpdateWebhook struct {
	URL         *string   `json:"url,omitempty"`
	Events      *[]string `json:"events,omitempty"`
	Description *string   `json:"description,omitempty"`
	Enabled     *bool     `json:"enabled,omitempty"`
}

// WebhookDelivery is an event that was or will be sent to a webhook.
type WebhookDelivery struct {
	ID          string    `json:"id"` // the header webhook-id of all attempts
	Event       string    `json:"event"`
	SandboxID   string    `json:"sandbox_id,omitempty"` // "" for a test
	State       string    `json:"state"`                // "pending", "delivered" or "failed"
	Attempts    int       `json:"attempts"`
	Status      int       `json:"status,omitempty"` // of the last answer; 0 is none
	Error       string    `json:"error,omitempty"`  // of the last attempt
	CreatedAt   time.Time `json:"created_at"`
	AttemptedAt time.Time `json:"attempted_at,omitzero"` // zero before the first attempt
	NextAt      time.Time `json:"next_at,omitzero"`      // zero unless it is pending
}

// CreateWebhook makes a webhook. The secret of its signatures is returned this once.
func (c *Client) CreateWebhook(ctx context.Context, want CreateWebhook) (made Webhook, secret string, err error) {
	var out struct {
		Webhook

		Secret string `json:"secret"`
	}
	err = c.call(ctx, request{method: http.MethodPost, path: "/v1/webhooks", body: want}, &out)
	return out.Webhook, out.Secret, err
}

// Webhooks returns the team's webhooks, the oldest first.
func (c *Client) Webhooks(ctx context.Context) ([]Webhook, error) {
	var out []Webhook
	err := c.call(ctx, request{method: http.MethodGet, path: "/v1/webhooks"}, &out)
	return out, err
}

// Webhook returns a webhook by its id.
func (c *Client) Webhook(ctx context.Context, id string) (*Webhook, error) {
	out := &Webhook{}
	if err := c.call(ctx, request{method: http.MethodGet, path: webhookPath(id)}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// UpdateWebhook changes a webhook, and returns it as it is then.
func (c *Client) UpdateWebhook(ctx context.Context, id string, change UpdateWebhook) (*Webhook, error) {
	out := &Webhook{}
	if err := c.call(ctx, request{method: http.MethodPatch, path: webhookPath(id), body: change}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// DeleteWebhook deletes a webhook; what waits for it is not sent.
func (c *Client) DeleteWebhook(ctx context.Context, id string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: webhookPath(id)}, nil)
}

// TestWebhook has an event of the kind "webhook.test" sent once, and returns what became
// of it. The error is nil also when the receiver did not accept it.
func (c *Client) TestWebhook(ctx context.Context, id string) (*WebhookDelivery, error) {
	out := &WebhookDelivery{}
	if err := c.call(ctx, request{method: http.MethodPost, path: webhookPath(id) + "/test"}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// WebhookDeliveries returns the last deliveries of a webhook, newest first, at most 200; a
// limit of 0 is 50.
func (c *Client) WebhookDeliveries(ctx context.Context, id string, limit int) ([]WebhookDelivery, error) {
	path := webhookPath(id) + "/deliveries"
	if limit > 0 {
		path += "?limit=" + strconv.Itoa(limit)
	}
	var out []WebhookDelivery
	err := c.call(ctx, request{method: http.MethodGet, path: path}, &out)
	return out, err
}

func webhookPath(id string) string { return "/v1/webhooks/" + url.PathEscape(id) }
