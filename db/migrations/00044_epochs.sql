-- +goose Up

-- Which placement on a host counts, see wrenn.Epoch: it is raised with each other host, and
-- when a host fetches the sandbox again.
ALTER TABLE sandboxes ADD COLUMN epoch bigint NOT NULL DEFAULT 1;

-- +goose Down
ALTER TABLE sandboxes DROP COLUMN epoch;
