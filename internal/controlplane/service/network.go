package service

import (
	"context"
	"errors"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/controlplane/postgres"
)

// SetNetwork changes what a running or paused sandbox may reach of the internet.
// When it returns nil the sandbox follows the policy. Connections that stay
// allowed continue.
func (s *Sandboxes) SetNetwork(ctx context.Context, c Caller, id wrenn.SandboxID, policy wrenn.NetworkPolicy) (*wrenn.Sandbox, error) {
	policy = policy.Own()
	if err := policy.Check(); err != nil {
		return nil, err
	}
	policy, err := s.sealProxy(c.Team, policy)
	if err != nil {
		return nil, err
	}
	if _, err := s.checkedSecrets(ctx, c.Team, policy); err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx, s.deadlines.Extend)
	defer cancel()
	for attempt := 1; ; attempt++ {
		sb, host, err := s.locate(ctx, c, id, wrenn.Running, wrenn.Paused)
		if err != nil {
			return nil, err
		}
		changed, err := s.store.SetNetwork(ctx, sb, policy, c.actor())
		switch {
		case errors.Is(err, postgres.ErrConflict) && attempt < casAttempts:
			continue
		case err != nil:
			return nil, err
		}
		err = s.tellPolicy(ctx, host, changed) // after the row: a change since then is the reconciler's
		if wrenn.CodeOf(err) == wrenn.NotFound {
			s.reconciler.Notify(sb.Host)
			return nil, lostError(sb)
		}
		if err != nil { // the reconciler tells the host again
			s.reconciler.Notify(sb.Host)
			return nil, err
		}
		return changed, nil
	}
}

// tellPolicy has a host that has the sandbox follow its policy, with those of its team and
// template, and the secrets of header rules, as they are now.
func (c *core) tellPolicy(ctx context.Context, host *hostclient.Client, sb *wrenn.Sandbox) error {
	policy, err := c.layered(ctx, sb)
	if err != nil {
		return err
	}
	secrets, err := c.headerSecrets(ctx, sb.Team, policy)
	if err != nil {
		return err
	}
	return host.SetNetwork(ctx, sb.ID, policy, secrets)
}
