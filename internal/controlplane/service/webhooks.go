package service

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/webhook"
)

const (
	// deliveryPage is the default number of deliveries that are listed, and maxDeliveryPage the most.
	deliveryPage, maxDeliveryPage = 50, 200
)

// Webhooks are the use cases of webhooks: URLs of a team to which events of its sandboxes
// are sent. Another team's webhook is NotFound.
type Webhooks struct {
	*core

	sender  *webhook.Sender
	testing sync.Map // webhooks that are being tested here
}

// NewWebhook is a webhook to make.
type NewWebhook struct {
	URL         string
	Description string
	Events      []string // see wrenn.WebhookEvents; none are all
}

// CreateWebhook makes a webhook and the secret of its signatures, which is returned this
// once. Exhausted at the team's limit, FailedPrecondition when this server has no key to
// encrypt the secret with.
func (s *Webhooks) CreateWebhook(ctx context.Context, c Caller, want NewWebhook) (made *wrenn.Webhook, secret string, err error) {
	if err = wrenn.CheckWebhook(want.Events, want.Description); err == nil {
		err = s.sender.CheckURL(want.URL)
	}
	if err != nil {
		return nil, "", err
	}
	id, secret := wrenn.NewWebhookID(), webhook.NewSecret()
	sealed, err := s.sealWebhook(c.Team, id, []byte(secret))
	if err != nil {
		return nil, "", err
	}
	made, err = s.store.CreateWebhook(ctx, wrenn.Webhook{URL: want.URL, Description: want.Description, Events: want.Events}, sealed)
	return made, secret, err
}

// webhookBelongsTo is what the secret of a webhook is encrypted with.
func webhookBelongsTo(team wrenn.TeamID, id wrenn.WebhookID) string {
	return string(team) + "/" + string(id)
}

func (c *core) sealWebhook(team wrenn.TeamID, id wrenn.WebhookID, secret []byte) (postgres.SealedWebhook, error) {
	sealed, err := c.vault.Seal(webhookBelongsTo(team, id), secret)
	return postgres.SealedWebhook{ID: id, Team: team, Sealed: sealed, KeyID: c.vault.KeyID()}, err
}

// ListWebhooks returns the team's webhooks, the oldest first.
func (s *Webhooks) ListWebhooks(ctx context.Context, c Caller) ([]wrenn.Webhook, error) {
	return s.store.Webhooks(ctx, c.Team)
}

// Webhook returns a webhook.
func (s *Webhooks) Webhook(ctx context.Context, c Caller, id wrenn.WebhookID) (*wrenn.Webhook, error) {
	return s.store.Webhook(ctx, c.Team, id)
}

// ChangeWebhook says what UpdateWebhook changes; what is nil stays.
type ChangeWebhook struct {
	URL, Description *string
	Events           *[]string
	Enabled          *bool // false gives up what waits; true forgets earlier failures
}

// UpdateWebhook changes a webhook.
func (s *Webhooks) UpdateWebhook(ctx context.Context, c Caller, id wrenn.WebhookID, change ChangeWebhook) (*wrenn.Webhook, error) {
	var events []string
	var description string
	if change.Events != nil {
		events = *change.Events
	}
	if change.Description != nil {
		description = *change.Description
	}
	err := wrenn.CheckWebhook(events, description)
	if err == nil && change.URL != nil {
		err = s.sender.CheckURL(*change.URL)
	}
	if err != nil {
		return nil, err
	}
	return s.store.UpdateWebhook(ctx, c.Team, id, postgres.WebhookChange{
		URL: change.URL, Description: change.Description, Events: change.Events, Enabled: change.Enabled, Reason: "by a user",
	})
}

// DeleteWebhook deletes a webhook; what waits for it is not sent.
func (s *Webhooks) DeleteWebhook(ctx context.Context, c Caller, id wrenn.WebhookID) error {
	return s.store.DeleteWebhook(ctx, c.Team, id)
}

// WebhookDeliveries returns the last deliveries of a webhook, newest first. A limit of 0
// is 50; at most 200 are returned.
func (s *Webhooks) WebhookDeliveries(ctx context.Context, c Caller, id wrenn.WebhookID, limit int) ([]wrenn.WebhookDelivery, error) {
	if _, err := s.store.Webhook(ctx, c.Team, id); err != nil {
		return nil, err
	}
	if limit <= 0 {
		limit = deliveryPage
	}
	return s.store.WebhookDeliveries(ctx, id, min(limit, maxDeliveryPage))
}

// TestWebhook sends a webhook.test event once, and returns what became of it. The error is
// nil when the receiver did not accept it. Exhausted while another test of it runs.
func (s *Webhooks) TestWebhook(ctx context.Context, c Caller, id wrenn.WebhookID) (*wrenn.WebhookDelivery, error) {
	found, err := s.store.Webhook(ctx, c.Team, id)
	if err != nil {
		return nil, err
	}
	if _, runs := s.testing.LoadOrStore(id, true); runs {
		return nil, wrenn.Errorf(wrenn.Exhausted, "a test of this webhook runs: wait for it")
	}
	defer s.testing.Delete(id)
	sealed, err := s.store.WebhookSecret(ctx, c.Team, id)
	if err != nil {
		return nil, err
	}
	return s.test(ctx, c, found, sealed)
}

func (s *Webhooks) test(ctx context.Context, c Caller, found *wrenn.Webhook, sealed []byte) (*wrenn.WebhookDelivery, error) {
	id := found.ID
	at := time.Now().UTC()
	body, err := json.Marshal(map[string]any{"type": wrenn.EventTest, "timestamp": at, "data": map[string]any{"webhook_id": id}})
	if err != nil {
		return nil, err
	}
	delivery, err := s.store.CreateTestDelivery(ctx, id, string(body))
	if err != nil {
		return nil, err
	}
	claimed := postgres.ClaimedDelivery{ID: delivery, Attempt: 1, URL: found.URL, Payload: string(body), Webhook: id, Team: c.Team, Sealed: sealed}
	sent := s.send(ctx, claimed)
	result := postgres.DeliveryResult{State: wrenn.DeliveryFailed, Status: sent.Status, Error: sent.Error}
	if sent.Error == "" {
		result.State = wrenn.DeliveryDelivered
	}
	if _, err := s.store.FinishDelivery(ctx, claimed, result); err != nil {
		return nil, err
	}
	return &wrenn.WebhookDelivery{
		ID: delivery, Event: wrenn.EventTest, State: result.State, Attempts: 1, Status: sent.Status, Error: sent.Error, CreatedAt: at, AttemptedAt: at,
	}, nil
}

// send decrypts the secret and sends a delivery once.
func (s *Webhooks) send(ctx context.Context, d postgres.ClaimedDelivery) webhook.Result {
	secret, err := s.vault.Open(webhookBelongsTo(d.Team, d.Webhook), d.Sealed)
	if err != nil {
		return webhook.Result{Error: "this server cannot read the webhook's secret: its operator adds the earlier key file, or make the webhook again"}
	}
	return s.sender.Send(ctx, webhook.Message{ID: d.ID, URL: d.URL, Secret: string(secret), Body: []byte(d.Payload)})
}

// resealWebhooks is resealSecrets for the secrets of webhooks.
func (s *Secrets) resealWebhooks(ctx context.Context) (changed, failed int, err error) {
	page := func(after postgres.SealedWebhook) ([]postgres.SealedWebhook, error) {
		return s.store.WebhooksOfOtherKeys(ctx, s.vault.KeyID(), after.ID, resealPage)
	}
	return resealEach(s.vault, page,
		func(old postgres.SealedWebhook) (string, []byte) {
			return webhookBelongsTo(old.Team, old.ID), old.Sealed
		},
		func(old postgres.SealedWebhook, sealed []byte) error {
			old.Sealed, old.KeyID = sealed, s.vault.KeyID()
			return s.store.ResealWebhook(ctx, old)
		})
}
