-- +goose Up

-- What the sandboxes of a team may reach of the internet, beside their own policies:
-- wrenn.NetworkPolicy as JSON. With template '' it is for all sandboxes of the team, else
-- for those of that template. No row allows everything. The policy of a template outlives
-- the template, since sandboxes may outlive it.
CREATE TABLE network_policies (
    team_id    uuid NOT NULL REFERENCES teams,
    template   text NOT NULL,
    network    jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (team_id, template)
);

-- +goose Down
DROP TABLE network_policies;
