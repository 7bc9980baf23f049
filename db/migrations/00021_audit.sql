-- +goose Up

-- The calls with a key that needed more than to read, by team. No reference to the
-- key: an entry outlives what it is about.
CREATE TABLE audit_entries (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    team_id    uuid NOT NULL REFERENCES teams,
    at         timestamptz NOT NULL,
    key_id     text NOT NULL,
    address    text NOT NULL, -- of the client
    request_id text NOT NULL,
    operation  text NOT NULL, -- as the contract calls it
    path       text NOT NULL,
    status     integer NOT NULL -- of the answer
);
CREATE INDEX audit_entries_team ON audit_entries (team_id, id DESC);
CREATE INDEX audit_entries_at ON audit_entries (at);

-- +goose Down
DROP TABLE audit_entries;
