-- +goose Up

-- What a sandbox may reach of the internet: wrenn.NetworkPolicy as JSON; {} is everything.
ALTER TABLE sandboxes ADD COLUMN network jsonb NOT NULL DEFAULT '{}';
