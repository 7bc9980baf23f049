package service

import (
	"context"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
)

// Networks are the use cases of the network policies of teams and templates. Each
// sandbox follows them beside its own: a connection is allowed only if each policy allows it.
type Networks struct {
	*core
}

// TeamNetwork returns the policy of the caller's team.
func (n *Networks) TeamNetwork(ctx context.Context, c Caller) (wrenn.NetworkPolicy, error) {
	return n.policyOf(ctx, postgres.PolicyOwner{Team: c.Team})
}

// SetTeamNetwork replaces the policy of the caller's team, which sandboxes that run or are
// paused follow soon, see notifyHosts.
func (n *Networks) SetTeamNetwork(ctx context.Context, c Caller, policy wrenn.NetworkPolicy) error {
	return n.setLayer(ctx, postgres.PolicyOwner{Team: c.Team}, policy)
}

// TemplateNetwork returns the policy of a template, which is for all its tags. NotFound
// when the team has neither the template nor a policy of it.
func (n *Networks) TemplateNetwork(ctx context.Context, c Caller, template string) (wrenn.NetworkPolicy, error) {
	owner, err := n.ownerOf(ctx, c, template)
	if err != nil {
		return wrenn.NetworkPolicy{}, err
	}
	return n.policyOf(ctx, owner)
}

// SetTemplateNetwork is SetTeamNetwork for the sandboxes of a template.
func (n *Networks) SetTemplateNetwork(ctx context.Context, c Caller, template string, policy wrenn.NetworkPolicy) error {
	owner, err := n.ownerOf(ctx, c, template)
	if err != nil {
		return err
	}
	return n.setLayer(ctx, owner, policy)
}

// ownerOf returns the owner of a template's policy, by the template's name.
func (n *Networks) ownerOf(ctx context.Context, c Caller, template string) (postgres.PolicyOwner, error) {
	name, err := wrenn.ParseTemplateName(template)
	if err != nil {
		return postgres.PolicyOwner{}, err
	}
	owner := postgres.PolicyOwner{Team: c.Team, Template: name.Name}
	if policies, err := n.store.NetworkPolicies(ctx, []postgres.PolicyOwner{owner}); err != nil || len(policies) > 0 || name.Base() {
		return owner, err
	}
	_, err = n.store.Template(ctx, c.Team, name)
	return owner, err
}

func (c *core) policyOf(ctx context.Context, of postgres.PolicyOwner) (wrenn.NetworkPolicy, error) {
	policies, err := c.store.NetworkPolicies(ctx, []postgres.PolicyOwner{of})
	return policies[of], err
}

// setLayer replaces the policy of an owner.
func (c *core) setLayer(ctx context.Context, of postgres.PolicyOwner, policy wrenn.NetworkPolicy) error {
	if err := policy.CheckLayer(); err != nil {
		return err
	}
	if err := c.store.SetNetworkPolicy(ctx, of, policy); err != nil {
		return err
	}
	c.notifyHosts() // also when ctx has ended
	return nil
}

// layered returns the policy of a sandbox with the layers of its team and template, as
// they are now. A change after the sandbox's row was written is the reconciler's.
func (c *core) layered(ctx context.Context, sb *wrenn.Sandbox) (wrenn.NetworkPolicy, error) {
	policies, err := c.store.NetworkPolicies(ctx, ownersOf(sb))
	return withLayers(sb, policies), err
}

// ownersOf returns whose policies a sandbox follows beside its own.
func ownersOf(sb *wrenn.Sandbox) []postgres.PolicyOwner {
	return []postgres.PolicyOwner{{Team: sb.Team}, {Team: sb.Team, Template: templateOf(sb)}}
}

// templateOf returns the name of a sandbox's template, without the tag.
func templateOf(sb *wrenn.Sandbox) string {
	name, err := wrenn.ParseTemplateName(sb.Template)
	if err != nil {
		return sb.Template // of an older version, and so without a tag
	}
	return name.Name
}

func withLayers(sb *wrenn.Sandbox, policies map[postgres.PolicyOwner]wrenn.NetworkPolicy) wrenn.NetworkPolicy {
	owners := ownersOf(sb)
	return sb.Network.With(policies[owners[0]], policies[owners[1]])
}

// Layers gives rows that have not ended the policies that they follow now.
func (r rows) Layers(ctx context.Context, sandboxes []wrenn.Sandbox) error {
	var owners []postgres.PolicyOwner
	known := map[postgres.PolicyOwner]bool{}
	for i := range sandboxes {
		if sandboxes[i].State.Ended() {
			continue
		}
		for _, o := range ownersOf(&sandboxes[i]) {
			if !known[o] {
				known[o] = true
				owners = append(owners, o)
			}
		}
	}
	if len(owners) == 0 {
		return nil
	}
	policies, err := r.NetworkPolicies(ctx, owners)
	if err != nil {
		return err
	}
	for i := range sandboxes {
		sandboxes[i].Network = withLayers(&sandboxes[i], policies)
	}
	return nil
}

// Network returns the policy that a sandbox follows, with those of its team and template.
func (s *Sandboxes) Network(ctx context.Context, c Caller, id wrenn.SandboxID) (wrenn.NetworkPolicy, error) {
	sb, err := s.Sandbox(ctx, c, id)
	if err != nil {
		return wrenn.NetworkPolicy{}, err
	}
	return s.layered(ctx, sb)
}
