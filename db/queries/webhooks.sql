-- name: CountWebhooks :one
-- Under LockTeam.
SELECT count(*) FROM webhooks WHERE team_id = @team_id;

-- name: InsertWebhook :one
INSERT INTO webhooks (id, team_id, url, description, kinds, sealed, key_id) VALUES (@id, @team_id, @url, @description, @kinds, @sealed, @key_id)
RETURNING id, team_id, url, description, kinds, enabled, disabled_reason, failing_since, created_at, updated_at;

-- name: UpdateWebhook :one
-- What is null stays. To enable it ends what was wrong.
UPDATE webhooks SET
    url = coalesce(sqlc.narg('url'), url),
    description = coalesce(sqlc.narg('description'), description),
    kinds = CASE WHEN @keep_kinds::boolean THEN kinds ELSE @kinds END,
    enabled = coalesce(sqlc.narg('enabled'), enabled),
    disabled_reason = CASE WHEN sqlc.narg('enabled') IS NULL THEN disabled_reason WHEN sqlc.narg('enabled') THEN '' ELSE @reason END,
    failing_since = CASE WHEN sqlc.narg('enabled') THEN NULL ELSE failing_since END,
    updated_at = clock_timestamp()
WHERE id = @id AND team_id = @team_id
RETURNING id, team_id, url, description, kinds, enabled, disabled_reason, failing_since, created_at, updated_at;

-- name: FindWebhook :one
SELECT id, team_id, url, description, kinds, enabled, disabled_reason, failing_since, created_at, updated_at FROM webhooks WHERE id = @id AND team_id = @team_id;

-- name: ListWebhooks :many
SELECT id, team_id, url, description, kinds, enabled, disabled_reason, failing_since, created_at, updated_at FROM webhooks WHERE team_id = @team_id ORDER BY created_at, id;

-- name: DeleteWebhook :execrows
DELETE FROM webhooks WHERE id = @id AND team_id = @team_id;

-- name: DeleteDeliveries :exec
DELETE FROM webhook_deliveries WHERE webhook_id = @webhook_id;

-- name: WebhookSecret :one
SELECT sealed FROM webhooks WHERE id = @id AND team_id = @team_id;

-- name: WebhooksOfOtherKeys :many
-- Those whose secret another key encrypts, after an id.
SELECT id, team_id, sealed FROM webhooks WHERE key_id <> @key_id AND id > @after ORDER BY id LIMIT @page_size;

-- name: ResealWebhook :execrows
-- A secret never changes.
UPDATE webhooks SET sealed = @sealed, key_id = @key_id WHERE id = @id;

-- name: ListDeliveries :many
-- Of a webhook of the team, newest first.
SELECT d.id, d.kind, d.sandbox_id, d.state, d.attempts, d.next_at, d.attempted_at, d.status, d.error, d.created_at
FROM webhook_deliveries d WHERE d.webhook_id = @webhook_id ORDER BY d.created_at DESC, d.id DESC LIMIT @page_size;

-- name: InsertTestDelivery :one
-- It is being sent; nothing sends it again.
INSERT INTO webhook_deliveries (webhook_id, kind, sandbox_id, payload, state, attempts, attempted_at)
VALUES (@webhook_id, @kind, '', @payload, 'failed', 1, clock_timestamp())
RETURNING id;

-- name: ClaimDeliveries :many
-- Deliveries that are due, for the replica that asks: some of each webhook, and one of a
-- webhook that fails. The index gives the webhooks with pending deliveries one by one, so
-- a long queue of one webhook is not read. Others may claim them again after the lease.
WITH RECURSIVE waiting AS (
    (SELECT d.webhook_id FROM webhook_deliveries d WHERE d.state = 'pending' ORDER BY d.webhook_id LIMIT 1)
    UNION ALL
    SELECT (SELECT d.webhook_id FROM webhook_deliveries d WHERE d.state = 'pending' AND d.webhook_id > waiting.webhook_id ORDER BY d.webhook_id LIMIT 1)
    FROM waiting WHERE waiting.webhook_id IS NOT NULL
), due AS (
    SELECT one.id
    FROM waiting
    JOIN webhooks w ON w.id = waiting.webhook_id AND w.enabled
    CROSS JOIN LATERAL (
        SELECT d.id FROM webhook_deliveries d
        WHERE d.webhook_id = w.id AND d.state = 'pending' AND d.next_at <= clock_timestamp()
        ORDER BY d.next_at LIMIT CASE WHEN w.failing_since IS NULL THEN @each::integer ELSE 1 END
        FOR UPDATE SKIP LOCKED
    ) AS one
    WHERE w.id <> ALL (@busy::text[])
    LIMIT @most
)
UPDATE webhook_deliveries AS d SET
    attempts = d.attempts + 1, attempted_at = clock_timestamp(), next_at = clock_timestamp() + make_interval(secs => @lease_sec)
FROM due, webhooks w
WHERE d.id = due.id AND w.id = d.webhook_id
RETURNING d.id, d.webhook_id, d.payload, d.attempts, w.team_id, w.url, w.sealed;

-- name: FinishDelivery :execrows
-- Unless another replica has claimed it in between. next_at null: it is not sent again.
UPDATE webhook_deliveries SET
    state = @state, status = @status, error = @error,
    next_at = CASE WHEN @state = 'pending' THEN clock_timestamp() + make_interval(secs => @after_sec) ELSE next_at END
WHERE id = @id AND attempts = @attempts AND (state = 'pending' OR sandbox_id = '');

-- name: WebhookWorks :exec
UPDATE webhooks SET failing_since = NULL WHERE id = @id AND failing_since IS NOT NULL;

-- name: WebhookFails :exec
UPDATE webhooks SET failing_since = clock_timestamp() WHERE id = @id AND failing_since IS NULL;

-- name: DisableWebhook :execrows
-- If it has failed for so long.
UPDATE webhooks SET enabled = false, disabled_reason = @reason, updated_at = clock_timestamp()
WHERE id = @id AND enabled AND (@failing_sec::double precision = 0 OR failing_since <= clock_timestamp() - make_interval(secs => @failing_sec));

-- name: FailPendingDeliveries :exec
UPDATE webhook_deliveries SET state = 'failed', error = @error WHERE webhook_id = @webhook_id AND state = 'pending';

-- name: CrowdedWebhooks :many
-- Those with more than so many pending deliveries. Always in this order, in which they are locked.
SELECT w.id FROM webhooks w
WHERE w.enabled AND EXISTS (SELECT 1 FROM webhook_deliveries d WHERE d.webhook_id = w.id AND d.state = 'pending' OFFSET @most::bigint)
ORDER BY w.id;

-- name: DropDeliveries :execrows
DELETE FROM webhook_deliveries WHERE id IN (
    SELECT id FROM webhook_deliveries WHERE created_at < clock_timestamp() - make_interval(secs => @keep_sec)
    ORDER BY created_at LIMIT @most FOR UPDATE SKIP LOCKED
);
