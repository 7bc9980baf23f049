-- name: TeamBuilds :one
-- Under LockTeam.
SELECT
    count(*) FILTER (WHERE state = 'building') AS building,
    count(*) FILTER (WHERE state = 'building' AND name = @name AND tag = @tag) AS building_this,
    count(DISTINCT (name, tag)) FILTER (WHERE (name, tag) <> (@name, @tag)) AS others
FROM template_generations WHERE team_id = @team_id AND state <> 'deleted';

-- name: CountMoreTags :one
-- The other names whose builds have another tag.
SELECT count(*) FROM templates t
WHERE t.team_id = @team_id AND (t.name, t.tag) <> (@name::text, @tag::text) AND NOT EXISTS (
    SELECT FROM template_generations g WHERE g.team_id = t.team_id AND g.name = t.name AND g.tag = t.tag AND g.state <> 'deleted'
);

-- name: DropFailedBuilds :exec
-- A new build replaces those that failed before it.
UPDATE template_generations SET state = 'deleted', updated_at = clock_timestamp()
WHERE team_id = @team_id AND name = @name AND tag = @tag AND state = 'failed';

-- name: DropLines :exec
DELETE FROM template_lines WHERE generation_id IN (
    SELECT id FROM template_generations
    WHERE template_generations.team_id = @team_id AND template_generations.name = @name AND template_generations.tag = @tag
        AND template_generations.state = 'deleted'
);

-- name: InsertBuild :one
INSERT INTO template_generations (id, team_id, name, tag, host_id, from_image, from_oci, from_sandbox, from_template, vcpus, memory_mb, env,
    start_cmd, ready_cmd, ready_timeout_sec, worker, more_tags, disk_mb)
VALUES (@id, @team_id, @name, @tag, @host_id, @from_image, @from_oci, @from_sandbox, @from_template, @vcpus, @memory_mb, @env,
    @start_cmd, @ready_cmd, @ready_timeout_sec, @worker, @more_tags, @disk_mb)
RETURNING *;

-- name: PlaceBuild :execrows
UPDATE template_generations SET host_id = @host_id, updated_at = clock_timestamp() WHERE id = @id AND state = 'building' AND worker = @worker;

-- name: IsBuilding :one
SELECT EXISTS (SELECT FROM template_generations WHERE id = @id AND state = 'building' AND worker = @worker);

-- name: AppendLines :exec
-- Each is written a millisecond or more after the one before: pages of a log begin at a time.
INSERT INTO template_lines (generation_id, line, content, written_at)
SELECT @id, added.line, added.content, began.at + make_interval(secs => (added.line - @first_line::bigint) * 0.001)
FROM (SELECT unnest(@numbers::bigint[]) AS line, unnest(@lines::text[]) AS content) AS added,
    (SELECT greatest(date_trunc('milliseconds', clock_timestamp()), date_trunc('milliseconds', max(written_at)) + interval '1 ms') AS at
     FROM template_lines WHERE generation_id = @id) AS began;

-- name: DropOldLines :exec
DELETE FROM template_lines WHERE generation_id = @id AND line < @first_line;

-- name: FinishBuild :one
UPDATE template_generations SET
    state = 'ready', worker = NULL, updated_at = clock_timestamp(), finished_at = clock_timestamp(),
    vcpus = @vcpus, memory_mb = @memory_mb, env = @env, size_bytes = @size_bytes, digest = @digest, disk_mb = @disk_mb
WHERE id = @id AND state = 'building' AND worker = @worker
RETURNING *;

-- name: PointTemplate :exec
WITH assigned AS (
    INSERT INTO template_assignments (team_id, name, tag, generation_id) VALUES (@team_id, @name, @tag, @generation_id)
)
INSERT INTO templates (team_id, name, tag, generation_id) VALUES (@team_id, @name, @tag, @generation_id)
ON CONFLICT (team_id, name, tag) DO UPDATE SET generation_id = excluded.generation_id, updated_at = clock_timestamp();

-- name: DropOldAssignments :exec
DELETE FROM template_assignments WHERE number IN (
    SELECT number FROM template_assignments AS old
    WHERE old.team_id = @team_id AND old.name = @name AND old.tag = @tag ORDER BY number DESC OFFSET @keep::integer
);

-- name: Assignments :many
-- The newest of each tag that refers to a ready build now, with the number before which they are; 0 is all.
-- An empty tag is all tags. Those of builds that their host lost are left out.
SELECT ranked.* FROM (
    SELECT a.id, a.number, a.tag, a.generation_id, a.assigned_at, g.created_at, g.finished_at,
        row_number() OVER (PARTITION BY a.tag ORDER BY a.number DESC) AS place
    FROM template_assignments a
    JOIN template_generations g ON g.id = a.generation_id
    WHERE a.team_id = @team_id AND a.name = @name AND (@tag::text = '' OR a.tag = @tag) AND (@before::bigint = 0 OR a.number < @before)
        AND g.state IN ('ready', 'deleted')
        AND EXISTS (
            SELECT FROM templates t JOIN template_generations now ON now.id = t.generation_id
            WHERE t.team_id = a.team_id AND t.name = a.name AND t.tag = a.tag AND now.state = 'ready'
        )
) AS ranked WHERE ranked.place <= @per_tag::bigint ORDER BY ranked.tag, ranked.number DESC;

-- name: DropUnnamedBuilds :exec
-- The builds of a name to which no tag refers any more.
UPDATE template_generations AS g SET state = 'deleted', reason = @reason, purge = true, updated_at = clock_timestamp()
WHERE g.team_id = @team_id AND g.name = @name AND g.state = 'ready'
    AND NOT EXISTS (SELECT FROM templates t WHERE t.generation_id = g.id);

-- name: FailBuild :execrows
UPDATE template_generations SET state = 'failed', reason = @reason, failed_step = @failed_step, worker = NULL, updated_at = clock_timestamp()
WHERE id = @id AND state = 'building';

-- name: FailAbandonedBuilds :many
UPDATE template_generations SET state = 'failed', reason = @reason, worker = NULL, updated_at = clock_timestamp()
WHERE state = 'building' AND (worker IS NULL OR worker NOT IN (SELECT workers()))
    AND updated_at < clock_timestamp() - make_interval(secs => @older_than)
RETURNING id;

-- name: LoseBuild :execrows
-- One that is stored is not lost.
UPDATE template_generations SET state = 'failed', reason = @reason, purge = true, updated_at = clock_timestamp()
WHERE id = @id AND state = 'ready' AND stored_key = '';

-- name: DeleteTemplate :many
-- A builder finds out when it next writes the log. Builds that other tags refer to stay.
UPDATE template_generations AS g SET state = 'deleted', reason = @reason, worker = NULL, purge = true, updated_at = clock_timestamp()
WHERE g.team_id = @team_id AND g.name = @name AND (g.tag = @tag OR g.state = 'ready') AND g.state <> 'deleted'
    AND NOT EXISTS (SELECT FROM templates t WHERE t.generation_id = g.id)
RETURNING g.id, g.host_id;

-- name: DeleteTemplateName :execrows
WITH forgotten AS (DELETE FROM template_assignments AS a WHERE a.team_id = @team_id AND a.name = @name AND a.tag = @tag)
DELETE FROM templates WHERE templates.team_id = @team_id AND templates.name = @name AND templates.tag = @tag;

-- name: NamedBuilds :many
-- The builds of a name with the one that it refers to, the newest first. '' is all names.
SELECT sqlc.embed(g), (t.generation_id IS NOT NULL)::boolean AS is_current
FROM template_generations g
LEFT JOIN templates t ON t.generation_id = g.id AND t.name = g.name AND t.tag = g.tag
WHERE g.team_id = @team_id AND (@name::text = '' OR (g.name = @name AND g.tag = @tag))
    AND (g.state IN ('building', 'failed') OR g.state = 'ready' AND t.generation_id IS NOT NULL) -- else it is that of other tags
ORDER BY g.name, g.tag, g.created_at DESC;

-- name: TaggedBuilds :many
-- The names that refer to a build of another tag. '' is all names.
SELECT sqlc.embed(g), t.name AS of_name, t.tag AS of_tag
FROM templates t
JOIN template_generations g ON g.id = t.generation_id
WHERE t.team_id = @team_id AND g.state = 'ready' AND (g.name, g.tag) <> (t.name, t.tag)
    AND (@name::text = '' OR (t.name = @name AND t.tag = @tag));

-- name: GetBuild :one
SELECT * FROM template_generations WHERE id = @id AND team_id = @team_id AND name = @name AND tag = @tag;

-- name: BuildLines :many
SELECT line, content, written_at FROM template_lines WHERE generation_id = @id AND line >= @first_line ORDER BY line LIMIT @page_size;

-- name: BuildLinesByTime :many
-- The times of lines of older versions may be equal; they are shown as AppendLines writes them now.
SELECT timed.line, timed.content, timed.at_ms FROM (
    SELECT l.line, l.content, (l.line + max(floor(extract(epoch FROM l.written_at) * 1000)::bigint - l.line) OVER (ORDER BY l.line))::bigint AS at_ms
    FROM template_lines l WHERE l.generation_id = @id
) AS timed
WHERE CASE WHEN @backward::boolean THEN @cursor_ms::bigint = 0 OR timed.at_ms < @cursor_ms ELSE timed.at_ms >= @cursor_ms END
ORDER BY CASE WHEN @backward THEN -timed.line ELSE timed.line END
LIMIT @page_size;

-- name: ReadyBuilds :many
-- Those that are on the host alone.
SELECT id FROM template_generations WHERE host_id = @host_id AND state = 'ready' AND stored_key = '';

-- name: SetBuildsStored :many
-- Where a host has stored the builds that it made. A key of another team or build is left out.
UPDATE template_generations AS g SET stored_key = added.key, stored_at = added.stored_at, platform = @platform
FROM (SELECT unnest(@ids::text[]) AS id, unnest(@keys::text[]) AS key, unnest(@times::timestamptz[]) AS stored_at) AS added
WHERE g.id = added.id AND g.host_id = @host_id AND g.state IN ('building', 'ready') AND g.stored_key = ''
    AND starts_with(added.key, 'teams/' || g.team_id || '/templates/' || g.id || '/')
RETURNING g.id;

-- name: BuildsToPurge :many
-- Builds that are not wanted any more, and whose objects may still be in the snapshot store.
SELECT id, team_id FROM template_generations
WHERE purge AND updated_at < clock_timestamp() - make_interval(secs => @older_than) ORDER BY updated_at LIMIT @at_most;

-- name: BuildPurged :exec
UPDATE template_generations SET purge = false, stored_key = '', stored_at = NULL WHERE id = @id;

-- name: BuildStates :many
-- settled: one that was replaced a moment ago may still be used by a create.
SELECT id, team_id, state, (updated_at < clock_timestamp() - make_interval(secs => @older_than))::boolean AS settled
FROM template_generations WHERE id = ANY (@ids::text[]);

-- name: NamedBuild :one
SELECT g.id FROM templates t JOIN template_generations g ON g.id = t.generation_id
WHERE t.team_id = @team_id AND t.name = @name AND t.tag = @tag AND g.state = 'ready';

-- name: CountNames :one
SELECT count(*) FROM templates WHERE team_id = @team_id;

-- name: RequestBuild :exec
INSERT INTO requested_builds (id, team_id, name, tag, more_tags, vcpus, memory_mb, disk_mb, min_free_disk_mb)
VALUES (@id, @team_id, @name, @tag, @more_tags, @vcpus, @memory_mb, @disk_mb, @min_free_disk_mb);

-- name: DropOldRequests :exec
-- Those that were never started, beside the newest ones.
DELETE FROM requested_builds WHERE id IN (
    SELECT old.id FROM requested_builds AS old WHERE old.team_id = @team_id ORDER BY old.created_at DESC OFFSET @keep::integer
) OR (team_id = @team_id AND created_at < clock_timestamp() - make_interval(secs => @retention));

-- name: GetRequestedBuild :one
SELECT * FROM requested_builds WHERE id = @id AND team_id = @team_id;

-- name: DropRequestedBuild :exec
DELETE FROM requested_builds WHERE id = @id;

-- name: DropRequestedBuilds :execrows
DELETE FROM requested_builds WHERE team_id = @team_id AND name = @name AND tag = @tag;

-- name: FindBuild :one
SELECT * FROM template_generations WHERE id = @id;
