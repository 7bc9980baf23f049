-- name: InsertIngress :exec
INSERT INTO sandbox_ingress (sandbox_id, private, mask_host, https_ports)
VALUES (@sandbox_id, @private, @mask_host, @https_ports);

-- name: CopyIngress :exec
-- Copies of a sandbox are reached as it is.
INSERT INTO sandbox_ingress (sandbox_id, private, mask_host, https_ports)
SELECT unnest(@ids::text[]), p.private, p.mask_host, p.https_ports FROM sandbox_ingress p WHERE p.sandbox_id = @parent;

-- name: GetIngress :one
-- No row when there is no such sandbox, or it has ended.
SELECT coalesce(i.private, false)::boolean AS private, coalesce(i.mask_host, '')::text AS mask_host, coalesce(i.https_ports, '{}')::integer[] AS https_ports
FROM sandboxes s LEFT JOIN sandbox_ingress i ON i.sandbox_id = s.id
WHERE s.id = @id AND s.state NOT IN ('stopped', 'failed');
