-- +goose Up

ALTER TABLE sandboxes
    -- What happens at the timeout.
    ADD COLUMN on_timeout text NOT NULL DEFAULT 'destroy' CONSTRAINT sandboxes_on_timeout CHECK (on_timeout IN ('destroy', 'pause')),
    -- Its use resumes it while it is paused.
    ADD COLUMN auto_resume boolean NOT NULL DEFAULT false,
    -- The sandbox that it was forked from; '' for none.
    ADD COLUMN parent_id text COLLATE "C" NOT NULL DEFAULT '';

-- A paused sandbox uses no memory: a team's use does not include it.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION sandboxes_count_use() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        UPDATE teams SET used_sandboxes = used_sandboxes + u.sandboxes, used_memory_mb = used_memory_mb + u.memory_mb
        FROM (
            SELECT team_id, count(*) AS sandboxes, coalesce(sum(memory_mb) FILTER (WHERE state <> 'paused'), 0) AS memory_mb
            FROM now_rows WHERE state NOT IN ('stopped', 'failed') GROUP BY team_id
        ) AS u
        WHERE teams.id = u.team_id;
    ELSE
        UPDATE teams SET used_sandboxes = used_sandboxes + u.sandboxes, used_memory_mb = used_memory_mb + u.memory_mb
        FROM (
            SELECT team_id, sum(one) AS sandboxes, sum(memory_mb) AS memory_mb
            FROM (
                SELECT team_id, 1 AS one, CASE WHEN state = 'paused' THEN 0 ELSE memory_mb END AS memory_mb
                FROM now_rows WHERE state NOT IN ('stopped', 'failed')
                UNION ALL
                SELECT team_id, -1, CASE WHEN state = 'paused' THEN 0 ELSE -memory_mb END
                FROM old_rows WHERE state NOT IN ('stopped', 'failed')
            ) AS both_rows
            GROUP BY team_id HAVING sum(one) <> 0 OR sum(memory_mb) <> 0
        ) AS u
        WHERE teams.id = u.team_id;
    END IF;
    RETURN NULL;
END $$;
-- +goose StatementEnd

UPDATE teams SET used_memory_mb = used_memory_mb - u.memory_mb
FROM (SELECT team_id, sum(memory_mb) AS memory_mb FROM sandboxes WHERE state = 'paused' GROUP BY team_id) AS u
WHERE teams.id = u.team_id;

-- +goose Down
ALTER TABLE sandboxes DROP COLUMN parent_id, DROP COLUMN auto_resume, DROP COLUMN on_timeout;
UPDATE teams SET used_memory_mb = used_memory_mb + u.memory_mb
FROM (SELECT team_id, sum(memory_mb) AS memory_mb FROM sandboxes WHERE state = 'paused' GROUP BY team_id) AS u
WHERE teams.id = u.team_id;

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION sandboxes_count_use() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        UPDATE teams SET used_sandboxes = used_sandboxes + u.sandboxes, used_memory_mb = used_memory_mb + u.memory_mb
        FROM (
            SELECT team_id, count(*) AS sandboxes, sum(memory_mb) AS memory_mb
            FROM now_rows WHERE state NOT IN ('stopped', 'failed') GROUP BY team_id
        ) AS u
        WHERE teams.id = u.team_id;
    ELSE
        UPDATE teams SET used_sandboxes = used_sandboxes + u.sandboxes, used_memory_mb = used_memory_mb + u.memory_mb
        FROM (
            SELECT team_id, sum(one) AS sandboxes, sum(memory_mb) AS memory_mb
            FROM (
                SELECT team_id, 1 AS one, memory_mb FROM now_rows WHERE state NOT IN ('stopped', 'failed')
                UNION ALL
                SELECT team_id, -1, -memory_mb FROM old_rows WHERE state NOT IN ('stopped', 'failed')
            ) AS both_rows
            GROUP BY team_id HAVING sum(one) <> 0 OR sum(memory_mb) <> 0
        ) AS u
        WHERE teams.id = u.team_id;
    END IF;
    RETURN NULL;
END $$;
-- +goose StatementEnd
