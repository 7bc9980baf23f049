-- +goose Up

-- Who is signed in to the dashboard. A session ends with its key.
CREATE TABLE sessions (
    hash       bytea PRIMARY KEY, -- SHA-256 of both of its secrets
    key_id     uuid NOT NULL REFERENCES api_keys,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX sessions_key ON sessions (key_id, created_at);
CREATE INDEX sessions_expires ON sessions (expires_at);

-- +goose Down
DROP TABLE sessions;
