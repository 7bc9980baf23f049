-- name: StoreRound :one
-- over: it is as old as a round becomes.
SELECT round, (began_at + make_interval(secs => @length_sec::float8) <= clock_timestamp())::boolean AS over FROM store_rounds;

-- name: RaiseStoreRound :exec
UPDATE store_rounds SET round = @round, began_at = clock_timestamp() WHERE round < @round;

-- name: TeamsToCollect :many
SELECT t.id FROM teams t LEFT JOIN store_collections c ON c.team_id = t.id
WHERE c.team_id IS NULL OR c.through_round < @through_round::bigint
ORDER BY c.tried_at NULLS FIRST, t.id LIMIT @at_most;

-- name: AllTeams :many
SELECT id FROM teams ORDER BY id;

-- name: AddStoreCollection :exec
INSERT INTO store_collections AS c (team_id, through_round, objects, bytes) VALUES (@team_id, @through_round, @objects, @bytes)
ON CONFLICT (team_id) DO UPDATE SET
    through_round = greatest(c.through_round, excluded.through_round),
    objects = c.objects + excluded.objects, bytes = c.bytes + excluded.bytes, tried_at = clock_timestamp();

-- name: StoredOfSandboxes :many
-- Of those that can be used, and those that were lost and whose checkpoint is stored.
SELECT id, host_id, epoch, (state = 'failed')::boolean AS failed, stored_key, moved_key, checkpoint_key FROM sandboxes
WHERE team_id = @team_id AND (state NOT IN ('stopped', 'failed') OR state = 'failed' AND checkpoint_key <> '');

-- name: StoredOfBuilds :many
SELECT stored_key FROM template_generations WHERE team_id = @team_id AND stored_key <> '' AND NOT purge;
