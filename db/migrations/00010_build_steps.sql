-- +goose Up

-- A build may begin with another template's build, and have steps. The steps are not
-- stored: they may have secrets. failed_step is the one at which it failed: its
-- number, base or finalize.
ALTER TABLE template_generations
    ADD COLUMN from_template text NOT NULL DEFAULT '',
    ADD COLUMN failed_step   text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE template_generations DROP COLUMN from_template, DROP COLUMN failed_step;
