-- name: LockUsage :one
-- Replicas that count at the same time queue here.
SELECT settled_until FROM usage_progress FOR UPDATE;

-- name: UsageProgress :one
SELECT counted_from, settled_until, counted_until FROM usage_progress;

-- name: SetUsageProgress :exec
UPDATE usage_progress SET counted_from = least(counted_from, @settled_until), settled_until = @settled_until, counted_until = @counted_until;

-- name: ForgetUsageSince :exec
-- Of hours that are computed again.
DELETE FROM team_usage WHERE hour >= @hour;

-- name: DropEndedVolumes :exec
DELETE FROM ended_volumes WHERE ended_at < @settled_until;

-- name: CountUsage :exec
-- See the function.
SELECT count_usage(@hour::timestamptz, @until::timestamptz, @default_disk_mib::integer);

-- name: TeamUsage :many
SELECT date_trunc(@step::text, hour, 'UTC')::timestamptz AS begins,
    sum(creates)::bigint AS creates, sum(sandbox_ms)::bigint AS sandbox_ms, sum(paused_ms)::bigint AS paused_ms, sum(vcpu_ms)::bigint AS vcpu_ms,
    sum(memory_mib_ms)::bigint AS memory_mib_ms, sum(disk_mib_ms)::bigint AS disk_mib_ms,
    sum(volume_mib_ms)::bigint AS volume_mib_ms, sum(template_mib_ms)::bigint AS template_mib_ms
FROM team_usage WHERE team_id = @team_id AND hour >= @since AND hour < @until
GROUP BY begins ORDER BY begins;

-- name: FindTeam :one
SELECT id FROM teams WHERE name = @name;

-- name: DropUsage :execrows
DELETE FROM team_usage WHERE ctid IN (
    SELECT u.ctid FROM team_usage u WHERE u.hour < clock_timestamp() - make_interval(secs => @retention) ORDER BY u.hour LIMIT @batch
);

-- name: TeamHolds :one
-- What a team has now, and its own limits.
SELECT t.max_sandboxes, t.max_memory_mb, t.used_sandboxes, t.used_memory_mb,
    (SELECT count(*) FROM volumes v WHERE v.team_id = t.id) AS volumes,
    (SELECT coalesce(sum(v.size_mib), 0)::bigint FROM volumes v WHERE v.team_id = t.id) AS volume_mib,
    (SELECT count(*) FROM secrets s WHERE s.team_id = t.id) AS secrets,
    (SELECT count(*) FROM api_keys k WHERE k.team_id = t.id AND k.revoked_at IS NULL) AS keys,
    (SELECT count(*) FROM template_generations g WHERE g.team_id = t.id AND g.state = 'building') AS builds,
    (SELECT count(*) FROM (
        SELECT n.name, n.tag FROM templates n WHERE n.team_id = t.id
        UNION
        SELECT g.name, g.tag FROM template_generations g WHERE g.team_id = t.id AND g.state <> 'deleted'
    ) AS names) AS templates
FROM teams t WHERE t.id = @id;
