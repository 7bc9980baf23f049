-- +goose Up

ALTER TABLE sandboxes
    -- What becomes of it when it runs and its host is lost.
    ADD COLUMN on_host_loss text NOT NULL DEFAULT 'fail' CONSTRAINT sandboxes_on_host_loss CHECK (on_host_loss IN ('fail', 'restore')),
    -- How often its host makes a checkpoint of it; 0 is never.
    ADD COLUMN checkpoint_every_sec integer NOT NULL DEFAULT 0 CONSTRAINT sandboxes_checkpoint_every CHECK (checkpoint_every_sec >= 0),
    -- Its newest checkpoint that is in the snapshot store; '' for none.
    ADD COLUMN checkpoint_id text COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN checkpoint_key text NOT NULL DEFAULT '',
    ADD COLUMN checkpoint_at timestamptz;

-- +goose Down
ALTER TABLE sandboxes
    DROP COLUMN on_host_loss, DROP COLUMN checkpoint_every_sec,
    DROP COLUMN checkpoint_id, DROP COLUMN checkpoint_key, DROP COLUMN checkpoint_at;
