package service

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/webhook"
	"wrenn.dev/internal/wake"
)

const (
	// deliverEach are sent at once to one webhook by one replica, and one at a time to a
	// webhook that fails; deliverMost to all webhooks. With wrenn.MaxWebhooks that bounds a team.
	deliverEach, deliverMost = 4, 512
	// deliverEvery is how often the table is looked at for new deliveries.
	deliverEvery = time.Second
	// deliverLease is when another replica sends what this one claimed and did not finish:
	// longer than an attempt takes, with the writing of its result.
	deliverLease = time.Minute
	// disableAfter is for how long every delivery must have failed before a webhook is disabled.
	disableAfter = 23 * time.Hour
	// maxPendingDeliveries disables a webhook that cannot follow, so that it does not fill the database.
	maxPendingDeliveries = 100_000
	crowdedEvery         = time.Minute
	// keepDeliveries is how long deliveries are listed.
	keepDeliveries = 3 * 24 * time.Hour
)

// backoff is how long each next attempt waits: 11 attempts in a day.
func backoff() []time.Duration {
	return []time.Duration{
		5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, 30 * time.Minute,
		time.Hour, 2 * time.Hour, 4 * time.Hour, 6 * time.Hour, 10 * time.Hour,
	}
}

// WebhookConfig says where and when events are sent to webhooks. Zero values are the defaults.
type WebhookConfig struct {
	webhook.Config

	Backoff []time.Duration // before each further attempt; default a day in 10 steps
	Every   time.Duration   // how often deliveries are looked for; default 1 s
	Lease   time.Duration   // until another replica sends what one did not finish; default 1 min
	// DisableAfter is how long all must have failed when one is given up; default 23 h.
	DisableAfter time.Duration
}

func (c WebhookConfig) withDefaults() WebhookConfig {
	if c.Backoff == nil {
		c.Backoff = backoff()
	}
	c.Every = cmp.Or(c.Every, deliverEvery)
	c.Lease = cmp.Or(c.Lease, deliverLease)
	c.DisableAfter = cmp.Or(c.DisableAfter, disableAfter)
	return c
}

// deliverer sends the deliveries that are due, as every replica does.
type deliverer struct {
	*Webhooks

	cfg   WebhookConfig
	again wake.Chan // a webhook is no longer busy

	mu   sync.Mutex // guards busy
	busy map[wrenn.WebhookID]int
	work sync.WaitGroup
}

func newDeliverer(hooks *Webhooks, cfg WebhookConfig) *deliverer {
	return &deliverer{Webhooks: hooks, cfg: cfg, again: wake.New(), busy: map[wrenn.WebhookID]int{}}
}

// run sends until ctx ends; attempts in progress end then, and are repeated by another replica.
func (d *deliverer) run(ctx context.Context) error {
	defer d.work.Wait()
	tick := time.NewTicker(d.cfg.Every)
	defer tick.Stop()
	for {
		if err := d.claim(ctx); err != nil && ctx.Err() == nil {
			d.log.LogAttrs(ctx, slog.LevelWarn, "cannot look for deliveries of webhooks; will retry", slog.Any("err", err))
			if !wake.Sleep(ctx, d.cfg.Every) {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-d.again:
		case <-ctx.Done():
			return nil
		}
	}
}

// claim starts to send what is due, to webhooks to which this replica sends nothing now: a
// slow receiver delays its own deliveries alone.
func (d *deliverer) claim(ctx context.Context) error {
	if d.vault.KeyID() == "" {
		return nil // a server with the keys does it
	}
	busy, free := d.state()
	if free <= 0 {
		return nil
	}
	claimed, err := d.store.ClaimDeliveries(ctx, postgres.Claim{Each: deliverEach, Most: free, Busy: busy, Lease: d.cfg.Lease})
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, one := range claimed {
		d.busy[one.Webhook]++
	}
	for _, one := range claimed {
		d.work.Go(func() { d.deliver(ctx, one) })
	}
	return nil
}

func (d *deliverer) state() (busy []wrenn.WebhookID, free int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	free = deliverMost
	for _, n := range d.busy {
		free -= n
	}
	return slices.Collect(maps.Keys(d.busy)), free
}

func (d *deliverer) deliver(ctx context.Context, one postgres.ClaimedDelivery) {
	defer d.done(one.Webhook)
	sent := d.send(ctx, one)
	if ctx.Err() != nil && sent.Error != "" {
		return // not the receiver's fault
	}
	ctx, cancel := detach(ctx, 0)
	defer cancel()
	disabled, err := d.store.FinishDelivery(ctx, one, d.result(one, sent))
	if err != nil {
		d.log.LogAttrs(ctx, slog.LevelWarn, "cannot write the result of a delivery; it will be sent again", slog.String("webhook", string(one.Webhook)), slog.Any("err", err))
	}
	if disabled {
		d.log.LogAttrs(ctx, slog.LevelInfo, "disabled a webhook that fails", slog.String("webhook", string(one.Webhook)))
	}
}

func (d *deliverer) done(id wrenn.WebhookID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.busy[id]--; d.busy[id] == 0 {
		delete(d.busy, id)
		d.again.Notify()
	}
}

// result says what follows from an attempt.
func (d *deliverer) result(one postgres.ClaimedDelivery, sent webhook.Result) postgres.DeliveryResult {
	r := postgres.DeliveryResult{State: wrenn.DeliveryPending, Status: sent.Status, Error: sent.Error}
	switch {
	case sent.Error == "":
		r.State = wrenn.DeliveryDelivered
	case sent.Gone():
		r.State, r.Disable = wrenn.DeliveryFailed, "the receiver answered 410: it wants no more events"
	case one.Attempt > len(d.cfg.Backoff):
		r.State, r.Failing = wrenn.DeliveryFailed, d.cfg.DisableAfter
		r.Disable = "every delivery failed for a day; the last error: " + sent.Error
	default:
		wait := d.cfg.Backoff[one.Attempt-1]
		r.After = wait + time.Duration(rand.Int64N(int64(wait)/5+1)) // so that not all come at once
	}
	return r
}

// runCrowded disables webhooks that too many deliveries wait for.
func (d *deliverer) runCrowded(ctx context.Context) error {
	for wake.Sleep(ctx, crowdedEvery) {
		ids, err := d.store.DisableCrowdedWebhooks(ctx, maxPendingDeliveries, "more than 100,000 events waited for it")
		if err != nil && ctx.Err() == nil {
			d.log.LogAttrs(ctx, slog.LevelWarn, "cannot look for crowded webhooks; will retry", slog.Any("err", err))
		}
		for _, id := range ids {
			d.log.LogAttrs(ctx, slog.LevelInfo, "disabled a webhook that too many events waited for", slog.String("webhook", string(id)))
		}
	}
	return nil
}
