-- +goose Up

-- A build of a template and its result. Only its state changes, once or twice.
CREATE TABLE template_generations (
    id                text COLLATE "C" PRIMARY KEY,
    team_id           uuid NOT NULL REFERENCES teams,
    name              text NOT NULL,
    tag               text NOT NULL,
    state             text NOT NULL DEFAULT 'building' CONSTRAINT template_generations_state CHECK (state IN ('building', 'ready', 'failed', 'deleted')),
    reason            text NOT NULL DEFAULT '',
    host_id           text NOT NULL DEFAULT '', -- '' until one was picked
    -- The source: one of these, or the base.
    from_image        text NOT NULL DEFAULT '',
    from_oci          text NOT NULL DEFAULT '',
    from_sandbox      text NOT NULL DEFAULT '',
    vcpus             integer NOT NULL CHECK (vcpus > 0),
    memory_mb         integer NOT NULL CHECK (memory_mb > 0),
    env               jsonb NOT NULL DEFAULT '{}',
    start_cmd         text NOT NULL DEFAULT '',
    ready_cmd         text NOT NULL DEFAULT '',
    ready_timeout_sec integer NOT NULL DEFAULT 0, -- 0 is the host's default
    size_bytes        bigint NOT NULL DEFAULT 0,
    digest            text NOT NULL DEFAULT '',
    -- The control plane that builds it, as in sandboxes.
    worker            bigint,
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX template_generations_names ON template_generations (team_id, name, tag) WHERE state <> 'deleted';
CREATE INDEX template_generations_host ON template_generations (host_id) WHERE state = 'ready';
-- One build of a name at a time, and few rows in the search for abandoned ones.
CREATE UNIQUE INDEX template_generations_building ON template_generations (team_id, name, tag) WHERE state = 'building';

-- The generation that a name refers to.
CREATE TABLE templates (
    team_id       uuid NOT NULL REFERENCES teams,
    name          text NOT NULL,
    tag           text NOT NULL,
    generation_id text COLLATE "C" NOT NULL REFERENCES template_generations,
    updated_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (team_id, name, tag)
);

-- The logs of builds. The oldest lines are dropped at the limit.
CREATE TABLE template_lines (
    generation_id text COLLATE "C" NOT NULL REFERENCES template_generations,
    line          bigint NOT NULL, -- from 0
    content       text NOT NULL,
    PRIMARY KEY (generation_id, line)
);

-- '' is the base guest.
ALTER TABLE sandboxes ADD COLUMN generation text COLLATE "C" NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE sandboxes DROP COLUMN generation;
DROP TABLE template_lines;
DROP TABLE templates;
DROP TABLE template_generations;
