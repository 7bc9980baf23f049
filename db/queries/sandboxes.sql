-- name: LockTeam :one
-- Creates of one team queue here, so that two never both get the last place.
SELECT max_sandboxes, max_memory_mb, used_sandboxes, used_memory_mb FROM teams WHERE id = @id FOR NO KEY UPDATE;

-- name: TeamUse :one
-- After a change: its count has locked the team's row.
SELECT max_sandboxes, max_memory_mb, used_sandboxes, used_memory_mb FROM teams WHERE id = @id;

-- name: InsertSandboxes :many
-- Several of one team, size and host, in the order of their ids.
WITH made AS (
    INSERT INTO sandboxes (id, state, team_id, host_id, template, vcpus, memory_mb, timeout_sec, on_timeout, absolute_timeout, auto_resume, parent_id, generation, metadata, env, network, volumes, disk_mb, requires, on_host_loss, checkpoint_every_sec, worker)
    SELECT unnest(@ids::text[]), 'starting', @team_id, @host_id, @template, @vcpus, @memory_mb, @timeout_sec, @on_timeout, @absolute_timeout, @auto_resume, @parent_id, @generation,
        @metadata::jsonb, @env::jsonb, @network, @volumes, @disk_mb, @requires::jsonb, @on_host_loss, @checkpoint_every_sec, @worker
    RETURNING *
), event AS (
    INSERT INTO sandbox_events (sandbox_id, version, from_state, to_state, host_id, actor, reason)
    SELECT made.id, made.version, '', made.state, made.host_id, @actor, @reason FROM made
)
SELECT * FROM made ORDER BY id;

-- name: MoveSandbox :one
-- Compare and set: returns no row when another change was first.
WITH moved AS (
    UPDATE sandboxes SET
        state = @to_state,
        reason = @reason,
        env = CASE WHEN @to_state IN ('stopped', 'failed') THEN '{}' ELSE env END, -- they may be secrets
        end_cause = CASE WHEN @from_state = 'failed' THEN '' ELSE coalesce(nullif(@end_cause::text, ''), sandboxes.end_cause) END,
        unresponsive_since = CASE WHEN @to_state IN ('running', 'pausing') THEN unresponsive_since END, -- a pause may fail
        unresponsive_reason = CASE WHEN @to_state IN ('running', 'pausing') THEN unresponsive_reason ELSE '' END,
        -- A resume may fail; what is stored is what was paused as long as the sandbox has not run.
        stored_at = CASE WHEN @stored_key::text <> '' THEN sqlc.narg('stored_at') WHEN @from_state IN ('paused', 'resuming') AND @to_state IN ('paused', 'resuming') THEN stored_at END,
        stored_key = CASE WHEN @stored_key <> '' THEN @stored_key WHEN @from_state IN ('paused', 'resuming') AND @to_state IN ('paused', 'resuming') THEN stored_key ELSE '' END,
        moving = (sandboxes.moving OR @moving::boolean) AND @to_state IN ('pausing', 'paused', 'resuming'),
        moving_note = CASE WHEN sandboxes.host_id = coalesce(sqlc.narg('host_id'), sandboxes.host_id) THEN sandboxes.moving_note ELSE '' END,
        moved_key = coalesce(nullif(@moved_key::text, ''), sandboxes.moved_key),
        epoch = sandboxes.epoch + CASE WHEN @moved_key <> '' OR coalesce(sqlc.narg('host_id'), sandboxes.host_id) <> sandboxes.host_id THEN 1 ELSE 0 END,
        worker = sqlc.narg('worker'),
        host_id = coalesce(sqlc.narg('host_id'), sandboxes.host_id),
        started_at = CASE WHEN @to_state IN ('running', 'paused') THEN coalesce(started_at, clock_timestamp()) ELSE started_at END,
        last_active_at = CASE WHEN @to_state = 'running' THEN clock_timestamp() ELSE last_active_at END,
        ends_at = CASE
            WHEN absolute_timeout AND timeout_sec > 0 AND @to_state = 'running' AND @from_state IN ('starting', 'paused', 'resuming')
            THEN clock_timestamp() + make_interval(secs => timeout_sec) ELSE ends_at
        END,
        updated_at = clock_timestamp(),
        version = version + 1
    WHERE sandboxes.id = @id AND sandboxes.version = @version AND sandboxes.state = @from_state
    RETURNING *
), event AS (
    INSERT INTO sandbox_events (sandbox_id, version, from_state, to_state, host_id, actor, reason)
    SELECT moved.id, moved.version, @from_state, moved.state, moved.host_id, @actor, moved.reason FROM moved
)
SELECT * FROM moved;

-- name: SetSandboxTimeout :one
WITH moved AS (
    UPDATE sandboxes SET
        timeout_sec = @timeout_sec,
        ends_at = CASE WHEN absolute_timeout AND @timeout_sec > 0 THEN clock_timestamp() + make_interval(secs => @timeout_sec) END,
        last_active_at = clock_timestamp(),
        updated_at = CASE WHEN state = 'paused' THEN updated_at ELSE clock_timestamp() END,
        version = version + 1
    WHERE sandboxes.id = @id AND sandboxes.version = @version AND sandboxes.state IN ('running', 'paused')
    RETURNING *
), event AS (
    INSERT INTO sandbox_events (sandbox_id, version, from_state, to_state, host_id, actor, reason)
    SELECT moved.id, moved.version, moved.state, moved.state, moved.host_id, @actor, @reason FROM moved
)
SELECT * FROM moved;

-- name: SetSandboxNetwork :one
WITH moved AS (
    UPDATE sandboxes SET network = @network, updated_at = clock_timestamp(), version = version + 1
    WHERE sandboxes.id = @id AND sandboxes.version = @version AND sandboxes.state IN ('running', 'paused')
    RETURNING *
), event AS (
    INSERT INTO sandbox_events (sandbox_id, version, from_state, to_state, host_id, actor, reason)
    SELECT moved.id, moved.version, moved.state, moved.state, moved.host_id, @actor, 'network policy set' FROM moved
)
SELECT * FROM moved;

-- name: SetSandboxSettings :one
WITH moved AS (
    UPDATE sandboxes SET on_timeout = @on_timeout, auto_resume = @auto_resume, on_host_loss = @on_host_loss, checkpoint_every_sec = @checkpoint_every_sec,
        updated_at = CASE WHEN state = 'paused' THEN updated_at ELSE clock_timestamp() END, version = version + 1
    WHERE sandboxes.id = @id AND sandboxes.version = @version AND sandboxes.state IN ('running', 'paused')
    RETURNING *
), event AS (
    INSERT INTO sandbox_events (sandbox_id, version, from_state, to_state, host_id, actor, reason)
    SELECT moved.id, moved.version, moved.state, moved.state, moved.host_id, @actor, 'settings set' FROM moved
)
SELECT * FROM moved;

-- name: SetSandboxMetadata :one
WITH moved AS (
    UPDATE sandboxes SET metadata = @metadata, updated_at = clock_timestamp(), version = version + 1
    WHERE sandboxes.id = @id AND sandboxes.version = @version AND sandboxes.state IN ('running', 'paused')
    RETURNING *
), event AS (
    INSERT INTO sandbox_events (sandbox_id, version, from_state, to_state, host_id, actor, reason)
    SELECT moved.id, moved.version, moved.state, moved.state, moved.host_id, @actor, 'metadata set' FROM moved
)
SELECT * FROM moved;

-- name: SetUnresponsive :one
-- A running sandbox whose guest does not answer, or answers again; then since is null.
WITH changed AS (
    UPDATE sandboxes SET
        unresponsive_since = sqlc.narg('since'),
        unresponsive_reason = @unresponsive_reason,
        updated_at = clock_timestamp(),
        version = version + 1
    WHERE sandboxes.id = @id AND sandboxes.version = @version AND sandboxes.state = 'running'
    RETURNING *
), event AS (
    INSERT INTO sandbox_events (sandbox_id, version, from_state, to_state, host_id, actor, reason)
    SELECT changed.id, changed.version, changed.state, changed.state, changed.host_id, @actor, @reason FROM changed
)
SELECT * FROM changed;

-- name: SetStored :one
-- Where a paused sandbox is stored; nowhere with a key of ''.
WITH changed AS (
    UPDATE sandboxes SET stored_at = sqlc.narg('stored_at'), stored_key = @stored_key, version = version + 1
    WHERE sandboxes.id = @id AND sandboxes.version = @version AND sandboxes.state = 'paused'
    RETURNING *
), event AS (
    INSERT INTO sandbox_events (sandbox_id, version, from_state, to_state, host_id, actor, reason)
    SELECT changed.id, changed.version, changed.state, changed.state, changed.host_id, @actor, @reason FROM changed
)
SELECT * FROM changed;

-- name: SetNewestCheckpoint :exec
-- It is no change of the sandbox.
UPDATE sandboxes SET checkpoint_id = @checkpoint_id, checkpoint_key = @checkpoint_key, checkpoint_at = sqlc.narg('checkpoint_at')
WHERE id = @id AND host_id = @host_id AND epoch = @epoch AND state IN ('running', 'paused');

-- name: SetEpoch :one
-- That of the sandbox on its host, if it is later than the row's.
WITH changed AS (
    UPDATE sandboxes SET epoch = @epoch, version = version + 1
    WHERE sandboxes.id = @id AND sandboxes.version = @version AND sandboxes.epoch < @epoch
    RETURNING *
), event AS (
    INSERT INTO sandbox_events (sandbox_id, version, from_state, to_state, host_id, actor, reason)
    SELECT changed.id, changed.version, changed.state, changed.state, changed.host_id, @actor, @reason FROM changed
)
SELECT * FROM changed;

-- name: GetSandbox :one
SELECT * FROM sandboxes WHERE id = @id;

-- name: LiveSandboxes :many
-- Of all teams.
SELECT id FROM sandboxes WHERE state NOT IN ('stopped', 'failed') LIMIT @most::integer;

-- name: GetTeamSandbox :one
SELECT * FROM sandboxes WHERE id = @id AND team_id = @team_id;

-- name: ListSandboxes :many
-- Each state's newest come from the index in order, so a page costs at most states * limit rows.
SELECT
    s.id, s.team_id, s.host_id, s.template, s.state, s.reason, s.vcpus,
    s.memory_mb, s.timeout_sec, s.metadata, '{}'::jsonb AS env, s.created_at, s.started_at, s.last_active_at,
    s.updated_at, s.version, s.worker, s.on_timeout, s.auto_resume, s.parent_id, s.generation,
    s.end_cause, s.unresponsive_since, s.unresponsive_reason, s.absolute_timeout, s.ends_at, s.network, s.volumes, s.disk_mb, s.stored_at, s.stored_key, s.requires, s.moving, s.moving_note, s.moved_key, s.epoch, s.on_host_loss, s.checkpoint_every_sec, s.checkpoint_id, s.checkpoint_key, s.checkpoint_at
FROM unnest(@states::text[]) AS wanted (state)
CROSS JOIN LATERAL (
    SELECT * FROM sandboxes -- the variables, which may be large, are not read
    WHERE sandboxes.team_id = @team_id
        AND sandboxes.state = wanted.state
        AND sandboxes.metadata @> @metadata
        AND (@template::text = '' OR sandboxes.template = @template OR split_part(sandboxes.template, ':', 1) = @template)
        AND coalesce(sandboxes.started_at, sandboxes.created_at) >= @started_after::timestamptz
        AND (sandboxes.created_at, sandboxes.id) < (@before_at::timestamptz, @before_id::text)
    ORDER BY sandboxes.created_at DESC, sandboxes.id DESC
    LIMIT @page_size
) AS s
ORDER BY s.created_at DESC, s.id DESC
LIMIT @page_size;

-- name: ListSandboxesOldestFirst :many
-- ListSandboxes in the other order.
SELECT
    s.id, s.team_id, s.host_id, s.template, s.state, s.reason, s.vcpus,
    s.memory_mb, s.timeout_sec, s.metadata, '{}'::jsonb AS env, s.created_at, s.started_at, s.last_active_at,
    s.updated_at, s.version, s.worker, s.on_timeout, s.auto_resume, s.parent_id, s.generation,
    s.end_cause, s.unresponsive_since, s.unresponsive_reason, s.absolute_timeout, s.ends_at, s.network, s.volumes, s.disk_mb, s.stored_at, s.stored_key, s.requires, s.moving, s.moving_note, s.moved_key, s.epoch, s.on_host_loss, s.checkpoint_every_sec, s.checkpoint_id, s.checkpoint_key, s.checkpoint_at
FROM unnest(@states::text[]) AS wanted (state)
CROSS JOIN LATERAL (
    SELECT * FROM sandboxes -- the variables, which may be large, are not read
    WHERE sandboxes.team_id = @team_id
        AND sandboxes.state = wanted.state
        AND sandboxes.metadata @> @metadata
        AND (@template::text = '' OR sandboxes.template = @template OR split_part(sandboxes.template, ':', 1) = @template)
        AND coalesce(sandboxes.started_at, sandboxes.created_at) >= @started_after::timestamptz
        AND (sandboxes.created_at, sandboxes.id) > (@after_at::timestamptz, @after_id::text)
    ORDER BY sandboxes.created_at, sandboxes.id
    LIMIT @page_size
) AS s
ORDER BY s.created_at, s.id
LIMIT @page_size;

-- name: CountSandboxes :one
-- For states of living sandboxes, of which a team has no more than its limit.
SELECT count(*) FROM sandboxes
WHERE team_id = @team_id
    AND state = ANY (@states::text[])
    AND metadata @> @metadata
    AND (@template::text = '' OR template = @template OR split_part(template, ':', 1) = @template)
    AND coalesce(started_at, created_at) >= @started_after::timestamptz;

-- name: TeamOnHosts :many
-- How many sandboxes of a team that have not ended are on each host. A row of each comes
-- from the index sandboxes_list.
SELECT host_id, count(*) AS sandboxes FROM sandboxes
WHERE team_id = @team_id AND state = ANY (ARRAY['pending', 'starting', 'running', 'pausing', 'paused', 'resuming', 'stopping'])
GROUP BY host_id;

-- name: HostRows :many
-- The rows that should be on a host, and those of the sandboxes that the host reports.
SELECT
    id, team_id, host_id, template, state, reason, vcpus,
    memory_mb, timeout_sec, metadata, '{}'::jsonb AS env, created_at, started_at, last_active_at,
    updated_at, version, worker, on_timeout, auto_resume, parent_id, generation,
    end_cause, unresponsive_since, unresponsive_reason, absolute_timeout, ends_at, network, volumes, disk_mb, stored_at, stored_key, requires, moving, moving_note, moved_key, epoch, on_host_loss, checkpoint_every_sec, checkpoint_id, checkpoint_key, checkpoint_at
FROM sandboxes WHERE sandboxes.host_id = @host_id AND sandboxes.state NOT IN ('stopped', 'failed')
UNION
SELECT
    id, team_id, host_id, template, state, reason, vcpus,
    memory_mb, timeout_sec, metadata, '{}'::jsonb AS env, created_at, started_at, last_active_at,
    updated_at, version, worker, on_timeout, auto_resume, parent_id, generation,
    end_cause, unresponsive_since, unresponsive_reason, absolute_timeout, ends_at, network, volumes, disk_mb, stored_at, stored_key, requires, moving, moving_note, moved_key, epoch, on_host_loss, checkpoint_every_sec, checkpoint_id, checkpoint_key, checkpoint_at
FROM sandboxes WHERE sandboxes.id = ANY (@seen::text[]);

-- name: SandboxesToMove :many
-- Those that are being moved, and all on hosts that are drained.
SELECT
    id, team_id, host_id, template, state, reason, vcpus,
    memory_mb, timeout_sec, metadata, '{}'::jsonb AS env, created_at, started_at, last_active_at,
    updated_at, version, worker, on_timeout, auto_resume, parent_id, generation,
    end_cause, unresponsive_since, unresponsive_reason, absolute_timeout, ends_at, network, volumes, disk_mb, stored_at, stored_key, requires, moving, moving_note, moved_key, epoch, on_host_loss, checkpoint_every_sec, checkpoint_id, checkpoint_key, checkpoint_at
FROM sandboxes WHERE sandboxes.moving
UNION
SELECT
    id, team_id, host_id, template, state, reason, vcpus,
    memory_mb, timeout_sec, metadata, '{}'::jsonb AS env, created_at, started_at, last_active_at,
    updated_at, version, worker, on_timeout, auto_resume, parent_id, generation,
    end_cause, unresponsive_since, unresponsive_reason, absolute_timeout, ends_at, network, volumes, disk_mb, stored_at, stored_key, requires, moving, moving_note, moved_key, epoch, on_host_loss, checkpoint_every_sec, checkpoint_id, checkpoint_key, checkpoint_at
FROM sandboxes WHERE sandboxes.state NOT IN ('stopped', 'failed')
    AND sandboxes.host_id IN (SELECT hosts.id FROM hosts WHERE hosts.status = 'draining');

-- name: SetMovingNote :exec
UPDATE sandboxes SET moving_note = @note WHERE id = @id AND moving_note <> @note;

-- name: ClearMovingNotes :exec
UPDATE sandboxes SET moving_note = '' WHERE host_id = @host_id AND state NOT IN ('stopped', 'failed') AND moving_note <> '';

-- name: DrainProgress :many
SELECT id, state, moving, moving_note FROM sandboxes
WHERE host_id = @host_id AND state NOT IN ('stopped', 'failed') ORDER BY moving_note = '', id;

-- name: AbandonedSandboxes :many
-- Rows in transition whose worker, a control plane, is not connected any more.
SELECT id, host_id FROM sandboxes
WHERE state IN ('pending', 'starting', 'pausing', 'resuming', 'stopping')
    AND worker IS NOT NULL
    AND worker NOT IN (SELECT workers())
    AND updated_at < clock_timestamp() - make_interval(secs => @older_than)
ORDER BY worker
LIMIT @page_size;

-- name: ReleaseSandboxes :exec
-- Rows are locked in the order of their ids, as in TouchSandboxes.
UPDATE sandboxes SET worker = 0
FROM (
    SELECT id FROM sandboxes WHERE id = ANY (@ids::text[]) AND sandboxes.worker = @worker ORDER BY id FOR NO KEY UPDATE
) AS t
WHERE sandboxes.id = t.id AND sandboxes.worker = @worker;

-- name: Now :one
SELECT clock_timestamp()::timestamptz AS now;

-- name: TouchSandboxes :exec
-- Rows are locked in the order of their ids, so that two replicas cannot wait for each other; a row that
-- another statement changes now is active anyway.
UPDATE sandboxes SET last_active_at = greatest(last_active_at, t.at)
FROM (
    SELECT s.id, u.at FROM sandboxes s
    JOIN (SELECT unnest(@ids::text[]) AS id, unnest(@times::timestamptz[]) AS at) AS u ON u.id = s.id
    ORDER BY s.id FOR NO KEY UPDATE OF s SKIP LOCKED
) AS t
WHERE sandboxes.id = t.id;

-- name: SandboxesCreatedBy :many
-- The first event of a sandbox names its creator. Few sandboxes of a team are alive, and events are found by sandbox.
SELECT s.id FROM sandboxes s
JOIN sandbox_events e ON e.sandbox_id = s.id AND e.version = 1
WHERE s.team_id = @team_id AND s.state NOT IN ('stopped', 'failed') AND e.actor = @actor
ORDER BY s.id;

-- name: BeginRetention :exec
-- Events can be deleted in this transaction.
SELECT set_config('wrenn.retention', 'on', true);

-- name: DropEndedSandboxes :execrows
-- With their events, from which use is counted: not before the hour of their end is settled. A row that another replica deletes now is left to it.
WITH old AS (
    SELECT id FROM sandboxes
    WHERE state IN ('stopped', 'failed') AND updated_at < clock_timestamp() - make_interval(secs => @retention)
        AND updated_at < (SELECT settled_until - interval '1 minute' FROM usage_progress)
    ORDER BY updated_at LIMIT @batch FOR UPDATE SKIP LOCKED
)
DELETE FROM sandboxes USING old WHERE sandboxes.id = old.id;

-- name: SandboxEvents :many
SELECT * FROM sandbox_events WHERE sandbox_id = @sandbox_id ORDER BY id;

-- name: WatchSandboxes :many
-- What tells that a living sandbox of a team has changed, newest first.
SELECT id, version, last_active_at FROM sandboxes
WHERE team_id = @team_id AND state = ANY(@states::text[])
ORDER BY created_at DESC, id DESC LIMIT @most;

-- name: SandboxesByID :many
SELECT
    s.id, s.team_id, s.host_id, s.template, s.state, s.reason, s.vcpus,
    s.memory_mb, s.timeout_sec, s.metadata, '{}'::jsonb AS env, s.created_at, s.started_at, s.last_active_at,
    s.updated_at, s.version, s.worker, s.on_timeout, s.auto_resume, s.parent_id, s.generation,
    s.end_cause, s.unresponsive_since, s.unresponsive_reason, s.absolute_timeout, s.ends_at, s.network, s.volumes, s.disk_mb, stored_at, stored_key, requires, moving, moving_note, moved_key, epoch, on_host_loss, checkpoint_every_sec, checkpoint_id, checkpoint_key, checkpoint_at
FROM sandboxes s WHERE s.team_id = @team_id AND s.id = ANY(@ids::text[])
ORDER BY s.created_at DESC, s.id DESC;

-- name: ProxiesOfOtherKeys :many
-- The passwords of egress proxies that another key encrypts, of sandboxes that have not ended, after an id.
SELECT id, team_id, (network->'proxy'->>'sealed')::text AS sealed FROM sandboxes
WHERE network->'proxy'->'sealed' IS NOT NULL AND COALESCE(network->'proxy'->>'sealed_key', '') <> @key_id::text
    AND state NOT IN ('stopped', 'failed') AND id > @after
ORDER BY id LIMIT @page_size;

-- name: ResealProxy :execrows
UPDATE sandboxes SET network = jsonb_set(jsonb_set(network, '{proxy,sealed}', to_jsonb(@sealed::text)), '{proxy,sealed_key}', to_jsonb(@key_id::text))
WHERE id = @id AND network->'proxy'->>'sealed' = @old::text;
