-- +goose Up

-- An ended sandbox needs no variables, which may be secrets.
UPDATE sandboxes SET env = '{}' WHERE state IN ('stopped', 'failed') AND env <> '{}';

-- Rows of ended sandboxes are deleted after a while, with their events.
CREATE INDEX sandboxes_ended ON sandboxes (updated_at) WHERE state IN ('stopped', 'failed');
ALTER TABLE sandbox_events
    DROP CONSTRAINT sandbox_events_sandbox_id_fkey,
    ADD CONSTRAINT sandbox_events_sandbox_id_fkey FOREIGN KEY (sandbox_id) REFERENCES sandboxes ON DELETE CASCADE;

-- Only a transaction that says that it is the retention's may delete.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION sandbox_events_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('wrenn.retention', true) = 'on' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'sandbox_events is append-only';
END $$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION sandbox_events_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'sandbox_events is append-only';
END $$;
-- +goose StatementEnd
ALTER TABLE sandbox_events
    DROP CONSTRAINT sandbox_events_sandbox_id_fkey,
    ADD CONSTRAINT sandbox_events_sandbox_id_fkey FOREIGN KEY (sandbox_id) REFERENCES sandboxes;
DROP INDEX sandboxes_ended;
