-- What the migrations come to. Made by: go test ./internal/controlplane/postgres -run TestSchemaFile -update

CREATE FUNCTION public.count_usage(from_hour timestamp with time zone, until timestamp with time zone, default_disk_mib integer) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
WITH there AS (
    SELECT s.id, s.team_id, s.vcpus, s.memory_mb, s.created_at,
        coalesce(nullif(s.disk_mb, 0), nullif(g.disk_mb, 0), default_disk_mib) AS disk_mib
    FROM sandboxes s LEFT JOIN template_generations g ON g.id = s.generation
    WHERE s.state NOT IN ('stopped', 'failed')
        OR (s.state IN ('stopped', 'failed') AND s.updated_at >= from_hour - interval '1 minute')
), changes AS (
    SELECT there.id, there.team_id, there.vcpus, there.memory_mb, there.disk_mib, e.version, e.to_state,
        greatest(from_hour, max(e.at) OVER (PARTITION BY there.id ORDER BY e.version)) AS begins
    FROM there
    CROSS JOIN LATERAL (
        SELECT coalesce((
            SELECT b.version FROM sandbox_events b WHERE b.sandbox_id = there.id AND b.at <= from_hour ORDER BY b.version DESC LIMIT 1
        ), 0) AS version
    ) AS before
    JOIN sandbox_events e ON e.sandbox_id = there.id AND e.version >= before.version
), spans AS (
    SELECT c.team_id, c.vcpus, c.memory_mb, c.disk_mib, c.to_state, greatest(0, extract(epoch FROM
        least(until, lead(c.begins) OVER (PARTITION BY c.id ORDER BY c.version)) - c.begins) * 1000) AS ms
    FROM changes c
), of_sandboxes AS (
    SELECT s.team_id,
        sum(s.ms) FILTER (WHERE s.to_state IN ('running', 'pausing')) AS sandbox_ms,
        sum(s.ms) FILTER (WHERE s.to_state IN ('paused', 'resuming')) AS paused_ms,
        sum(s.ms * s.vcpus) FILTER (WHERE s.to_state IN ('running', 'pausing')) AS vcpu_ms,
        sum(s.ms * s.memory_mb) FILTER (WHERE s.to_state IN ('running', 'pausing')) AS memory_mib_ms,
        sum(s.ms * s.disk_mib) FILTER (WHERE s.to_state IN ('running', 'pausing', 'paused', 'resuming')) AS disk_mib_ms
    FROM spans s GROUP BY s.team_id
), of_creates AS (
    SELECT c.team_id, count(*) AS creates FROM there c
    WHERE c.created_at >= from_hour AND c.created_at < from_hour + interval '1 hour' GROUP BY c.team_id
), of_volumes AS (
    SELECT v.team_id, sum(v.size_mib * greatest(0, extract(epoch FROM
        least(until, CASE WHEN v.state = 'deleting' THEN v.updated_at END) - greatest(from_hour, v.created_at)) * 1000)) AS mib_ms
    FROM volumes v GROUP BY v.team_id
), of_ended_volumes AS (
    SELECT v.team_id, sum(v.size_mib * greatest(0, extract(epoch FROM
        least(until, v.ended_at) - greatest(from_hour, v.created_at)) * 1000)) AS mib_ms
    FROM ended_volumes v GROUP BY v.team_id
), of_templates AS (
    SELECT g.team_id, sum(g.size_bytes / 1048576.0 * greatest(0, extract(epoch FROM
        least(until, CASE WHEN g.state <> 'ready' THEN g.updated_at END) - greatest(from_hour, g.finished_at)) * 1000)) AS mib_ms
    FROM template_generations g
    WHERE g.finished_at IS NOT NULL AND (g.state = 'ready' OR g.updated_at >= from_hour) GROUP BY g.team_id
), totals AS (
    SELECT t.id AS team_id, coalesce(c.creates, 0) AS creates,
        round(coalesce(s.sandbox_ms, 0)) AS sandbox_ms, round(coalesce(s.paused_ms, 0)) AS paused_ms,
        round(coalesce(s.vcpu_ms, 0)) AS vcpu_ms, round(coalesce(s.memory_mib_ms, 0)) AS memory_mib_ms,
        round(coalesce(s.disk_mib_ms, 0)) AS disk_mib_ms, round(coalesce(v.mib_ms, 0) + coalesce(w.mib_ms, 0)) AS volume_mib_ms,
        round(coalesce(g.mib_ms, 0)) AS template_mib_ms
    FROM teams t
    LEFT JOIN of_sandboxes s ON s.team_id = t.id
    LEFT JOIN of_creates c ON c.team_id = t.id
    LEFT JOIN of_volumes v ON v.team_id = t.id
    LEFT JOIN of_ended_volumes w ON w.team_id = t.id
    LEFT JOIN of_templates g ON g.team_id = t.id
)
INSERT INTO team_usage (team_id, hour, creates, sandbox_ms, paused_ms, vcpu_ms, memory_mib_ms, disk_mib_ms, volume_mib_ms, template_mib_ms)
SELECT u.team_id, from_hour, u.creates, u.sandbox_ms, u.paused_ms, u.vcpu_ms, u.memory_mib_ms, u.disk_mib_ms, u.volume_mib_ms, u.template_mib_ms
FROM totals u
WHERE u.creates + u.sandbox_ms + u.paused_ms + u.volume_mib_ms + u.template_mib_ms > 0;
END $$;

CREATE FUNCTION public.notify_hosts() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF TG_OP = 'INSERT' OR (OLD.url, OLD.name, OLD.zone, OLD.labels, OLD.status, OLD.joined_at, OLD.serial, OLD.previous_serial)
        IS DISTINCT FROM (NEW.url, NEW.name, NEW.zone, NEW.labels, NEW.status, NEW.joined_at, NEW.serial, NEW.previous_serial) THEN
        PERFORM pg_notify('hosts', NEW.id);
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION public.sandbox_events_append_only() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('wrenn.retention', true) = 'on' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'sandbox_events is append-only';
END $$;

CREATE FUNCTION public.sandbox_events_to_webhooks() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM webhooks WHERE enabled) THEN
        RETURN NULL;
    END IF;
    INSERT INTO webhook_deliveries (webhook_id, kind, sandbox_id, payload)
    SELECT w.id, k.kind, s.id, json_build_object(
        'type', k.kind,
        'timestamp', to_char(e.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'data', json_build_object(
            'sandbox_id', s.id, 'template', s.template, 'state', e.to_state, 'previous_state', e.from_state,
            'reason', CASE WHEN e.from_state = e.to_state THEN e.reason ELSE s.reason END,
            'end_cause', s.end_cause, 'metadata', s.metadata, 'version', e.version
        )
    )::text
    FROM written e
    JOIN sandboxes s ON s.id = e.sandbox_id
    JOIN webhooks w ON w.team_id = s.team_id AND w.enabled
    CROSS JOIN LATERAL (SELECT 'sandbox.' || CASE WHEN e.from_state = e.to_state THEN 'updated' ELSE e.to_state END) AS k (kind)
    WHERE cardinality(w.kinds) = 0 OR k.kind = ANY (w.kinds);
    RETURN NULL;
END $$;

CREATE FUNCTION public.sandboxes_count_use() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        UPDATE teams SET used_sandboxes = used_sandboxes + u.sandboxes, used_memory_mb = used_memory_mb + u.memory_mb
        FROM (
            SELECT team_id, count(*) AS sandboxes, coalesce(sum(memory_mb) FILTER (WHERE state <> 'paused'), 0) AS memory_mb
            FROM now_rows WHERE state NOT IN ('stopped', 'failed') GROUP BY team_id
        ) AS u
        WHERE teams.id = u.team_id;
    ELSE
        UPDATE teams SET used_sandboxes = used_sandboxes + u.sandboxes, used_memory_mb = used_memory_mb + u.memory_mb
        FROM (
            SELECT team_id, sum(one) AS sandboxes, sum(memory_mb) AS memory_mb
            FROM (
                SELECT team_id, 1 AS one, CASE WHEN state = 'paused' THEN 0 ELSE memory_mb END AS memory_mb
                FROM now_rows WHERE state NOT IN ('stopped', 'failed')
                UNION ALL
                SELECT team_id, -1, CASE WHEN state = 'paused' THEN 0 ELSE -memory_mb END
                FROM old_rows WHERE state NOT IN ('stopped', 'failed')
            ) AS both_rows
            GROUP BY team_id HAVING sum(one) <> 0 OR sum(memory_mb) <> 0
        ) AS u
        WHERE teams.id = u.team_id;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION public.volumes_keep_use() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO ended_volumes (team_id, size_mib, created_at, ended_at)
    VALUES (OLD.team_id, OLD.size_mib, OLD.created_at, CASE WHEN OLD.state = 'deleting' THEN OLD.updated_at ELSE clock_timestamp() END);
    RETURN NULL;
END $$;

CREATE FUNCTION public.workers() RETURNS SETOF bigint
    LANGUAGE sql STABLE
    AS $$
    SELECT (classid::bigint << 32) | objid::bigint
    FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
$$;

CREATE TABLE public.api_keys (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    team_id uuid NOT NULL,
    name text NOT NULL,
    hash bytea NOT NULL,
    hint text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    last_used_at timestamp with time zone,
    revoked_at timestamp with time zone,
    scopes text[] DEFAULT '{admin}'::text[] NOT NULL,
    expires_at timestamp with time zone,
    CONSTRAINT api_keys_hash_check CHECK ((octet_length(hash) = 32)),
    CONSTRAINT api_keys_scopes_check CHECK ((cardinality(scopes) > 0))
);

CREATE TABLE public.audit_entries (
    id bigint NOT NULL,
    team_id uuid NOT NULL,
    at timestamp with time zone NOT NULL,
    key_id text NOT NULL,
    address text NOT NULL,
    request_id text NOT NULL,
    operation text NOT NULL,
    path text NOT NULL,
    status integer NOT NULL
);

ALTER TABLE public.audit_entries ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.audit_entries_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.ended_volumes (
    team_id uuid NOT NULL,
    size_mib integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone NOT NULL
);

CREATE TABLE public.host_tokens (
    hash bytea NOT NULL,
    host_id text NOT NULL,
    name text NOT NULL,
    zone text NOT NULL,
    labels jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    used_at timestamp with time zone
);

CREATE TABLE public.hosts (
    id text NOT NULL,
    url text NOT NULL,
    version text DEFAULT ''::text NOT NULL,
    instance text DEFAULT ''::text NOT NULL,
    driver text DEFAULT ''::text NOT NULL,
    sandboxes integer DEFAULT 0 NOT NULL,
    sandboxes_used integer DEFAULT 0 NOT NULL,
    memory_mb bigint DEFAULT 0 NOT NULL,
    memory_mb_used bigint DEFAULT 0 NOT NULL,
    disk_mb bigint DEFAULT 0 NOT NULL,
    disk_mb_free bigint DEFAULT 0 NOT NULL,
    last_seen_at timestamp with time zone,
    name text DEFAULT ''::text NOT NULL,
    zone text DEFAULT ''::text NOT NULL,
    labels jsonb DEFAULT '{}'::jsonb NOT NULL,
    status text DEFAULT 'active'::text NOT NULL,
    disks_mb bigint DEFAULT 0 NOT NULL,
    disks_mb_used bigint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    joined_at timestamp with time zone,
    serial text DEFAULT ''::text NOT NULL,
    previous_serial text DEFAULT ''::text NOT NULL,
    certificate_until timestamp with time zone,
    facts jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT hosts_status CHECK ((status = ANY (ARRAY['active'::text, 'cordoned'::text, 'draining'::text, 'removed'::text, 'lost'::text])))
);

CREATE TABLE public.network_policies (
    team_id uuid NOT NULL,
    template text NOT NULL,
    network jsonb NOT NULL,
    updated_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE public.node_cordons (
    host_id text NOT NULL COLLATE pg_catalog."C"
);

CREATE TABLE public.platform_secrets (
    name text NOT NULL,
    value bytea NOT NULL,
    CONSTRAINT platform_secrets_value_check CHECK ((octet_length(value) >= 32))
);

CREATE TABLE public.repeatable_creates (
    team_id uuid NOT NULL,
    route text NOT NULL,
    key text NOT NULL COLLATE pg_catalog."C",
    fingerprint bytea NOT NULL,
    sandbox_id text NOT NULL COLLATE pg_catalog."C",
    worker bigint,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE public.requested_builds (
    id text NOT NULL COLLATE pg_catalog."C",
    team_id uuid NOT NULL,
    name text NOT NULL,
    tag text NOT NULL,
    more_tags text[] NOT NULL,
    vcpus integer NOT NULL,
    memory_mb integer NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    disk_mb integer DEFAULT 0 NOT NULL,
    min_free_disk_mb integer DEFAULT 0 NOT NULL,
    CONSTRAINT requested_builds_memory_mb_check CHECK ((memory_mb > 0)),
    CONSTRAINT requested_builds_vcpus_check CHECK ((vcpus > 0))
);

CREATE TABLE public.sandbox_events (
    id bigint NOT NULL,
    sandbox_id text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    from_state text NOT NULL,
    to_state text NOT NULL,
    host_id text NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

ALTER TABLE public.sandbox_events ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.sandbox_events_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.sandbox_ingress (
    sandbox_id text NOT NULL COLLATE pg_catalog."C",
    private boolean NOT NULL,
    mask_host text NOT NULL,
    https_ports integer[] NOT NULL
);

CREATE TABLE public.sandboxes (
    id text NOT NULL COLLATE pg_catalog."C",
    team_id uuid NOT NULL,
    host_id text DEFAULT ''::text NOT NULL,
    template text NOT NULL,
    state text DEFAULT 'pending'::text NOT NULL,
    reason text DEFAULT ''::text NOT NULL,
    vcpus integer NOT NULL,
    memory_mb integer NOT NULL,
    timeout_sec integer NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    env jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    started_at timestamp with time zone,
    last_active_at timestamp with time zone,
    updated_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    version bigint DEFAULT 1 NOT NULL,
    worker bigint,
    on_timeout text DEFAULT 'destroy'::text NOT NULL,
    auto_resume boolean DEFAULT false NOT NULL,
    parent_id text DEFAULT ''::text NOT NULL COLLATE pg_catalog."C",
    generation text DEFAULT ''::text NOT NULL COLLATE pg_catalog."C",
    end_cause text DEFAULT ''::text NOT NULL,
    unresponsive_since timestamp with time zone,
    unresponsive_reason text DEFAULT ''::text NOT NULL,
    absolute_timeout boolean DEFAULT false NOT NULL,
    ends_at timestamp with time zone,
    network jsonb DEFAULT '{}'::jsonb NOT NULL,
    volumes jsonb DEFAULT '[]'::jsonb NOT NULL,
    disk_mb integer DEFAULT 0 NOT NULL,
    stored_at timestamp with time zone,
    stored_key text DEFAULT ''::text NOT NULL,
    requires jsonb DEFAULT '{}'::jsonb NOT NULL,
    moving boolean DEFAULT false NOT NULL,
    moving_note text DEFAULT ''::text NOT NULL,
    moved_key text DEFAULT ''::text NOT NULL,
    epoch bigint DEFAULT 1 NOT NULL,
    on_host_loss text DEFAULT 'fail'::text NOT NULL,
    checkpoint_every_sec integer DEFAULT 0 NOT NULL,
    checkpoint_id text DEFAULT ''::text NOT NULL COLLATE pg_catalog."C",
    checkpoint_key text DEFAULT ''::text NOT NULL,
    checkpoint_at timestamp with time zone,
    CONSTRAINT sandboxes_checkpoint_every CHECK ((checkpoint_every_sec >= 0)),
    CONSTRAINT sandboxes_end_cause CHECK ((end_cause = ANY (ARRAY[''::text, 'user'::text, 'timeout'::text, 'guest_powered_off'::text, 'guest_panicked'::text, 'guest_out_of_memory'::text, 'host_out_of_memory'::text, 'vmm_crashed'::text, 'host_restarted'::text, 'host_lost'::text, 'start_failed'::text, 'quarantined'::text, 'internal'::text]))),
    CONSTRAINT sandboxes_memory_mb_check CHECK ((memory_mb > 0)),
    CONSTRAINT sandboxes_on_host_loss CHECK ((on_host_loss = ANY (ARRAY['fail'::text, 'restore'::text]))),
    CONSTRAINT sandboxes_on_timeout CHECK ((on_timeout = ANY (ARRAY['destroy'::text, 'pause'::text, 'pause_disk'::text]))),
    CONSTRAINT sandboxes_state CHECK ((state = ANY (ARRAY['pending'::text, 'starting'::text, 'running'::text, 'pausing'::text, 'paused'::text, 'resuming'::text, 'stopping'::text, 'stopped'::text, 'failed'::text]))),
    CONSTRAINT sandboxes_timeout_sec_check CHECK ((timeout_sec >= 0)),
    CONSTRAINT sandboxes_vcpus_check CHECK ((vcpus > 0))
);

CREATE TABLE public.secrets (
    id text NOT NULL COLLATE pg_catalog."C",
    team_id uuid NOT NULL,
    name text NOT NULL COLLATE pg_catalog."C",
    version integer DEFAULT 1 NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    sealed bytea NOT NULL,
    key_id text NOT NULL COLLATE pg_catalog."C",
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    updated_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE public.sessions (
    hash bytea NOT NULL,
    key_id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    expires_at timestamp with time zone NOT NULL
);

CREATE TABLE public.store_collections (
    team_id uuid NOT NULL,
    through_round bigint DEFAULT '-1'::integer NOT NULL,
    objects bigint DEFAULT 0 NOT NULL,
    bytes bigint DEFAULT 0 NOT NULL,
    tried_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE public.store_rounds (
    one boolean DEFAULT true NOT NULL,
    round bigint DEFAULT 0 NOT NULL,
    began_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT store_rounds_one CHECK (one),
    CONSTRAINT store_rounds_round CHECK ((round >= 0))
);

CREATE TABLE public.team_usage (
    team_id uuid NOT NULL,
    hour timestamp with time zone NOT NULL,
    creates bigint NOT NULL,
    sandbox_ms bigint NOT NULL,
    paused_ms bigint NOT NULL,
    vcpu_ms bigint NOT NULL,
    memory_mib_ms bigint NOT NULL,
    disk_mib_ms bigint NOT NULL,
    volume_mib_ms bigint NOT NULL,
    template_mib_ms bigint NOT NULL
);

CREATE TABLE public.teams (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    name text NOT NULL,
    max_sandboxes integer,
    max_memory_mb bigint,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    used_sandboxes integer DEFAULT 0 NOT NULL,
    used_memory_mb bigint DEFAULT 0 NOT NULL,
    CONSTRAINT teams_max_memory_mb_check CHECK ((max_memory_mb >= 0)),
    CONSTRAINT teams_max_sandboxes_check CHECK ((max_sandboxes >= 0))
);

CREATE TABLE public.template_assignments (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    number bigint NOT NULL,
    team_id uuid NOT NULL,
    name text NOT NULL,
    tag text NOT NULL,
    generation_id text NOT NULL COLLATE pg_catalog."C",
    assigned_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

ALTER TABLE public.template_assignments ALTER COLUMN number ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.template_assignments_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.template_generations (
    id text NOT NULL COLLATE pg_catalog."C",
    team_id uuid NOT NULL,
    name text NOT NULL,
    tag text NOT NULL,
    state text DEFAULT 'building'::text NOT NULL,
    reason text DEFAULT ''::text NOT NULL,
    host_id text DEFAULT ''::text NOT NULL,
    from_image text DEFAULT ''::text NOT NULL,
    from_oci text DEFAULT ''::text NOT NULL,
    from_sandbox text DEFAULT ''::text NOT NULL,
    vcpus integer NOT NULL,
    memory_mb integer NOT NULL,
    env jsonb DEFAULT '{}'::jsonb NOT NULL,
    start_cmd text DEFAULT ''::text NOT NULL,
    ready_cmd text DEFAULT ''::text NOT NULL,
    ready_timeout_sec integer DEFAULT 0 NOT NULL,
    size_bytes bigint DEFAULT 0 NOT NULL,
    digest text DEFAULT ''::text NOT NULL,
    worker bigint,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    updated_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    from_template text DEFAULT ''::text NOT NULL,
    failed_step text DEFAULT ''::text NOT NULL,
    finished_at timestamp with time zone,
    more_tags text[] DEFAULT '{}'::text[] NOT NULL,
    disk_mb integer DEFAULT 0 NOT NULL,
    stored_key text DEFAULT ''::text NOT NULL,
    stored_at timestamp with time zone,
    platform jsonb DEFAULT '{}'::jsonb NOT NULL,
    purge boolean DEFAULT false NOT NULL,
    CONSTRAINT template_generations_memory_mb_check CHECK ((memory_mb > 0)),
    CONSTRAINT template_generations_state CHECK ((state = ANY (ARRAY['building'::text, 'ready'::text, 'failed'::text, 'deleted'::text]))),
    CONSTRAINT template_generations_vcpus_check CHECK ((vcpus > 0))
);

CREATE TABLE public.template_lines (
    generation_id text NOT NULL COLLATE pg_catalog."C",
    line bigint NOT NULL,
    content text NOT NULL,
    written_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE public.templates (
    team_id uuid NOT NULL,
    name text NOT NULL,
    tag text NOT NULL,
    generation_id text NOT NULL COLLATE pg_catalog."C",
    updated_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE public.unknown_sandboxes (
    host_id text NOT NULL,
    sandbox_id text NOT NULL COLLATE pg_catalog."C",
    seen_state text NOT NULL,
    reason text NOT NULL,
    first_seen_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    last_seen_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE public.usage_progress (
    only_one boolean DEFAULT true NOT NULL,
    counted_from timestamp with time zone NOT NULL,
    settled_until timestamp with time zone NOT NULL,
    counted_until timestamp with time zone NOT NULL,
    CONSTRAINT usage_progress_only_one_check CHECK (only_one)
);

CREATE TABLE public.volumes (
    id text NOT NULL COLLATE pg_catalog."C",
    team_id uuid NOT NULL,
    name text NOT NULL COLLATE pg_catalog."C",
    host_id text NOT NULL,
    size_mib integer NOT NULL,
    state text DEFAULT 'creating'::text NOT NULL,
    worker bigint,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    updated_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT volumes_size_mib_check CHECK ((size_mib > 0)),
    CONSTRAINT volumes_state CHECK ((state = ANY (ARRAY['creating'::text, 'ready'::text, 'deleting'::text])))
);

CREATE TABLE public.webhook_deliveries (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    webhook_id text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL,
    sandbox_id text NOT NULL COLLATE pg_catalog."C",
    payload text NOT NULL,
    state text DEFAULT 'pending'::text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    next_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    attempted_at timestamp with time zone,
    status integer DEFAULT 0 NOT NULL,
    error text DEFAULT ''::text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT webhook_deliveries_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'delivered'::text, 'failed'::text])))
);

CREATE TABLE public.webhooks (
    id text NOT NULL COLLATE pg_catalog."C",
    team_id uuid NOT NULL,
    url text NOT NULL,
    description text NOT NULL,
    kinds text[] NOT NULL,
    sealed bytea NOT NULL,
    key_id text NOT NULL COLLATE pg_catalog."C",
    enabled boolean DEFAULT true NOT NULL,
    disabled_reason text DEFAULT ''::text NOT NULL,
    failing_since timestamp with time zone,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    updated_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_hash_key UNIQUE (hash);

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.audit_entries
    ADD CONSTRAINT audit_entries_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.host_tokens
    ADD CONSTRAINT host_tokens_pkey PRIMARY KEY (hash);

ALTER TABLE ONLY public.hosts
    ADD CONSTRAINT hosts_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.network_policies
    ADD CONSTRAINT network_policies_pkey PRIMARY KEY (team_id, template);

ALTER TABLE ONLY public.node_cordons
    ADD CONSTRAINT node_cordons_pkey PRIMARY KEY (host_id);

ALTER TABLE ONLY public.platform_secrets
    ADD CONSTRAINT platform_secrets_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.repeatable_creates
    ADD CONSTRAINT repeatable_creates_pkey PRIMARY KEY (team_id, route, key);

ALTER TABLE ONLY public.requested_builds
    ADD CONSTRAINT requested_builds_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.sandbox_events
    ADD CONSTRAINT sandbox_events_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.sandbox_events
    ADD CONSTRAINT sandbox_events_sandbox_id_version_key UNIQUE (sandbox_id, version);

ALTER TABLE ONLY public.sandbox_ingress
    ADD CONSTRAINT sandbox_ingress_pkey PRIMARY KEY (sandbox_id);

ALTER TABLE ONLY public.sandboxes
    ADD CONSTRAINT sandboxes_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.secrets
    ADD CONSTRAINT secrets_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (hash);

ALTER TABLE ONLY public.store_collections
    ADD CONSTRAINT store_collections_pkey PRIMARY KEY (team_id);

ALTER TABLE ONLY public.store_rounds
    ADD CONSTRAINT store_rounds_pkey PRIMARY KEY (one);

ALTER TABLE ONLY public.team_usage
    ADD CONSTRAINT team_usage_pkey PRIMARY KEY (team_id, hour);

ALTER TABLE ONLY public.teams
    ADD CONSTRAINT teams_name_key UNIQUE (name);

ALTER TABLE ONLY public.teams
    ADD CONSTRAINT teams_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.template_assignments
    ADD CONSTRAINT template_assignments_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.template_generations
    ADD CONSTRAINT template_generations_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.template_lines
    ADD CONSTRAINT template_lines_pkey PRIMARY KEY (generation_id, line);

ALTER TABLE ONLY public.templates
    ADD CONSTRAINT templates_pkey PRIMARY KEY (team_id, name, tag);

ALTER TABLE ONLY public.unknown_sandboxes
    ADD CONSTRAINT unknown_sandboxes_pkey PRIMARY KEY (host_id, sandbox_id);

ALTER TABLE ONLY public.usage_progress
    ADD CONSTRAINT usage_progress_pkey PRIMARY KEY (only_one);

ALTER TABLE ONLY public.volumes
    ADD CONSTRAINT volumes_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.webhooks
    ADD CONSTRAINT webhooks_pkey PRIMARY KEY (id);

CREATE INDEX api_keys_team ON public.api_keys USING btree (team_id, created_at DESC, id DESC);

CREATE INDEX audit_entries_at ON public.audit_entries USING btree (at);

CREATE INDEX audit_entries_team ON public.audit_entries USING btree (team_id, id DESC);

CREATE INDEX host_tokens_expires ON public.host_tokens USING btree (expires_at);

CREATE INDEX repeatable_creates_age ON public.repeatable_creates USING btree (created_at);

CREATE INDEX requested_builds_age ON public.requested_builds USING btree (team_id, created_at);

CREATE INDEX sandboxes_between ON public.sandboxes USING btree (worker) WHERE (state = ANY (ARRAY['pending'::text, 'starting'::text, 'pausing'::text, 'resuming'::text, 'stopping'::text]));

CREATE INDEX sandboxes_ended ON public.sandboxes USING btree (updated_at) WHERE (state = ANY (ARRAY['stopped'::text, 'failed'::text]));

CREATE INDEX sandboxes_host ON public.sandboxes USING btree (host_id, state) WHERE (state <> ALL (ARRAY['stopped'::text, 'failed'::text]));

CREATE INDEX sandboxes_list ON public.sandboxes USING btree (team_id, state, created_at DESC, id DESC);

CREATE INDEX sandboxes_metadata ON public.sandboxes USING gin (metadata jsonb_path_ops) WITH (fastupdate=off);

CREATE INDEX sandboxes_moving ON public.sandboxes USING btree (id) WHERE moving;

CREATE UNIQUE INDEX secrets_names ON public.secrets USING btree (team_id, name);

CREATE INDEX sessions_expires ON public.sessions USING btree (expires_at);

CREATE INDEX sessions_key ON public.sessions USING btree (key_id, created_at);

CREATE INDEX team_usage_hour ON public.team_usage USING btree (hour);

CREATE INDEX template_assignments_tags ON public.template_assignments USING btree (team_id, name, tag, number);

CREATE UNIQUE INDEX template_generations_building ON public.template_generations USING btree (team_id, name, tag) WHERE (state = 'building'::text);

CREATE INDEX template_generations_host ON public.template_generations USING btree (host_id) WHERE (state = 'ready'::text);

CREATE INDEX template_generations_names ON public.template_generations USING btree (team_id, name, tag) WHERE (state <> 'deleted'::text);

CREATE INDEX template_generations_purge ON public.template_generations USING btree (updated_at) WHERE purge;

CREATE INDEX templates_generation ON public.templates USING btree (generation_id);

CREATE UNIQUE INDEX volumes_names ON public.volumes USING btree (team_id, name) WHERE (state <> 'deleting'::text);

CREATE INDEX volumes_unsettled ON public.volumes USING btree (state) WHERE (state <> 'ready'::text);

CREATE INDEX webhook_deliveries_age ON public.webhook_deliveries USING btree (created_at);

CREATE INDEX webhook_deliveries_list ON public.webhook_deliveries USING btree (webhook_id, created_at DESC, id DESC);

CREATE INDEX webhook_deliveries_pending ON public.webhook_deliveries USING btree (webhook_id, next_at) WHERE (state = 'pending'::text);

CREATE INDEX webhooks_team ON public.webhooks USING btree (team_id);

CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON public.sandbox_events FOR EACH ROW EXECUTE FUNCTION public.sandbox_events_append_only();

CREATE TRIGGER count_use_insert AFTER INSERT ON public.sandboxes REFERENCING NEW TABLE AS now_rows FOR EACH STATEMENT EXECUTE FUNCTION public.sandboxes_count_use();

CREATE TRIGGER count_use_update AFTER UPDATE ON public.sandboxes REFERENCING OLD TABLE AS old_rows NEW TABLE AS now_rows FOR EACH STATEMENT EXECUTE FUNCTION public.sandboxes_count_use();

CREATE TRIGGER hosts_notify AFTER INSERT OR UPDATE ON public.hosts FOR EACH ROW EXECUTE FUNCTION public.notify_hosts();

CREATE TRIGGER keep_use AFTER DELETE ON public.volumes FOR EACH ROW EXECUTE FUNCTION public.volumes_keep_use();

CREATE TRIGGER to_webhooks AFTER INSERT ON public.sandbox_events REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION public.sandbox_events_to_webhooks();

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id);

ALTER TABLE ONLY public.audit_entries
    ADD CONSTRAINT audit_entries_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id);

ALTER TABLE ONLY public.ended_volumes
    ADD CONSTRAINT ended_volumes_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id);

ALTER TABLE ONLY public.network_policies
    ADD CONSTRAINT network_policies_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id);

ALTER TABLE ONLY public.node_cordons
    ADD CONSTRAINT node_cordons_host_id_fkey FOREIGN KEY (host_id) REFERENCES public.hosts(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.repeatable_creates
    ADD CONSTRAINT repeatable_creates_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id);

ALTER TABLE ONLY public.requested_builds
    ADD CONSTRAINT requested_builds_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id);

ALTER TABLE ONLY public.sandbox_events
    ADD CONSTRAINT sandbox_events_sandbox_id_fkey FOREIGN KEY (sandbox_id) REFERENCES public.sandboxes(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.sandbox_ingress
    ADD CONSTRAINT sandbox_ingress_sandbox_id_fkey FOREIGN KEY (sandbox_id) REFERENCES public.sandboxes(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.sandboxes
    ADD CONSTRAINT sandboxes_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id);

ALTER TABLE ONLY public.secrets
    ADD CONSTRAINT secrets_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id);

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_key_id_fkey FOREIGN KEY (key_id) REFERENCES public.api_keys(id);

ALTER TABLE ONLY public.store_collections
    ADD CONSTRAINT store_collections_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.team_usage
    ADD CONSTRAINT team_usage_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id);

ALTER TABLE ONLY public.template_assignments
    ADD CONSTRAINT template_assignments_generation_id_fkey FOREIGN KEY (generation_id) REFERENCES public.template_generations(id);

ALTER TABLE ONLY public.template_assignments
    ADD CONSTRAINT template_assignments_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id);

ALTER TABLE ONLY public.template_generations
    ADD CONSTRAINT template_generations_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id);

ALTER TABLE ONLY public.template_lines
    ADD CONSTRAINT template_lines_generation_id_fkey FOREIGN KEY (generation_id) REFERENCES public.template_generations(id);

ALTER TABLE ONLY public.templates
    ADD CONSTRAINT templates_generation_id_fkey FOREIGN KEY (generation_id) REFERENCES public.template_generations(id);

ALTER TABLE ONLY public.templates
    ADD CONSTRAINT templates_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id);

ALTER TABLE ONLY public.volumes
    ADD CONSTRAINT volumes_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id);

ALTER TABLE ONLY public.webhooks
    ADD CONSTRAINT webhooks_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id);
