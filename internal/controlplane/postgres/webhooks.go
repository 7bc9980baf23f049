package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// SealedWebhook is a webhook's encrypted secret.
type SealedWebhook struct {
	ID     wrenn.WebhookID
	Team   wrenn.TeamID
	Sealed []byte
	KeyID  string // of the key that encrypts it; only written
}

// CreateWebhook writes a new webhook. Of w only URL, Description and Events count.
// Exhausted at the limit of wrenn.MaxWebhooks.
func (s webhookStore) CreateWebhook(ctx context.Context, w wrenn.Webhook, secret SealedWebhook) (*wrenn.Webhook, error) {
	var out *wrenn.Webhook
	err := s.inTx(ctx, "create a webhook", func(ctx context.Context, q *dbsqlc.Queries) error {
		if err := lockTeam(ctx, q, secret.Team); err != nil {
			return err
		}
		n, err := q.CountWebhooks(ctx, string(secret.Team))
		if err != nil {
			return err
		}
		if n >= wrenn.MaxWebhooks {
			return wrenn.Errorf(wrenn.Exhausted, "the team is at its limit of %d webhooks: delete one first", wrenn.MaxWebhooks)
		}
		row, err := q.InsertWebhook(ctx, dbsqlc.InsertWebhookParams{
			ID: string(secret.ID), TeamID: string(secret.Team), URL: w.URL, Description: w.Description, Kinds: orNone(w.Events), Sealed: secret.Sealed, KeyID: secret.KeyID,
		})
		out = webhookOf(dbsqlc.FindWebhookRow(row))
		return err
	})
	return out, err
}

// orNone returns an array that is not null.
func orNone(texts []string) []string {
	if texts == nil {
		return []string{}
	}
	return texts
}

// WebhookChange says what UpdateWebhook changes; what is nil stays.
type WebhookChange struct {
	URL, Description *string
	Events           *[]string
	Enabled          *bool  // true also forgets earlier failures
	Reason           string // why it is disabled
}

// UpdateWebhook changes a webhook. NotFound when the team has none of that id.
func (s webhookStore) UpdateWebhook(ctx context.Context, team wrenn.TeamID, id wrenn.WebhookID, c WebhookChange) (*wrenn.Webhook, error) {
	var out *wrenn.Webhook
	params := dbsqlc.UpdateWebhookParams{
		ID: string(id), TeamID: string(team), URL: c.URL, Description: c.Description, KeepKinds: c.Events == nil, Kinds: []string{}, Enabled: c.Enabled, Reason: c.Reason,
	}
	if c.Events != nil {
		params.Kinds = orNone(*c.Events)
	}
	err := s.inTx(ctx, "update a webhook", func(ctx context.Context, q *dbsqlc.Queries) error {
		row, err := q.UpdateWebhook(ctx, params)
		if err != nil {
			return webhookError(err)
		}
		out = webhookOf(dbsqlc.FindWebhookRow(row))
		if row.Enabled {
			return nil
		}
		return q.FailPendingDeliveries(ctx, deliveryDisabled, string(id))
	})
	return out, err
}

// deliveryDisabled is the error of a delivery that waited when its webhook was disabled.
const deliveryDisabled = "the webhook was disabled"

func webhookError(err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return wrenn.Errorf(wrenn.NotFound, "there is no webhook of that id")
	}
	return err
}

// Webhook returns a webhook of a team.
func (s webhookStore) Webhook(ctx context.Context, team wrenn.TeamID, id wrenn.WebhookID) (*wrenn.Webhook, error) {
	var out *wrenn.Webhook
	err := s.call(ctx, "read a webhook", func(ctx context.Context) error {
		row, err := s.queries.FindWebhook(ctx, string(id), string(team))
		out = webhookOf(row)
		return webhookError(err)
	})
	return out, err
}

// WebhookSecret returns the encrypted secret of a webhook of a team.
func (s webhookStore) WebhookSecret(ctx context.Context, team wrenn.TeamID, id wrenn.WebhookID) (sealed []byte, err error) {
	err = s.call(ctx, "read the secret of a webhook", func(ctx context.Context) error {
		sealed, err = s.queries.WebhookSecret(ctx, string(id), string(team))
		return webhookError(err)
	})
	return sealed, err
}

// Webhooks returns all webhooks of a team, the oldest first.
func (s webhookStore) Webhooks(ctx context.Context, team wrenn.TeamID) ([]wrenn.Webhook, error) {
	out := []wrenn.Webhook{}
	err := s.call(ctx, "list webhooks", func(ctx context.Context) error {
		rows, err := s.queries.ListWebhooks(ctx, string(team))
		for _, row := range rows {
			out = append(out, *webhookOf(dbsqlc.FindWebhookRow(row)))
		}
		return err
	})
	return out, err
}

// DeleteWebhook deletes a webhook with its deliveries.
func (s webhookStore) DeleteWebhook(ctx context.Context, team wrenn.TeamID, id wrenn.WebhookID) error {
	return s.inTx(ctx, "delete a webhook", func(ctx context.Context, q *dbsqlc.Queries) error {
		n, err := q.DeleteWebhook(ctx, string(id), string(team))
		if err == nil && n == 0 {
			err = pgx.ErrNoRows
		}
		if err != nil {
			return webhookError(err)
		}
		return q.DeleteDeliveries(ctx, string(id))
	})
}

// WebhookDeliveries returns the last deliveries of a webhook, newest first. The caller has
// found the webhook.
func (s webhookStore) WebhookDeliveries(ctx context.Context, id wrenn.WebhookID, most int) ([]wrenn.WebhookDelivery, error) {
	out := []wrenn.WebhookDelivery{}
	err := s.call(ctx, "list deliveries", func(ctx context.Context) error {
		rows, err := s.queries.ListDeliveries(ctx, string(id), clampInt32(most))
		for _, r := range rows {
			d := wrenn.WebhookDelivery{
				ID: r.ID, Event: r.Kind, Sandbox: wrenn.SandboxID(r.SandboxID), State: wrenn.DeliveryState(r.State), Attempts: int(r.Attempts),
				Status: int(r.Status), Error: r.Error, CreatedAt: r.CreatedAt.UTC(), AttemptedAt: orZero(r.AttemptedAt),
			}
			if d.State == wrenn.DeliveryPending {
				d.NextAt = r.NextAt.UTC()
			}
			out = append(out, d)
		}
		return err
	})
	return out, err
}

// CreateTestDelivery writes a delivery that the caller sends once. It is failed until
// FinishDelivery says how it ended.
func (s webhookStore) CreateTestDelivery(ctx context.Context, id wrenn.WebhookID, payload string) (delivery string, err error) {
	err = s.call(ctx, "write a test delivery", func(ctx context.Context) error {
		delivery, err = s.queries.InsertTestDelivery(ctx, string(id), wrenn.EventTest, payload)
		return err
	})
	return delivery, err
}

// ClaimedDelivery is a delivery that this replica sends.
type ClaimedDelivery struct {
	ID      string
	Attempt int // from 1
	URL     string
	Payload string
	Webhook wrenn.WebhookID
	Team    wrenn.TeamID
	Sealed  []byte // the webhook's secret, encrypted
}

// Claim says what ClaimDeliveries returns.
type Claim struct {
	Each, Most int               // of one webhook, and of all
	Busy       []wrenn.WebhookID // none of these
	Lease      time.Duration     // after it another replica may claim them
}

// ClaimDeliveries returns deliveries that are due, and keeps other replicas from them.
func (s webhookStore) ClaimDeliveries(ctx context.Context, c Claim) ([]ClaimedDelivery, error) {
	var out []ClaimedDelivery
	err := s.call(ctx, "look for deliveries of webhooks", func(ctx context.Context) error {
		rows, err := s.queries.ClaimDeliveries(ctx, dbsqlc.ClaimDeliveriesParams{
			LeaseSec: c.Lease.Seconds(), Each: clampInt32(c.Each), Most: clampInt32(c.Most), Busy: texts(c.Busy),
		})
		for _, r := range rows {
			out = append(out, ClaimedDelivery{
				ID: r.ID, Attempt: int(r.Attempts), URL: r.URL, Payload: r.Payload, Webhook: wrenn.WebhookID(r.WebhookID), Team: wrenn.TeamID(r.TeamID), Sealed: r.Sealed,
			})
		}
		return err
	})
	return out, err
}

// DeliveryResult is how an attempt ended.
type DeliveryResult struct {
	State   wrenn.DeliveryState
	Status  int
	Error   string
	After   time.Duration // until the next attempt, if it is pending
	Disable string        // why the webhook is disabled; "": it is not
	// Failing, if above 0, disables it only if it has failed for so long.
	Failing time.Duration
}

// FinishDelivery writes the result of an attempt, unless another replica has claimed the
// delivery since. It keeps since when the webhook has failed, and reports whether it
// disabled it.
func (s webhookStore) FinishDelivery(ctx context.Context, d ClaimedDelivery, r DeliveryResult) (disabled bool, err error) {
	err = s.inTx(ctx, "write the result of a delivery", func(ctx context.Context, q *dbsqlc.Queries) error {
		// The webhook before its deliveries, as everywhere: else two transactions could wait for each other.
		if disabled, err = noteResult(ctx, q, d.Webhook, r); err != nil {
			return err
		}
		_, err := q.FinishDelivery(ctx, dbsqlc.FinishDeliveryParams{
			ID: d.ID, Attempts: clampInt32(d.Attempt), State: string(r.State), Status: clampInt32(r.Status), Error: r.Error, AfterSec: r.After.Seconds(),
		})
		if err != nil || !disabled {
			return err
		}
		return q.FailPendingDeliveries(ctx, deliveryDisabled, string(d.Webhook))
	})
	return disabled, err
}

// noteResult writes at a webhook what a delivery to it says of it.
func noteResult(ctx context.Context, q *dbsqlc.Queries, id wrenn.WebhookID, r DeliveryResult) (disabled bool, err error) {
	if r.State == wrenn.DeliveryDelivered {
		return false, q.WebhookWorks(ctx, string(id))
	}
	if err := q.WebhookFails(ctx, string(id)); err != nil || r.Disable == "" {
		return false, err
	}
	n, err := q.DisableWebhook(ctx, r.Disable, string(id), r.Failing.Seconds())
	return n > 0, err
}

// DisableCrowdedWebhooks disables the webhooks with more than so many pending deliveries,
// and returns them.
func (s webhookStore) DisableCrowdedWebhooks(ctx context.Context, most int, reason string) ([]wrenn.WebhookID, error) {
	var out []wrenn.WebhookID
	err := s.inTx(ctx, "look for crowded webhooks", func(ctx context.Context, q *dbsqlc.Queries) error {
		ids, err := q.CrowdedWebhooks(ctx, int64(most))
		if err != nil {
			return err
		}
		for _, id := range ids {
			n, err := q.DisableWebhook(ctx, reason, id, 0)
			if err == nil {
				err = q.FailPendingDeliveries(ctx, deliveryDisabled, id)
			}
			if err != nil {
				return err
			}
			if n > 0 {
				out = append(out, wrenn.WebhookID(id))
			}
		}
		return nil
	})
	return out, err
}

// DropDeliveries deletes at most so many deliveries that are older than the retention,
// and returns how many it deleted.
func (s webhookStore) DropDeliveries(ctx context.Context, retention time.Duration, most int) (n int, err error) {
	err = s.call(ctx, "delete old deliveries", func(ctx context.Context) error {
		rows, err := s.queries.DropDeliveries(ctx, retention.Seconds(), clampInt32(most))
		n = int(rows)
		return err
	})
	return n, err
}

// WebhooksOfOtherKeys returns webhooks of all teams whose secret another key encrypts, in
// the order of their ids, those after an id.
func (s webhookStore) WebhooksOfOtherKeys(ctx context.Context, keyID string, after wrenn.WebhookID, limit int) ([]SealedWebhook, error) {
	var out []SealedWebhook
	err := s.call(ctx, "look for webhooks of other keys", func(ctx context.Context) error {
		rows, err := s.queries.WebhooksOfOtherKeys(ctx, keyID, string(after), clampInt32(limit))
		for _, row := range rows {
			out = append(out, SealedWebhook{ID: wrenn.WebhookID(row.ID), Team: wrenn.TeamID(row.TeamID), Sealed: row.Sealed})
		}
		return err
	})
	return out, err
}

// ResealWebhook writes the same secret, encrypted by another key.
func (s webhookStore) ResealWebhook(ctx context.Context, w SealedWebhook) error {
	return s.call(ctx, "encrypt the secret of a webhook again", func(ctx context.Context) error {
		_, err := s.queries.ResealWebhook(ctx, w.Sealed, w.KeyID, string(w.ID))
		return err
	})
}

func webhookOf(row dbsqlc.FindWebhookRow) *wrenn.Webhook {
	return &wrenn.Webhook{
		ID: wrenn.WebhookID(row.ID), URL: row.URL, Description: row.Description, Events: row.Kinds, Enabled: row.Enabled, DisabledReason: row.DisabledReason,
		FailingSince: orZero(row.FailingSince), CreatedAt: row.CreatedAt.UTC(), UpdatedAt: row.UpdatedAt.UTC(),
	}
}
