-- name: SaveHost :exec
-- The url of a host that joined is its own to change.
INSERT INTO hosts (id, url, version, instance, driver, sandboxes, sandboxes_used,
    memory_mb, memory_mb_used, disk_mb, disk_mb_free, disks_mb, disks_mb_used, facts, last_seen_at)
VALUES (@id, @url, @version, @instance, @driver, @sandboxes, @sandboxes_used,
    @memory_mb, @memory_mb_used, @disk_mb, @disk_mb_free, @disks_mb, @disks_mb_used, @facts, clock_timestamp())
ON CONFLICT (id) DO UPDATE SET
    url = CASE WHEN hosts.joined_at IS NULL THEN excluded.url ELSE hosts.url END,
    version = excluded.version, instance = excluded.instance, driver = excluded.driver,
    sandboxes = excluded.sandboxes, sandboxes_used = excluded.sandboxes_used,
    memory_mb = excluded.memory_mb, memory_mb_used = excluded.memory_mb_used,
    disk_mb = excluded.disk_mb, disk_mb_free = excluded.disk_mb_free,
    disks_mb = excluded.disks_mb, disks_mb_used = excluded.disks_mb_used,
    facts = excluded.facts, last_seen_at = excluded.last_seen_at;

-- name: AddConfiguredHosts :exec
INSERT INTO hosts (id, url) SELECT unnest(@ids::text[]), unnest(@urls::text[]) ON CONFLICT (id) DO NOTHING;

-- name: SetHostStatus :one
-- One that is in any of the statuses.
UPDATE hosts SET status = @status WHERE id = @id AND status = ANY (@was::text[]) RETURNING *;

-- name: HostContents :one
-- What would be lost with a host: sandboxes that have not ended, templates that become or are ready and are not stored, and volumes.
SELECT
    (SELECT count(*) FROM sandboxes WHERE sandboxes.host_id = @id AND sandboxes.state NOT IN ('stopped', 'failed')) AS sandboxes,
    (SELECT count(*) FROM template_generations g WHERE g.host_id = @id AND (g.state = 'building' OR g.state = 'ready' AND g.stored_key = '')) AS builds,
    (SELECT count(*) FROM volumes WHERE volumes.host_id = @id) AS volumes;

-- name: FindHost :one
SELECT * FROM hosts WHERE id = @id;

-- name: Hosts :many
SELECT * FROM hosts ORDER BY id;

-- name: AddHostToken :one
INSERT INTO host_tokens (hash, host_id, name, zone, labels, expires_at)
VALUES (@hash, @host_id, @name, @zone, @labels, clock_timestamp() + make_interval(secs => @seconds::float8))
RETURNING expires_at;

-- name: DropHostTokens :exec
-- Those of more than a week ago: until then a host is told why its token is refused.
DELETE FROM host_tokens WHERE expires_at < clock_timestamp() - interval '7 days';

-- name: UseHostToken :one
UPDATE host_tokens SET used_at = clock_timestamp()
WHERE hash = @hash AND used_at IS NULL AND expires_at > clock_timestamp() RETURNING *;

-- name: FindHostToken :one
SELECT * FROM host_tokens WHERE hash = @hash;

-- name: JoinHost :one
-- Earlier certificates of the host end.
INSERT INTO hosts (id, url, name, zone, labels, joined_at, serial, certificate_until)
VALUES (@id, @url, @name, @zone, @labels, clock_timestamp(), @serial, @certificate_until)
ON CONFLICT (id) DO UPDATE SET
    url = excluded.url, name = excluded.name, zone = excluded.zone, labels = excluded.labels,
    joined_at = coalesce(hosts.joined_at, excluded.joined_at),
    serial = excluded.serial, previous_serial = '', certificate_until = excluded.certificate_until,
    status = CASE WHEN hosts.status IN ('removed', 'lost') THEN 'active' ELSE hosts.status END
RETURNING *;

-- name: JoinHostOfNode :one
-- No row if an operator has ended the use of the host. What operators have set stays.
INSERT INTO hosts (id, url, name, joined_at, serial, certificate_until)
VALUES (@id, @url, @name, clock_timestamp(), @serial, @certificate_until)
ON CONFLICT (id) DO UPDATE SET
    url = excluded.url, name = CASE WHEN hosts.name = '' THEN excluded.name ELSE hosts.name END,
    serial = excluded.serial, previous_serial = '', certificate_until = excluded.certificate_until
WHERE hosts.joined_at IS NOT NULL AND hosts.status NOT IN ('removed', 'lost')
RETURNING *;

-- name: RenewHost :execrows
UPDATE hosts SET url = @url, serial = @serial, previous_serial = @presented, certificate_until = @certificate_until
WHERE id = @id AND joined_at IS NOT NULL AND status NOT IN ('removed', 'lost') AND @presented::text IN (serial, previous_serial);

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

-- name: NodeCordons :many
SELECT host_id FROM node_cordons;

-- name: CordonWithNode :execrows
-- Only a host that no operator has cordoned.
WITH changed AS (UPDATE hosts SET status = @status WHERE id = @id AND status = 'active' RETURNING id)
INSERT INTO node_cordons (host_id) SELECT id FROM changed ON CONFLICT DO NOTHING;

-- name: UncordonWithNode :execrows
WITH gone AS (DELETE FROM node_cordons WHERE host_id = @id RETURNING host_id)
UPDATE hosts SET status = 'active' FROM gone WHERE hosts.id = gone.host_id AND status IN ('cordoned', 'draining');
