-- +goose Up

ALTER TABLE sandboxes
    -- It ran, was paused to be moved to another host, and will run again there.
    ADD COLUMN moving boolean NOT NULL DEFAULT false,
    -- Why it could not be moved off its host, which is drained; '' while nothing is known.
    ADD COLUMN moving_note text NOT NULL DEFAULT '',
    -- What another host has fetched from the snapshot store last: an earlier host's copy
    -- with that key is void.
    ADD COLUMN moved_key text NOT NULL DEFAULT '';
CREATE INDEX sandboxes_moving ON sandboxes (id) WHERE moving;

-- +goose Down
DROP INDEX sandboxes_moving;
ALTER TABLE sandboxes DROP COLUMN moving, DROP COLUMN moving_note, DROP COLUMN moved_key;
