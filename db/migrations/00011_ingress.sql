-- +goose Up

-- Who reaches the ports of a sandbox by HTTP, and how. Sandboxes without a row have
-- the default. A row does not change: gateways remember it.
CREATE TABLE sandbox_ingress (
    sandbox_id  text COLLATE "C" PRIMARY KEY REFERENCES sandboxes (id) ON DELETE CASCADE,
    private     boolean NOT NULL,
    mask_host   text NOT NULL,
    https_ports integer[] NOT NULL
);
