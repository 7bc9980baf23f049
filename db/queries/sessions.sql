-- name: InsertSession :exec
INSERT INTO sessions (hash, key_id, expires_at) VALUES (@hash, @key_id, @expires_at);

-- name: DropSessions :exec
-- Those that have expired, and of the key all but its newest.
DELETE FROM sessions WHERE expires_at < clock_timestamp() OR hash IN (
    SELECT s.hash FROM sessions s WHERE s.key_id = @key_id ORDER BY s.created_at DESC OFFSET @keep
);

-- name: SessionByHash :one
SELECT k.id, k.team_id, k.scopes, k.expires_at AS key_expires_at, s.expires_at
FROM sessions s JOIN api_keys k ON k.id = s.key_id
WHERE s.hash = @hash AND s.expires_at > clock_timestamp() AND k.revoked_at IS NULL;

-- name: DeleteSession :exec
DELETE FROM sessions WHERE hash = @hash;

-- name: KeyName :one
SELECT name FROM api_keys WHERE id = @id;
