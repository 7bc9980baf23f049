//go:build root

package controlplane

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/host/member"
	"wrenn.dev/internal/host/server"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/testkit"
)

// joined is a host that joined, and its agent.
type joined struct {
	id     string
	member *member.Member
	agent  *agenttest.Agent
}

func (s *system) join(t *testing.T, c *client.Client, id string) joined {
	t.Helper()
	return s.joinWith(t, c, id, agenttest.Config{})
}

// joinWith is join of an agent with that configuration, less its listener.
func (s *system) joinWith(t *testing.T, c *client.Client, id string, cfg agenttest.Config) joined {
	t.Helper()
	token, err := c.CreateHostToken(t.Context(), client.CreateHostToken{Host: id, Zone: "z-" + id})
	testkit.Must(t, err)
	address := testkit.FreeAddress(t)
	m, err := member.Join{StateDir: t.TempDir(), ControlPlane: s.url, Token: token.Token, Listen: address}.Do(t.Context())
	testkit.Must(t, err)
	files := m.Files()
	cfg.Listen = server.Listen{Address: address, TLS: server.TLS{
		Certificate: files.Certificate, Key: files.Key, ClientCA: files.CA, ClientName: "control-plane",
	}}
	agent := agenttest.New(t, cfg)
	return joined{id, m, agent}
}

// reached waits until the control plane reaches a host.
func reached(t *testing.T, c *client.Client, id string) {
	t.Helper()
	testkit.WaitNoError(t, "host "+id+" is reached", func() error {
		h, err := c.Host(t.Context(), id)
		if err == nil && !h.Reachable {
			err = errors.New("not yet")
		}
		return err
	})
}

// onlyOn leaves one host open for new sandboxes, and makes one there that runs commands.
func onlyOn(t *testing.T, c *client.Client, id string) string {
	t.Helper()
	for _, other := range []string{"h1", "h2", "h3"} {
		change := c.CordonHost
		if other == id {
			change = c.UncordonHost
		}
		_, err := change(t.Context(), other)
		testkit.Must(t, err)
	}
	box, err := c.CreateSandbox(t.Context(), client.CreateSandbox{})
	testkit.Must(t, err)
	says(t, c, box.ID, "on "+id)
	return box.ID
}

func says(t *testing.T, c *client.Client, box, text string) {
	t.Helper()
	got, err := c.Exec(t.Context(), box, client.Command{Cmd: "echo", Args: []string{text}, User: "root"})
	if err != nil || string(got.Stdout) != text+"\n" {
		t.Errorf("command in %s: %+v, %v", box, got, err)
	}
}

// TestHostsJoin has two agents join beside a host of the configuration: all are used,
// also after renewals and restarts.
func TestHostsJoin(t *testing.T) {
	s := newSystem(t)
	c, err := client.New(client.Config{URL: s.url, Key: s.key})
	testkit.Must(t, err)
	h2, h3 := s.join(t, c, "h2"), s.join(t, c, "h3")
	for _, id := range []string{"h1", "h2", "h3"} {
		reached(t, c, id)
	}
	boxes := map[string]string{}
	for _, h := range []joined{h2, h3} {
		boxes[h.id] = onlyOn(t, c, h.id)
		if n := h.agent.Manager.Live(); n != 1 {
			t.Errorf("host %s has %d sandboxes", h.id, n)
		}
	}
	onlyOn(t, c, "h1")
	for range 3 { // the second one would be refused with a certificate of before the first
		valid, err := h2.member.Renew(t.Context())
		if err != nil || valid <= 0 {
			t.Fatalf("renewed: %v, %v", valid, err)
		}
	}
	h2.agent.Stop(t)
	h2.agent.Start(t)
	testkit.WaitNoError(t, "the host is reached with its newest certificate", func() error {
		_, err := c.Exec(t.Context(), boxes["h2"], client.Command{Cmd: "true", User: "root"})
		return err
	})

	// A host id that another machine's key would have to prove.
	token, err := c.CreateHostToken(t.Context(), client.CreateHostToken{Host: "h3"})
	testkit.Must(t, err)
	_, err = member.Join{StateDir: t.TempDir(), ControlPlane: s.url, Token: token.Token, Listen: h3.member.Listen()}.Do(t.Context())
	testkit.Must(t, err)
	_, err = h3.member.Renew(t.Context()) // it joined as another machine
	testkit.WantCode(t, err, wrenn.PermissionDenied)
	if !strings.Contains(err.Error(), "replaced") {
		t.Errorf("it is told %v", err)
	}
	testkit.WaitUntil(t, "it is not used any more", func() bool {
		_, err := c.Exec(t.Context(), boxes["h3"], client.Command{Cmd: "true", User: "root"})
		return client.CodeOf(err) == client.Unavailable
	})
	_, err = c.CreateHostToken(t.Context(), client.CreateHostToken{Host: "h1"})
	if client.CodeOf(err) != client.InvalidState {
		t.Errorf("a token for a host of the configuration: %v", err)
	}
}

// TestDrainHost empties a host of a paused sandbox and one that runs, by a store that both
// hosts have, and the host is removed then.
func TestDrainHost(t *testing.T) {
	c, h2, h3 := newFleet(t, t.TempDir(), wrenn.HostFacts{Labels: map[string]string{"disk": "nvme"}, Zone: "ignored"})
	if h, err := c.Host(t.Context(), "h2"); err != nil || h.Labels["disk"] != "nvme" || h.Zone != "z-h2" || h.Platform != "fake" {
		t.Errorf("host: %+v, %v", h, err)
	}
	runs, rests := onlyOn(t, c, "h2"), onlyOn(t, c, "h2")
	_, err := c.PauseSandbox(t.Context(), rests)
	testkit.Must(t, err)
	_, err = c.UncordonHost(t.Context(), "h3")
	testkit.Must(t, err)
	_, err = c.DrainHost(t.Context(), "h2")
	testkit.Must(t, err)
	testkit.WaitNoError(t, "the host is drained", func() error {
		h, err := c.Host(t.Context(), "h2")
		if err == nil && h.Drain.Left != 0 {
			err = fmt.Errorf("%+v", h.Drain)
		}
		return err
	})
	says(t, c, runs, "still here")
	if sb, err := c.Sandbox(t.Context(), rests); err != nil || sb.State != client.Paused || sb.StoredAt.IsZero() {
		t.Errorf("%+v, %v", sb, err)
	}
	testkit.WaitUntil(t, "nothing is left on the host", func() bool { return h2.agent.Manager.Live() == 0 })
	_, err = c.ResumeSandbox(t.Context(), rests)
	testkit.Must(t, err)
	says(t, c, rests, "and here")
	if n := h3.agent.Manager.Live(); n != 2 {
		t.Errorf("the other host has %d sandboxes", n)
	}
	if h, err := c.RemoveHost(t.Context(), "h2"); err != nil || h.Status != "removed" {
		t.Errorf("removed: %+v, %v", h, err)
	}
	for _, id := range []string{runs, rests} {
		testkit.Must(t, c.DeleteSandbox(t.Context(), id))
	}
}
