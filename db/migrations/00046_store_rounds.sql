-- +goose Up

-- The round of uploads to the snapshot store, which is told to hosts. One row. 0 has been
-- told to none.
CREATE TABLE store_rounds (
    one boolean PRIMARY KEY DEFAULT true CONSTRAINT store_rounds_one CHECK (one),
    round bigint NOT NULL DEFAULT 0 CONSTRAINT store_rounds_round CHECK (round >= 0),
    began_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO store_rounds DEFAULT VALUES;

-- How far what nothing needs of a team is deleted from the snapshot store.
CREATE TABLE store_collections (
    team_id uuid PRIMARY KEY REFERENCES teams (id) ON DELETE CASCADE,
    -- The last round of which objects were deleted; -1 is none.
    through_round bigint NOT NULL DEFAULT -1,
    objects bigint NOT NULL DEFAULT 0, -- deleted so far
    bytes bigint NOT NULL DEFAULT 0,
    tried_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- +goose Down
DROP TABLE store_collections;
DROP TABLE store_rounds;
