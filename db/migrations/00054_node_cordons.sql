-- +goose Up

-- Hosts that are drained or cordoned because their node of Kubernetes is: they are uncordoned with it.
CREATE TABLE node_cordons (
    host_id text COLLATE "C" PRIMARY KEY REFERENCES hosts (id) ON DELETE CASCADE
);

-- +goose Down
DROP TABLE node_cordons;
