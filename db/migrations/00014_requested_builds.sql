-- +goose Up

-- Builds that clients of E2B's API have asked for and not started yet: they upload
-- files in between. One that starts becomes a row of template_generations with the same id.
CREATE TABLE requested_builds (
    id         text COLLATE "C" PRIMARY KEY,
    team_id    uuid NOT NULL REFERENCES teams,
    name       text NOT NULL,
    tag        text NOT NULL,
    more_tags  text[] NOT NULL,
    vcpus      integer NOT NULL CHECK (vcpus > 0),
    memory_mb  integer NOT NULL CHECK (memory_mb > 0),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX requested_builds_age ON requested_builds (team_id, created_at);

-- When the build is ready, these tags of its name refer to it, too.
ALTER TABLE template_generations ADD COLUMN more_tags text[] NOT NULL DEFAULT '{}';
-- Several tags may refer to one build, which lives as long as one does.
CREATE INDEX templates_generation ON templates (generation_id);

ALTER TABLE template_lines ADD COLUMN written_at timestamptz NOT NULL DEFAULT clock_timestamp();

-- +goose Down
ALTER TABLE template_lines DROP COLUMN written_at;
DROP INDEX templates_generation;
ALTER TABLE template_generations DROP COLUMN more_tags;
DROP TABLE requested_builds;
