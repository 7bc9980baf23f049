-- name: NetworkPolicies :many
-- Of teams, and of templates that are given as pairs of team and name.
SELECT team_id, template, network FROM network_policies
WHERE (team_id, template) IN (SELECT unnest(@teams::uuid[]), unnest(@templates::text[]));

-- name: CountNetworkPolicies :one
-- Under LockTeam. Those of other templates.
SELECT count(*) FROM network_policies WHERE team_id = @team_id AND template <> @template;

-- name: SetNetworkPolicy :exec
INSERT INTO network_policies (team_id, template, network) VALUES (@team_id, @template, @network)
ON CONFLICT (team_id, template) DO UPDATE SET network = excluded.network, updated_at = clock_timestamp();

-- name: DropNetworkPolicy :exec
DELETE FROM network_policies WHERE team_id = @team_id AND template = @template;
