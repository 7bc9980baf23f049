-- +goose Up

-- The size of disks in MiB; 0 is that of what they are made from: the template, or the
-- base guest.
ALTER TABLE sandboxes ADD COLUMN disk_mb integer NOT NULL DEFAULT 0;
ALTER TABLE template_generations ADD COLUMN disk_mb integer NOT NULL DEFAULT 0;
ALTER TABLE requested_builds
    ADD COLUMN disk_mb integer NOT NULL DEFAULT 0,
    ADD COLUMN min_free_disk_mb integer NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE requested_builds DROP COLUMN disk_mb, DROP COLUMN min_free_disk_mb;
ALTER TABLE template_generations DROP COLUMN disk_mb;
ALTER TABLE sandboxes DROP COLUMN disk_mb;
