-- +goose Up

-- When a build became ready. Of those that were deleted before it is not known.
ALTER TABLE template_generations ADD COLUMN finished_at timestamptz;
UPDATE template_generations SET finished_at = updated_at WHERE state = 'ready';

-- Which builds a tag has referred to. Of the time before only the last ones are known.
CREATE TABLE template_assignments (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    number        bigint NOT NULL GENERATED ALWAYS AS IDENTITY, -- their order
    team_id       uuid NOT NULL REFERENCES teams,
    name          text NOT NULL,
    tag           text NOT NULL,
    generation_id text COLLATE "C" NOT NULL REFERENCES template_generations,
    assigned_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX template_assignments_tags ON template_assignments (team_id, name, tag, number);
INSERT INTO template_assignments (team_id, name, tag, generation_id, assigned_at)
SELECT team_id, name, tag, generation_id, updated_at FROM templates ORDER BY updated_at;

-- Secrets of teams. The values are encrypted; the keys are not in the database.
CREATE TABLE secrets (
    id         text COLLATE "C" PRIMARY KEY,
    team_id    uuid NOT NULL REFERENCES teams,
    name       text COLLATE "C" NOT NULL,
    version    integer NOT NULL DEFAULT 1, -- of the value
    metadata   jsonb NOT NULL DEFAULT '{}',
    sealed     bytea NOT NULL,
    key_id     text COLLATE "C" NOT NULL, -- the public half of the key that opens it
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX secrets_names ON secrets (team_id, name);

-- +goose Down
DROP TABLE secrets;
DROP TABLE template_assignments;
ALTER TABLE template_generations DROP COLUMN finished_at;
