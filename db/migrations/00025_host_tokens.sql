-- +goose Up

-- What lets a host join, once. The token itself is stored nowhere.
CREATE TABLE host_tokens (
    hash       bytea PRIMARY KEY, -- SHA-256 of the token
    host_id    text NOT NULL,
    name       text NOT NULL,
    zone       text NOT NULL,
    labels     jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    used_at    timestamptz
);
CREATE INDEX host_tokens_expires ON host_tokens (expires_at);

-- The serial numbers of the certificates that a host may use: the newest, and the one
-- with which it asked for that.
ALTER TABLE hosts
    ADD COLUMN serial            text NOT NULL DEFAULT '',
    ADD COLUMN previous_serial   text NOT NULL DEFAULT '',
    ADD COLUMN certificate_until timestamptz;

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION notify_hosts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR (OLD.url, OLD.name, OLD.zone, OLD.labels, OLD.status, OLD.joined_at, OLD.serial, OLD.previous_serial)
        IS DISTINCT FROM (NEW.url, NEW.name, NEW.zone, NEW.labels, NEW.status, NEW.joined_at, NEW.serial, NEW.previous_serial) THEN
        PERFORM pg_notify('hosts', NEW.id);
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd

-- +goose Down
ALTER TABLE hosts DROP COLUMN serial, DROP COLUMN previous_serial, DROP COLUMN certificate_until;
DROP TABLE host_tokens;
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION notify_hosts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR (OLD.url, OLD.name, OLD.zone, OLD.labels, OLD.status, OLD.joined_at)
        IS DISTINCT FROM (NEW.url, NEW.name, NEW.zone, NEW.labels, NEW.status, NEW.joined_at) THEN
        PERFORM pg_notify('hosts', NEW.id);
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
