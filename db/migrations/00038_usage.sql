-- +goose Up

-- What a team used in each hour (UTC). The rows of an hour are computed from the events of
-- sandboxes, templates and volumes, and replaced as a whole until the hour is settled:
-- computing an hour again, by any replica, gives the same.
CREATE TABLE team_usage (
    team_id         uuid NOT NULL REFERENCES teams,
    hour            timestamptz NOT NULL, -- its begin
    creates         bigint NOT NULL,      -- of sandboxes, copies included
    sandbox_ms      bigint NOT NULL,      -- while they ran
    paused_ms       bigint NOT NULL,      -- of sandboxes
    vcpu_ms         bigint NOT NULL,
    memory_mib_ms   bigint NOT NULL,
    disk_mib_ms     bigint NOT NULL,      -- of running and paused sandboxes
    volume_mib_ms   bigint NOT NULL,
    template_mib_ms bigint NOT NULL,
    PRIMARY KEY (team_id, hour)
);
CREATE INDEX team_usage_hour ON team_usage (hour);

-- How far team_usage is computed: one row, which is locked meanwhile.
CREATE TABLE usage_progress (
    only_one      boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    counted_from  timestamptz NOT NULL,
    settled_until timestamptz NOT NULL, -- hours before it are not computed again
    counted_until timestamptz NOT NULL
);
INSERT INTO usage_progress (counted_from, settled_until, counted_until)
SELECT h.begin, h.begin, h.begin FROM (SELECT date_trunc('hour', clock_timestamp(), 'UTC') AS begin) AS h;

-- The volumes that are gone, until the hour in which they went is settled.
CREATE TABLE ended_volumes (
    team_id    uuid NOT NULL REFERENCES teams,
    size_mib   integer NOT NULL,
    created_at timestamptz NOT NULL,
    ended_at   timestamptz NOT NULL
);

-- +goose StatementBegin
CREATE FUNCTION volumes_keep_use() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ended_volumes (team_id, size_mib, created_at, ended_at)
    VALUES (OLD.team_id, OLD.size_mib, OLD.created_at, CASE WHEN OLD.state = 'deleting' THEN OLD.updated_at ELSE clock_timestamp() END);
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER keep_use AFTER DELETE ON volumes FOR EACH ROW EXECUTE FUNCTION volumes_keep_use();

-- count_usage adds what all teams used in the hour from from_hour, until then; there must be
-- no rows of the hour. default_disk_mib is the size of disks of which no row knows the size.
-- A sandbox is read from its last event before the hour on: the state between two events is
-- that of the first. An event that is dated before the one before it, because a clock was set
-- back, counts as if it were at the same time, so that no time counts twice.
-- The end of a row is dated a moment before its event.
-- +goose StatementBegin
CREATE FUNCTION count_usage(from_hour timestamptz, until timestamptz, default_disk_mib integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
WITH there AS (
    SELECT s.id, s.team_id, s.vcpus, s.memory_mb, s.created_at,
        coalesce(nullif(s.disk_mb, 0), nullif(g.disk_mb, 0), default_disk_mib) AS disk_mib
    FROM sandboxes s LEFT JOIN template_generations g ON g.id = s.generation
    WHERE s.state NOT IN ('stopped', 'failed')
        OR (s.state IN ('stopped', 'failed') AND s.updated_at >= from_hour - interval '1 minute')
), changes AS (
    SELECT there.id, there.team_id, there.vcpus, there.memory_mb, there.disk_mib, e.version, e.to_state,
        greatest(from_hour, max(e.at) OVER (PARTITION BY there.id ORDER BY e.version)) AS begins
    FROM there
    CROSS JOIN LATERAL (
        SELECT coalesce((
            SELECT b.version FROM sandbox_events b WHERE b.sandbox_id = there.id AND b.at <= from_hour ORDER BY b.version DESC LIMIT 1
        ), 0) AS version
    ) AS before
    JOIN sandbox_events e ON e.sandbox_id = there.id AND e.version >= before.version
), spans AS (
    SELECT c.team_id, c.vcpus, c.memory_mb, c.disk_mib, c.to_state, greatest(0, extract(epoch FROM
        least(until, lead(c.begins) OVER (PARTITION BY c.id ORDER BY c.version)) - c.begins) * 1000) AS ms
    FROM changes c
), of_sandboxes AS (
    SELECT s.team_id,
        sum(s.ms) FILTER (WHERE s.to_state IN ('running', 'pausing')) AS sandbox_ms,
        sum(s.ms) FILTER (WHERE s.to_state IN ('paused', 'resuming')) AS paused_ms,
        sum(s.ms * s.vcpus) FILTER (WHERE s.to_state IN ('running', 'pausing')) AS vcpu_ms,
        sum(s.ms * s.memory_mb) FILTER (WHERE s.to_state IN ('running', 'pausing')) AS memory_mib_ms,
        sum(s.ms * s.disk_mib) FILTER (WHERE s.to_state IN ('running', 'pausing', 'paused', 'resuming')) AS disk_mib_ms
    FROM spans s GROUP BY s.team_id
), of_creates AS (
    SELECT c.team_id, count(*) AS creates FROM there c
    WHERE c.created_at >= from_hour AND c.created_at < from_hour + interval '1 hour' GROUP BY c.team_id
), of_volumes AS (
    SELECT v.team_id, sum(v.size_mib * greatest(0, extract(epoch FROM
        least(until, CASE WHEN v.state = 'deleting' THEN v.updated_at END) - greatest(from_hour, v.created_at)) * 1000)) AS mib_ms
    FROM volumes v GROUP BY v.team_id
), of_ended_volumes AS (
    SELECT v.team_id, sum(v.size_mib * greatest(0, extract(epoch FROM
        least(until, v.ended_at) - greatest(from_hour, v.created_at)) * 1000)) AS mib_ms
    FROM ended_volumes v GROUP BY v.team_id
), of_templates AS (
    SELECT g.team_id, sum(g.size_bytes / 1048576.0 * greatest(0, extract(epoch FROM
        least(until, CASE WHEN g.state <> 'ready' THEN g.updated_at END) - greatest(from_hour, g.finished_at)) * 1000)) AS mib_ms
    FROM template_generations g
    WHERE g.finished_at IS NOT NULL AND (g.state = 'ready' OR g.updated_at >= from_hour) GROUP BY g.team_id
), totals AS (
    SELECT t.id AS team_id, coalesce(c.creates, 0) AS creates,
        round(coalesce(s.sandbox_ms, 0)) AS sandbox_ms, round(coalesce(s.paused_ms, 0)) AS paused_ms,
        round(coalesce(s.vcpu_ms, 0)) AS vcpu_ms, round(coalesce(s.memory_mib_ms, 0)) AS memory_mib_ms,
        round(coalesce(s.disk_mib_ms, 0)) AS disk_mib_ms, round(coalesce(v.mib_ms, 0) + coalesce(w.mib_ms, 0)) AS volume_mib_ms,
        round(coalesce(g.mib_ms, 0)) AS template_mib_ms
    FROM teams t
    LEFT JOIN of_sandboxes s ON s.team_id = t.id
    LEFT JOIN of_creates c ON c.team_id = t.id
    LEFT JOIN of_volumes v ON v.team_id = t.id
    LEFT JOIN of_ended_volumes w ON w.team_id = t.id
    LEFT JOIN of_templates g ON g.team_id = t.id
)
INSERT INTO team_usage (team_id, hour, creates, sandbox_ms, paused_ms, vcpu_ms, memory_mib_ms, disk_mib_ms, volume_mib_ms, template_mib_ms)
SELECT u.team_id, from_hour, u.creates, u.sandbox_ms, u.paused_ms, u.vcpu_ms, u.memory_mib_ms, u.disk_mib_ms, u.volume_mib_ms, u.template_mib_ms
FROM totals u
WHERE u.creates + u.sandbox_ms + u.paused_ms + u.volume_mib_ms + u.template_mib_ms > 0;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION count_usage;
DROP TRIGGER keep_use ON volumes;
DROP FUNCTION volumes_keep_use;
DROP TABLE ended_volumes;
DROP TABLE usage_progress;
DROP TABLE team_usage;
