-- +goose Up

-- Where a build is in the snapshot store, and since when: '' and null while it is on its
-- host alone. The platform is that of the host that stored it. A build with purge is not
-- wanted any more, and its objects are to be deleted.
ALTER TABLE template_generations
    ADD COLUMN stored_key text NOT NULL DEFAULT '',
    ADD COLUMN stored_at timestamptz,
    ADD COLUMN platform jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN purge boolean NOT NULL DEFAULT false;

CREATE INDEX template_generations_purge ON template_generations (updated_at) WHERE purge;

-- +goose Down
DROP INDEX template_generations_purge;
ALTER TABLE template_generations DROP COLUMN stored_key, DROP COLUMN stored_at, DROP COLUMN platform, DROP COLUMN purge;
