-- +goose Up

-- Who a host is and what the scheduler may do with it. The control planes follow these
-- columns; the others are what the host answered last.
ALTER TABLE hosts
    ADD COLUMN name          text NOT NULL DEFAULT '',
    ADD COLUMN zone          text NOT NULL DEFAULT '',
    ADD COLUMN labels        jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN status        text NOT NULL DEFAULT 'active' CONSTRAINT hosts_status CHECK (status IN (
        'active', 'cordoned', 'draining', 'removed', 'lost')),
    ADD COLUMN disks_mb      bigint NOT NULL DEFAULT 0,
    ADD COLUMN disks_mb_used bigint NOT NULL DEFAULT 0,
    ADD COLUMN created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    ADD COLUMN joined_at     timestamptz; -- null: a control plane's configuration has it, with its url

-- Tells the control planes that a host is another one than before; answers of hosts are no news.
-- +goose StatementBegin
CREATE FUNCTION notify_hosts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR (OLD.url, OLD.name, OLD.zone, OLD.labels, OLD.status, OLD.joined_at)
        IS DISTINCT FROM (NEW.url, NEW.name, NEW.zone, NEW.labels, NEW.status, NEW.joined_at) THEN
        PERFORM pg_notify('hosts', NEW.id);
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER hosts_notify AFTER INSERT OR UPDATE ON hosts FOR EACH ROW EXECUTE FUNCTION notify_hosts();

-- +goose Down
DROP TRIGGER hosts_notify ON hosts;
DROP FUNCTION notify_hosts;
ALTER TABLE hosts DROP COLUMN name, DROP COLUMN zone, DROP COLUMN labels, DROP COLUMN status, DROP COLUMN disks_mb,
    DROP COLUMN disks_mb_used, DROP COLUMN created_at, DROP COLUMN joined_at;
