//go:build root

package controlplane

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/testkit"
)

// storeIn is the configuration of an agent whose snapshot store is a directory.
func storeIn(t *testing.T, dir string) agenttest.Config {
	t.Helper()
	store, err := objects.OpenDir(dir)
	testkit.Must(t, err)
	return agenttest.Config{Objects: store}
}

// newFleet is a system with two more hosts that have one store, in a directory. The host
// of newSystem has none.
func newFleet(t *testing.T, dir string, facts wrenn.HostFacts, changes ...func(*Config)) (c *client.Client, h2, h3 joined) {
	t.Helper()
	s := newSystem(t, changes...)
	c, err := client.New(client.Config{URL: s.url, Key: s.key})
	testkit.Must(t, err)
	join := func(id string) joined {
		cfg := storeIn(t, dir)
		cfg.Facts = facts
		return s.joinWith(t, c, id, cfg)
	}
	h2, h3 = join("h2"), join("h3")
	for _, id := range []string{"h1", "h2", "h3"} {
		reached(t, c, id)
	}
	return c, h2, h3
}

func templateStored(t *testing.T, c *client.Client, name string) {
	t.Helper()
	testkit.WaitNoError(t, "the template is stored", func() error {
		found, err := c.Template(t.Context(), name)
		if err == nil && (found.Current == nil || found.Current.StoredAt.IsZero()) {
			err = errors.New("not yet")
		}
		return err
	})
}

// TestTemplateOnEveryHost makes a template of a sandbox on one host, which is lost then:
// its sandboxes start on another one. When the template is deleted,
// the store has nothing of it.
func TestTemplateOnEveryHost(t *testing.T) {
	dir := t.TempDir()
	c, h2, h3 := newFleet(t, dir, wrenn.HostFacts{})
	box := onlyOn(t, c, "h2")
	g, err := c.BuildTemplate(t.Context(), client.BuildTemplate{Name: "marked", FromSandbox: box})
	testkit.Must(t, err)
	templateStored(t, c, "marked")
	testkit.Must(t, c.DeleteSandbox(t.Context(), box))

	_, err = c.UncordonHost(t.Context(), "h3")
	testkit.Must(t, err)
	h2.agent.Stop(t)
	testkit.WaitNoError(t, "the host is lost", func() error { _, err := c.LoseHost(t.Context(), "h2"); return err })
	made, err := c.CreateSandbox(t.Context(), client.CreateSandbox{Template: "marked"})
	testkit.Must(t, err)
	says(t, c, made.ID, "on another host")
	builds := h3.agent.Templates.Builds()
	if len(builds.IDs) != 1 || string(builds.IDs[0]) != g.ID {
		t.Fatalf("the other host has %+v", builds)
	}
	team := wrenn.TeamID(strings.Split(builds.Stored[builds.IDs[0]].Key, "/")[1])
	testkit.Must(t, c.DeleteSandbox(t.Context(), made.ID))
	testkit.Must(t, h3.agent.Templates.Delete(t.Context(), builds.IDs[0], team))
	err = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && strings.Contains(path, "/templates/") {
			t.Errorf("left is %s", path)
		}
		return err
	})
	testkit.Must(t, err)
}
