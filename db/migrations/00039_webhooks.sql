-- +goose Up

-- Where teams want to be told of events of their sandboxes.
CREATE TABLE webhooks (
    id              text COLLATE "C" PRIMARY KEY,
    team_id         uuid NOT NULL REFERENCES teams,
    url             text NOT NULL,
    description     text NOT NULL,
    kinds           text[] NOT NULL, -- of events; none are all
    -- The secret of signatures, encrypted by the key of that id, as in secrets.
    sealed          bytea NOT NULL,
    key_id          text COLLATE "C" NOT NULL,
    enabled         boolean NOT NULL DEFAULT true,
    disabled_reason text NOT NULL DEFAULT '',
    failing_since   timestamptz, -- the first failure after the last success
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX webhooks_team ON webhooks (team_id);

-- Events on their way to webhooks, and what became of them. Not a reference to webhooks: a
-- webhook that is deleted while a sandbox changes must not make that change fail.
CREATE TABLE webhook_deliveries (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    webhook_id   text COLLATE "C" NOT NULL,
    kind         text NOT NULL,
    sandbox_id   text COLLATE "C" NOT NULL, -- '' for a test
    payload      text NOT NULL,             -- JSON, as it is sent and signed
    state        text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed')),
    attempts     integer NOT NULL DEFAULT 0,
    -- When it is sent next. While it is being sent, when another replica may send it.
    next_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempted_at timestamptz,
    status       integer NOT NULL DEFAULT 0, -- of the last answer; 0 is none
    error        text NOT NULL DEFAULT '',
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX webhook_deliveries_pending ON webhook_deliveries (webhook_id, next_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_list ON webhook_deliveries (webhook_id, created_at DESC, id DESC);
CREATE INDEX webhook_deliveries_age ON webhook_deliveries (created_at);

-- The deliveries of an event are written with it, by whichever program writes it.
-- +goose StatementBegin
CREATE FUNCTION sandbox_events_to_webhooks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM webhooks WHERE enabled) THEN
        RETURN NULL;
    END IF;
    INSERT INTO webhook_deliveries (webhook_id, kind, sandbox_id, payload)
    SELECT w.id, k.kind, s.id, json_build_object(
        'type', k.kind,
        'timestamp', to_char(e.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'data', json_build_object(
            'sandbox_id', s.id, 'template', s.template, 'state', e.to_state, 'previous_state', e.from_state,
            'reason', CASE WHEN e.from_state = e.to_state THEN e.reason ELSE s.reason END,
            'end_cause', s.end_cause, 'metadata', s.metadata, 'version', e.version
        )
    )::text
    FROM written e
    JOIN sandboxes s ON s.id = e.sandbox_id
    JOIN webhooks w ON w.team_id = s.team_id AND w.enabled
    CROSS JOIN LATERAL (SELECT 'sandbox.' || CASE WHEN e.from_state = e.to_state THEN 'updated' ELSE e.to_state END) AS k (kind)
    WHERE cardinality(w.kinds) = 0 OR k.kind = ANY (w.kinds);
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER to_webhooks AFTER INSERT ON sandbox_events
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION sandbox_events_to_webhooks();

-- +goose Down
DROP TRIGGER to_webhooks ON sandbox_events;
DROP FUNCTION sandbox_events_to_webhooks;
DROP TABLE webhook_deliveries;
DROP TABLE webhooks;
