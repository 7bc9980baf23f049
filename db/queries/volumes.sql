-- name: TeamVolumes :one
-- Under LockTeam. One that is being deleted still takes room.
SELECT
    count(*) AS volumes,
    coalesce(sum(size_mib), 0)::bigint AS size_mib,
    count(*) FILTER (WHERE name = @name AND state <> 'deleting') AS named
FROM volumes WHERE team_id = @team_id;

-- name: InsertVolume :exec
INSERT INTO volumes (id, team_id, name, host_id, size_mib, worker) VALUES (@id, @team_id, @name, @host_id, @size_mib, @worker);

-- name: FinishVolume :one
UPDATE volumes SET state = 'ready', worker = NULL, updated_at = clock_timestamp()
WHERE id = @id AND state = 'creating' AND worker = @worker
RETURNING *;

-- name: ListVolumes :many
SELECT * FROM volumes WHERE team_id = @team_id AND state = 'ready' ORDER BY name;

-- name: FindVolumes :many
-- Those with one of the names or ids.
SELECT * FROM volumes WHERE team_id = @team_id AND state = 'ready' AND (name = ANY (@names::text[]) OR id = ANY (@names::text[]));

-- name: CountReadyVolumes :one
-- Under LockTeam.
SELECT count(*) FROM volumes WHERE team_id = @team_id AND state = 'ready' AND id = ANY (@ids::text[]);

-- name: SandboxWithVolume :one
-- Under LockTeam: one that has not ended.
SELECT id FROM sandboxes
WHERE team_id = @team_id AND state NOT IN ('stopped', 'failed') AND volumes @> jsonb_build_array(jsonb_build_object('volume', @volume::text))
ORDER BY id LIMIT 1;

-- name: BeginDeleteVolume :execrows
UPDATE volumes SET state = 'deleting', worker = NULL, updated_at = clock_timestamp() WHERE id = @id AND state <> 'deleting';

-- name: DropVolume :exec
DELETE FROM volumes WHERE id = @id AND state = 'deleting';

-- name: EndAbandonedVolumes :exec
-- Those whose worker is not connected, or should have finished.
UPDATE volumes SET state = 'deleting', worker = NULL, updated_at = clock_timestamp()
WHERE state = 'creating' AND updated_at < clock_timestamp() - make_interval(secs => @older_than)
    AND (worker IS NULL OR worker NOT IN (SELECT workers()) OR updated_at < clock_timestamp() - make_interval(secs => @too_old));

-- name: DeletingVolumes :many
SELECT id, host_id FROM volumes WHERE state = 'deleting' AND updated_at < clock_timestamp() - make_interval(secs => @older_than)
ORDER BY updated_at LIMIT @page_size;
