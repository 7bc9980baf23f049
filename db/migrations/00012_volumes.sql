-- +goose Up

-- Directories of teams that sandboxes mount.
CREATE TABLE volumes (
    id         text COLLATE "C" PRIMARY KEY,
    team_id    uuid NOT NULL REFERENCES teams,
    name       text COLLATE "C" NOT NULL,
    host_id    text NOT NULL, -- that stores it
    size_mib   integer NOT NULL CHECK (size_mib > 0),
    -- One that is deleting has its row until its host has removed it.
    state      text NOT NULL DEFAULT 'creating' CONSTRAINT volumes_state CHECK (state IN ('creating', 'ready', 'deleting')),
    -- The control plane that creates it, as in sandboxes.
    worker     bigint,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX volumes_names ON volumes (team_id, name) WHERE state <> 'deleting';
CREATE INDEX volumes_unsettled ON volumes (state) WHERE state <> 'ready';

-- What a sandbox mounts: a list of wrenn.VolumeMount as JSON.
ALTER TABLE sandboxes ADD COLUMN volumes jsonb NOT NULL DEFAULT '[]';

-- +goose Down
ALTER TABLE sandboxes DROP COLUMN volumes;
DROP TABLE volumes;
