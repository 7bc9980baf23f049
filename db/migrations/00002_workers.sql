-- +goose Up

-- The control plane that works on a row in transition: the key of the advisory lock that it holds while it lives.
-- 0: it was released. Null: the row is not in transition, or a version without workers wrote it.
ALTER TABLE sandboxes ADD COLUMN worker bigint;
-- For the reconciler: the rows in transition, of all hosts. Few rows at any time.
CREATE INDEX sandboxes_between ON sandboxes (worker) WHERE state IN ('pending', 'starting', 'pausing', 'resuming', 'stopping');

-- The control planes that are connected, by the keys of their locks; see pg_locks in PostgreSQL's manual for its halves.
-- +goose StatementBegin
CREATE FUNCTION workers() RETURNS SETOF bigint LANGUAGE sql STABLE AS $$
    SELECT (classid::bigint << 32) | objid::bigint
    FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
$$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION workers;
ALTER TABLE sandboxes DROP COLUMN worker;
