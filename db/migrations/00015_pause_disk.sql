-- +goose Up

-- A sandbox can be paused at its timeout without its memory.
ALTER TABLE sandboxes
    DROP CONSTRAINT sandboxes_on_timeout,
    ADD CONSTRAINT sandboxes_on_timeout CHECK (on_timeout IN ('destroy', 'pause', 'pause_disk'));

-- +goose Down
UPDATE sandboxes SET on_timeout = 'pause' WHERE on_timeout = 'pause_disk';
ALTER TABLE sandboxes
    DROP CONSTRAINT sandboxes_on_timeout,
    ADD CONSTRAINT sandboxes_on_timeout CHECK (on_timeout IN ('destroy', 'pause'));
