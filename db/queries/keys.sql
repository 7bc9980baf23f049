-- name: EnsureTeam :one
INSERT INTO teams (name) VALUES (@name)
ON CONFLICT (name) DO UPDATE SET name = excluded.name
RETURNING id;

-- name: InsertKey :one
INSERT INTO api_keys (team_id, name, hash, hint, scopes, expires_at) VALUES (@team_id, @name, @hash, @hint, @scopes, sqlc.narg('expires_at')) RETURNING *;

-- name: ListKeys :many
SELECT * FROM api_keys WHERE team_id = @team_id AND revoked_at IS NULL ORDER BY created_at DESC, id DESC LIMIT @page_size;

-- name: CountKeys :one
SELECT count(*) FROM api_keys WHERE team_id = @team_id AND revoked_at IS NULL;

-- name: KeyByHash :one
SELECT id, team_id, scopes, expires_at FROM api_keys WHERE hash = @hash AND revoked_at IS NULL;

-- name: RevokeKey :one
UPDATE api_keys SET revoked_at = clock_timestamp()
WHERE id = @id AND team_id = @team_id AND revoked_at IS NULL
RETURNING hash;

-- name: TouchKeys :exec
UPDATE api_keys SET last_used_at = greatest(last_used_at, t.at)
FROM (
    SELECT k.id, u.at FROM api_keys k
    JOIN (SELECT unnest(@ids::uuid[]) AS id, unnest(@times::timestamptz[]) AS at) AS u ON u.id = k.id
    ORDER BY k.id FOR NO KEY UPDATE OF k SKIP LOCKED
) AS t
WHERE api_keys.id = t.id;

-- name: PlatformSecret :one
SELECT value FROM platform_secrets WHERE name = @name;

-- name: TeamName :one
SELECT name FROM teams WHERE id = @id;
