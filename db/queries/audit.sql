-- name: InsertAuditEntries :exec
INSERT INTO audit_entries (team_id, at, key_id, address, request_id, operation, path, status)
SELECT u.team_id, u.at, u.key_id, u.address, u.request_id, u.operation, u.path, u.status
FROM (SELECT unnest(@teams::uuid[]) AS team_id, unnest(@times::timestamptz[]) AS at, unnest(@keys::text[]) AS key_id,
             unnest(@addresses::text[]) AS address, unnest(@requests::text[]) AS request_id, unnest(@operations::text[]) AS operation,
             unnest(@paths::text[]) AS path, unnest(@statuses::integer[]) AS status) AS u;

-- name: ListAuditEntries :many
SELECT audit_entries.*, coalesce(k.name, '')::text AS key_name FROM audit_entries LEFT JOIN api_keys k ON k.id::text = key_id
WHERE audit_entries.team_id = @team_id AND audit_entries.id < @before AND at >= @since AND at < @until
ORDER BY audit_entries.id DESC LIMIT @page_size;

-- name: DropAuditEntries :execrows
DELETE FROM audit_entries WHERE id IN (SELECT e.id FROM audit_entries e WHERE e.at < clock_timestamp() - make_interval(secs => @retention) ORDER BY e.at LIMIT @batch);
