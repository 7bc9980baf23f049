-- name: CountSecrets :one
-- Under LockTeam.
SELECT count(*) AS secrets, count(*) FILTER (WHERE name = @name) AS named FROM secrets WHERE team_id = @team_id;

-- name: InsertSecret :one
INSERT INTO secrets (id, team_id, name, metadata, sealed, key_id) VALUES (@id, @team_id, @name, @metadata, @sealed, @key_id)
RETURNING id, team_id, name, version, metadata, created_at, updated_at;

-- name: UpdateSecret :one
-- Without keep_metadata it is replaced.
UPDATE secrets SET
    sealed = @sealed, key_id = @key_id, version = version + 1, updated_at = clock_timestamp(),
    metadata = CASE WHEN @keep_metadata::boolean THEN metadata ELSE @metadata END
WHERE id = @id AND team_id = @team_id
RETURNING id, team_id, name, version, metadata, created_at, updated_at;

-- name: FindSecret :one
-- An id is no name.
SELECT id, team_id, name, version, metadata, created_at, updated_at FROM secrets WHERE team_id = @team_id AND (id = @name OR name = @name);

-- name: ListSecrets :many
SELECT id, team_id, name, version, metadata, created_at, updated_at FROM secrets
WHERE team_id = @team_id AND name > @after ORDER BY name LIMIT @page_size;

-- name: DeleteSecret :execrows
DELETE FROM secrets WHERE team_id = @team_id AND (id = @name OR name = @name);

-- name: SealedSecret :one
SELECT id, version, sealed FROM secrets WHERE team_id = @team_id AND (id = @name OR name = @name);

-- name: SecretsOfOtherKeys :many
-- Those that another key encrypts, after an id.
SELECT id, team_id, version, sealed FROM secrets WHERE key_id <> @key_id AND id > @after ORDER BY id LIMIT @page_size;

-- name: ResealSecret :execrows
UPDATE secrets SET sealed = @sealed, key_id = @key_id WHERE id = @id AND version = @version;

-- name: SecretVersions :many
SELECT team_id, id, name, version FROM secrets WHERE team_id = ANY(@teams::uuid[]);
