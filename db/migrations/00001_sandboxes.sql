-- +goose Up

CREATE TABLE teams (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name          text NOT NULL UNIQUE,
    -- Null: the value of the control plane's configuration.
    max_sandboxes integer CHECK (max_sandboxes >= 0),
    max_memory_mb bigint CHECK (max_memory_mb >= 0),
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE api_keys (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    team_id      uuid NOT NULL REFERENCES teams,
    name         text NOT NULL,
    -- SHA-256 of the secret, which is 160 random bits: no slower hash is needed.
    hash         bytea NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    hint         text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_used_at timestamptz,
    revoked_at   timestamptz
);
CREATE INDEX api_keys_team ON api_keys (team_id, created_at DESC, id DESC);

-- The last answers of hosts, for people and tools. The list of hosts is configuration.
CREATE TABLE hosts (
    id             text PRIMARY KEY,
    url            text NOT NULL,
    version        text NOT NULL DEFAULT '',
    instance       text NOT NULL DEFAULT '',
    driver         text NOT NULL DEFAULT '',
    sandboxes      integer NOT NULL DEFAULT 0,
    sandboxes_used integer NOT NULL DEFAULT 0,
    memory_mb      bigint NOT NULL DEFAULT 0,
    memory_mb_used bigint NOT NULL DEFAULT 0,
    disk_mb        bigint NOT NULL DEFAULT 0,
    disk_mb_free   bigint NOT NULL DEFAULT 0,
    last_seen_at   timestamptz
);

CREATE TABLE sandboxes (
    id             text COLLATE "C" PRIMARY KEY,
    team_id        uuid NOT NULL REFERENCES teams,
    host_id        text NOT NULL DEFAULT '', -- '' until one was picked
    template       text NOT NULL,
    state          text NOT NULL DEFAULT 'pending' CONSTRAINT sandboxes_state CHECK (state IN (
        'pending', 'starting', 'running', 'pausing', 'paused', 'resuming', 'stopping', 'stopped', 'failed')),
    reason         text NOT NULL DEFAULT '',
    vcpus          integer NOT NULL CHECK (vcpus > 0),
    memory_mb      integer NOT NULL CHECK (memory_mb > 0),
    timeout_sec    integer NOT NULL CHECK (timeout_sec >= 0), -- 0 is never
    metadata       jsonb NOT NULL DEFAULT '{}',
    env            jsonb NOT NULL DEFAULT '{}',
    -- Times of changes are clock_timestamp(), not now(): the reconciler compares them with the time of its round.
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at     timestamptz,
    last_active_at timestamptz,
    updated_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    version        bigint NOT NULL DEFAULT 1
);
-- A page of a team's list is read in this order, for any states.
CREATE INDEX sandboxes_list ON sandboxes (team_id, state, created_at DESC, id DESC);
-- Without fastupdate: a list would read all recent inserts (7 ms each time at 100,000 rows).
CREATE INDEX sandboxes_metadata ON sandboxes USING gin (metadata jsonb_path_ops) WITH (fastupdate = off);
-- For the reconciler: the rows that should be on a host. Ended rows are most of the table and not in it.
CREATE INDEX sandboxes_host ON sandboxes (host_id, state) WHERE state NOT IN ('stopped', 'failed');

-- Append-only: the changes of a sandbox and their reasons.
CREATE TABLE sandbox_events (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sandbox_id text COLLATE "C" NOT NULL REFERENCES sandboxes,
    version    bigint NOT NULL, -- the row's after the event
    from_state text NOT NULL,   -- '' for the first
    to_state   text NOT NULL,
    host_id    text NOT NULL,
    actor      text NOT NULL,   -- 'key:<id>', 'reconciler', 'system'
    reason     text NOT NULL,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- One event a change: two writers of one version would be a bug.
    UNIQUE (sandbox_id, version)
);

-- +goose StatementBegin
CREATE FUNCTION sandbox_events_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'sandbox_events is append-only';
END $$;
-- +goose StatementEnd
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON sandbox_events
    FOR EACH ROW EXECUTE FUNCTION sandbox_events_append_only();

-- Sandboxes that a host has and no row explains. No program destroys them; an operator decides.
CREATE TABLE unknown_sandboxes (
    host_id       text NOT NULL,
    sandbox_id    text COLLATE "C" NOT NULL,
    seen_state    text NOT NULL,
    reason        text NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (host_id, sandbox_id)
);

-- +goose Down
DROP TABLE unknown_sandboxes;
DROP TABLE sandbox_events;
DROP FUNCTION sandbox_events_append_only;
DROP TABLE sandboxes;
DROP TABLE hosts;
DROP TABLE api_keys;
DROP TABLE teams;
