package service

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
)

// headerSecrets returns the secrets of a team that the header rules of a policy need, and
// the password of its egress proxy. One
// that does not exist is left out: requests that need it fail on the host. They must
// never be in an answer of an API, in a log or in a guest. FailedPrecondition when this
// server has not the key of one.
func (c *core) headerSecrets(ctx context.Context, team wrenn.TeamID, policy wrenn.NetworkPolicy) (wrenn.SecretValues, error) {
	versions, values := map[string]string{}, map[string]string{}
	for _, name := range policy.SecretNames() {
		sealed, err := c.store.SealedSecret(ctx, team, name)
		if wrenn.CodeOf(err) == wrenn.NotFound {
			versions[name] = ""
			continue
		}
		if err != nil {
			return wrenn.SecretValues{}, err
		}
		value, err := c.vault.Open(belongsTo(team, sealed.ID), sealed.Value)
		if err != nil {
			return wrenn.SecretValues{}, err
		}
		versions[name], values[name] = versionOf(sealed.ID, sealed.Version), string(value)
	}
	if p := policy.Proxy; p != nil && len(p.Sealed) > 0 {
		password, err := c.vault.Open(proxyBelongsTo(team), p.Sealed)
		if err != nil {
			return wrenn.SecretValues{}, err
		}
		versions[wrenn.ProxyPasswordSecret], values[wrenn.ProxyPasswordSecret] = versionOfProxy(p), string(password)
	}
	return wrenn.SecretValues{Tag: wrenn.SecretsTag(versions), Values: values}, nil
}

// sealProxy encrypts the password of the policy's egress proxy, if it has one, so that the
// policy can be stored. FailedPrecondition when this server keeps no secrets.
func (c *core) sealProxy(team wrenn.TeamID, policy wrenn.NetworkPolicy) (wrenn.NetworkPolicy, error) {
	if policy.Proxy == nil {
		return policy, nil
	}
	p := *policy.Proxy
	p.HasPassword, p.Sealed, p.SealedKey = p.Password != "", nil, ""
	if p.HasPassword {
		var err error
		if p.Sealed, err = c.vault.Seal(proxyBelongsTo(team), []byte(p.Password)); err != nil {
			return policy, err
		}
		p.SealedKey = c.vault.KeyID()
	}
	p.Password = ""
	policy.Proxy = &p
	return policy, nil
}

// resealProxies is resealSecrets for the passwords of egress proxies.
func (s *Secrets) resealProxies(ctx context.Context) (changed, failed int, err error) {
	page := func(after postgres.SealedProxy) ([]postgres.SealedProxy, error) {
		return s.store.ProxiesOfOtherKeys(ctx, s.vault.KeyID(), after.Sandbox, resealPage)
	}
	return resealEach(s.vault, page,
		func(old postgres.SealedProxy) (string, []byte) { return proxyBelongsTo(old.Team), old.Sealed },
		func(old postgres.SealedProxy, sealed []byte) error {
			return s.store.ResealProxy(ctx, old, sealed, s.vault.KeyID())
		})
}

func proxyBelongsTo(team wrenn.TeamID) string { return string(team) + "/egress proxy" }

// versionOfProxy changes with the password. Two encryptions of one differ, too.
func versionOfProxy(p *wrenn.EgressProxy) string {
	sum := sha256.Sum256(p.Sealed)
	return hex.EncodeToString(sum[:16])
}

func versionOf(id wrenn.SecretID, version int) string { return fmt.Sprintf("%s@%d", id, version) }

// checkedSecrets is headerSecrets for a policy that a user sets: Invalid when a secret
// does not exist.
func (c *core) checkedSecrets(ctx context.Context, team wrenn.TeamID, policy wrenn.NetworkPolicy) (wrenn.SecretValues, error) {
	secrets, err := c.headerSecrets(ctx, team, policy)
	if err != nil {
		return secrets, err
	}
	for _, name := range policy.SecretNames() {
		if _, ok := secrets.Values[name]; !ok {
			return secrets, wrenn.Errorf(wrenn.Invalid, "a header rule needs the secret %q, which the team does not have: store it first", name)
		}
	}
	return secrets, nil
}

// notifyHosts has the reconciler compare all hosts with their rows now: policies or
// secrets of sandboxes changed. A leader that is another replica, or a host that is
// away, does so with its next round.
func (c *core) notifyHosts() {
	for host := range c.hosts.reachable() {
		c.reconciler.Notify(host)
	}
}

// SecretsTags returns the tags of the secrets that rows need now.
func (r rows) SecretsTags(ctx context.Context, sandboxes []wrenn.Sandbox) (map[wrenn.SandboxID]string, error) {
	var teams []wrenn.TeamID
	for i := range sandboxes {
		if sb := &sandboxes[i]; !sb.State.Ended() && len(sb.Network.SecretNames()) > 0 {
			teams = append(teams, sb.Team)
		}
	}
	known := map[postgres.SecretKey]string{}
	var all []postgres.SecretVersion
	if len(teams) > 0 {
		var err error
		if all, err = r.SecretVersions(ctx, teams); err != nil {
			return nil, err
		}
	}
	for _, s := range all {
		text := versionOf(s.ID, s.Version)
		known[postgres.SecretKey{Team: s.Team, Name: s.Name}], known[postgres.SecretKey{Team: s.Team, Name: string(s.ID)}] = text, text
	}
	tags := map[wrenn.SandboxID]string{}
	for i := range sandboxes {
		sb := &sandboxes[i]
		versions := map[string]string{}
		for _, name := range sb.Network.SecretNames() {
			versions[name] = known[postgres.SecretKey{Team: sb.Team, Name: name}]
		}
		if p := sb.Network.Proxy; p != nil && len(p.Sealed) > 0 {
			versions[wrenn.ProxyPasswordSecret] = versionOfProxy(p)
		}
		tags[sb.ID] = wrenn.SecretsTag(versions)
	}
	return tags, nil
}
