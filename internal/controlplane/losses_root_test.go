//go:build root

package controlplane

import (
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane/authority"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/host/member"
	"wrenn.dev/internal/testkit"
)

// again stops the control plane and starts one with another configuration on its database.
func (s *system) again(t *testing.T, change func(*Config)) *client.Client {
	t.Helper()
	s.stop()
	cfg := s.config
	cfg.Listen = strings.TrimPrefix(s.url, "http://") // where its hosts find it
	change(&cfg)
	s.serve(t, cfg, s.logger(t))
	c, err := client.New(client.Config{URL: s.url, Key: s.key})
	testkit.Must(t, err)
	return c
}

// TestAuthorityIsLost: with another authority the hosts that joined are not reached, until
// they join again. Their sandboxes run on.
func TestAuthorityIsLost(t *testing.T) {
	s := newSystem(t)
	c, err := client.New(client.Config{URL: s.url, Key: s.key})
	testkit.Must(t, err)
	h2 := s.join(t, c, "h2")
	reached(t, c, "h2")
	_, err = c.CordonHost(t.Context(), "h1")
	testkit.Must(t, err)
	sb, err := c.CreateSandbox(t.Context(), client.CreateSandbox{})
	testkit.Must(t, err)

	lost := filepath.Join(t.TempDir(), "fleet.pem")
	testkit.Must(t, authority.Create(lost))
	c = s.again(t, func(cfg *Config) { cfg.Fleet.Authority = lost })
	testkit.WaitUntil(t, "the log says why the host is not reached", func() bool {
		return strings.Contains(s.log.String(), "certificate signed by unknown authority")
	})
	_, err = c.Exec(t.Context(), sb.ID, client.Command{Cmd: "true", User: "root"})
	if client.CodeOf(err) != client.Unavailable {
		t.Errorf("a command: %v", err)
	}
	t.Logf("a command: %v", err)
	old := h2.member
	_, err = old.Renew(t.Context())
	t.Logf("its renewal: %v", err)
	testkit.WantCode(t, err, wrenn.Unauthenticated, "join again")

	token, err := c.CreateHostToken(t.Context(), client.CreateHostToken{Host: "h2"})
	testkit.Must(t, err)
	_, err = member.Join{StateDir: filepath.Dir(filepath.Dir(old.Files().Key)), ControlPlane: s.url, Token: token.Token, Listen: old.Listen()}.Do(t.Context())
	testkit.Must(t, err)
	h2.agent.Stop(t)
	h2.agent.Start(t)
	reached(t, c, "h2")
	says(t, c, sb.ID, "still here")
}

// TestKeyOfSecretsIsLost: with another key what was encrypted is refused with the reason,
// and works again when it is set again.
func TestKeyOfSecretsIsLost(t *testing.T) {
	s := newSystem(t)
	c, err := client.New(client.Config{URL: s.url, Key: s.key})
	testkit.Must(t, err)
	_, err = c.SetSecret(t.Context(), "token", "a text", nil)
	testkit.Must(t, err)
	lost := filepath.Join(t.TempDir(), "secrets.key")
	testkit.Must(t, vault.Create(lost))
	c = s.again(t, func(cfg *Config) { cfg.Secrets.KeyFiles = []string{lost} })
	reached(t, c, "h1")
	rule := client.HeaderRule{Host: "api.example.com", Headers: map[string]string{"X-Token": "${secrets.token}"}}
	uses := client.CreateSandbox{Network: &client.NetworkPolicy{Headers: []client.HeaderRule{rule}}}
	_, err = c.CreateSandbox(t.Context(), uses)
	t.Logf("a sandbox that uses it: %v", err)
	if err == nil || !strings.Contains(err.Error(), "set it again") {
		t.Errorf("a sandbox that uses it: %v", err)
	}
	plain, err := c.CreateSandbox(t.Context(), client.CreateSandbox{})
	testkit.Must(t, err)
	says(t, c, plain.ID, "without secrets")
	testkit.Must(t, c.DeleteSandbox(t.Context(), plain.ID))
	_, err = c.SetSecret(t.Context(), "token", "another text", nil)
	testkit.Must(t, err)
	sb, err := c.CreateSandbox(t.Context(), uses)
	testkit.Must(t, err)
	says(t, c, sb.ID, "with the secret that was set again")
	testkit.Must(t, c.DeleteSandbox(t.Context(), sb.ID))
}
