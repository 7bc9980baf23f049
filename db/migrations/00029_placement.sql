-- +goose Up

-- What a sandbox requires of its host: labels, and a zone.
ALTER TABLE sandboxes ADD COLUMN requires jsonb NOT NULL DEFAULT '{}';

-- What a host said of itself last: its configured zone and labels, and its platform.
ALTER TABLE hosts ADD COLUMN facts jsonb NOT NULL DEFAULT '{}';

-- +goose Down
ALTER TABLE hosts DROP COLUMN facts;
ALTER TABLE sandboxes DROP COLUMN requires;
