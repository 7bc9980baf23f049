-- +goose Up

-- What a key may be used for, and until when. A key from before may be used for everything.
ALTER TABLE api_keys
    ADD COLUMN scopes     text[] NOT NULL DEFAULT '{admin}' CHECK (cardinality(scopes) > 0),
    ADD COLUMN expires_at timestamptz;

-- +goose Down
ALTER TABLE api_keys DROP COLUMN scopes, DROP COLUMN expires_at;
