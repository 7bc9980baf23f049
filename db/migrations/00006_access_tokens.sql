-- +goose Up

-- The secret that the control planes of this database share, and no other program has.
-- The access tokens of sandboxes follow from access_token_seed and their ids.
-- gen_random_uuid has 122 bits of the system's secure random numbers.
CREATE TABLE platform_secrets (
    name  text PRIMARY KEY,
    value bytea NOT NULL CHECK (octet_length(value) >= 32)
);
INSERT INTO platform_secrets (name, value)
VALUES ('access_token_seed', decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));
