-- +goose Up

-- Timeouts that use does not extend. ends_at is that of a running sandbox.
ALTER TABLE sandboxes
    ADD COLUMN absolute_timeout boolean NOT NULL DEFAULT false,
    ADD COLUMN ends_at timestamptz;

-- The creates that clients may repeat, by a key that they choose, and the sandbox of each.
CREATE TABLE repeatable_creates (
    team_id     uuid NOT NULL REFERENCES teams,
    route       text NOT NULL,
    key         text COLLATE "C" NOT NULL,
    fingerprint bytea NOT NULL, -- of the request
    sandbox_id  text COLLATE "C" NOT NULL,
    -- The control plane that creates it, as in sandboxes; NULL when it runs.
    worker      bigint,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (team_id, route, key)
);
CREATE INDEX repeatable_creates_age ON repeatable_creates (created_at);

-- +goose Down
DROP TABLE repeatable_creates;
ALTER TABLE sandboxes DROP COLUMN absolute_timeout, DROP COLUMN ends_at;
