-- name: SaveHost :exec
INSERT INTO hosts (id, url, version, instance, driver, sandboxes, sandboxes_used,
    memory_mb, memory_mb_used, disk_mb, disk_mb_free, last_seen_at)
VALUES (@id, @url, @version, @instance, @driver, @sandboxes, @sandboxes_used,
    @memory_mb, @memory_mb_used, @disk_mb, @disk_mb_free, clock_timestamp())
ON CONFLICT (id) DO UPDATE SET
    url = excluded.url, version = excluded.version, instance = excluded.instance, driver = excluded.driver,
    sandboxes = excluded.sandboxes, sandboxes_used = excluded.sandboxes_used,
    memory_mb = excluded.memory_mb, memory_mb_used = excluded.memory_mb_used,
    disk_mb = excluded.disk_mb, disk_mb_free = excluded.disk_mb_free,
    last_seen_at = excluded.last_seen_at;

-- name: Hosts :many
SELECT * FROM hosts ORDER BY id;

-- name: UnknownSandboxes :many
SELECT * FROM unknown_sandboxes ORDER BY host_id, sandbox_id;

-- name: SaveUnknown :many
-- Returns the ids that were not known to be unknown.
WITH gone AS (
    DELETE FROM unknown_sandboxes WHERE unknown_sandboxes.host_id = @host_id AND unknown_sandboxes.sandbox_id <> ALL (@ids::text[])
), kept AS (
    INSERT INTO unknown_sandboxes (host_id, sandbox_id, seen_state, reason)
    SELECT @host_id, u.id, u.state, u.reason
    FROM (SELECT unnest(@ids::text[]) AS id, unnest(@states::text[]) AS state, unnest(@reasons::text[]) AS reason) AS u
    ON CONFLICT (host_id, sandbox_id) DO UPDATE SET
        seen_state = excluded.seen_state, reason = excluded.reason, last_seen_at = clock_timestamp()
    RETURNING sandbox_id, (xmax = 0) AS is_new
)
SELECT sandbox_id FROM kept WHERE is_new;
