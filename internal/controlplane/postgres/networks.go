package postgres

import (
	"context"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// networkStore has the methods of a Store for the network policies of teams and templates.
type networkStore struct{ *database }

// PolicyOwner names a network policy: that of a template of a team, in all its tags, or
// with Template "" that of the team.
type PolicyOwner struct {
	Team     wrenn.TeamID
	Template string
}

// maxTemplatePolicies bounds the policies of a team's templates, also of deleted ones.
const maxTemplatePolicies = 1000

// NetworkPolicies returns the policies of the owners that have one.
func (s networkStore) NetworkPolicies(ctx context.Context, owners []PolicyOwner) (map[PolicyOwner]wrenn.NetworkPolicy, error) {
	out := map[PolicyOwner]wrenn.NetworkPolicy{}
	err := s.call(ctx, "read the network policies of teams and templates", func(ctx context.Context) error {
		teams, templates := make([]string, len(owners)), make([]string, len(owners))
		for i, o := range owners {
			teams[i], templates[i] = string(o.Team), o.Template
		}
		rows, err := s.queries.NetworkPolicies(ctx, teams, templates)
		for _, row := range rows {
			out[PolicyOwner{wrenn.TeamID(row.TeamID), row.Template}] = row.Network
		}
		return err
	})
	return out, err
}

// SetNetworkPolicy replaces the policy of an owner; the zero policy is none. NotFound when
// the team does not exist, Exhausted when it has too many.
func (s networkStore) SetNetworkPolicy(ctx context.Context, of PolicyOwner, policy wrenn.NetworkPolicy) error {
	return s.inTx(ctx, "set a network policy", func(ctx context.Context, q *dbsqlc.Queries) error {
		if policy.IsZero() {
			return q.DropNetworkPolicy(ctx, string(of.Team), of.Template)
		}
		if err := lockTeam(ctx, q, of.Team); err != nil {
			return err
		}
		others, err := q.CountNetworkPolicies(ctx, string(of.Team), of.Template)
		if err != nil {
			return err
		}
		if others > maxTemplatePolicies {
			return wrenn.Errorf(wrenn.Exhausted, "the team has %d network policies of templates, which is a fixed limit: set those of deleted templates to allow everything", maxTemplatePolicies)
		}
		return q.SetNetworkPolicy(ctx, string(of.Team), of.Template, policy)
	})
}
