-- +goose Up

-- Since when a paused sandbox is in the snapshot store, and where. Null and '' while it is
-- not, and while it runs.
ALTER TABLE sandboxes
    ADD COLUMN stored_at timestamptz,
    ADD COLUMN stored_key text NOT NULL DEFAULT '';
