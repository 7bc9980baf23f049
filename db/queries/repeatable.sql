-- name: DropOldCreates :exec
-- A few at a time, so that no create waits for many.
DELETE FROM repeatable_creates WHERE (team_id, route, key) IN (
    SELECT old.team_id, old.route, old.key FROM repeatable_creates AS old
    WHERE old.created_at < clock_timestamp() - make_interval(secs => @retention)
    ORDER BY old.created_at LIMIT 100 FOR UPDATE SKIP LOCKED
);

-- name: BeginCreate :execrows
INSERT INTO repeatable_creates (team_id, route, key, fingerprint, sandbox_id, worker)
VALUES (@team_id, @route, @key, @fingerprint, @sandbox_id, @worker)
ON CONFLICT (team_id, route, key) DO NOTHING;

-- name: GetCreate :one
SELECT fingerprint, sandbox_id, worker, (worker IS NOT NULL AND worker IN (SELECT workers()))::boolean AS at_work
FROM repeatable_creates WHERE team_id = @team_id AND route = @route AND key = @key;

-- name: TakeOverCreate :execrows
-- Compare and set: another one may take it over at the same time.
UPDATE repeatable_creates SET sandbox_id = @sandbox_id, worker = @worker
WHERE team_id = @team_id AND route = @route AND key = @key AND sandbox_id = @lost_id AND worker IS NOT NULL;

-- name: EndCreate :exec
UPDATE repeatable_creates SET worker = NULL WHERE team_id = @team_id AND route = @route AND key = @key AND sandbox_id = @sandbox_id;

-- name: DropCreate :exec
DELETE FROM repeatable_creates WHERE team_id = @team_id AND route = @route AND key = @key AND sandbox_id = @sandbox_id;
