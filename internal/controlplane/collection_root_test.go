//go:build root

package controlplane

import (
	"errors"
	"strings"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/objects/objectstest"
	"wrenn.dev/internal/testkit"
)

// pauseStored pauses a sandbox and waits until it is stored.
func pauseStored(t *testing.T, c *client.Client, id string) {
	t.Helper()
	_, err := c.PauseSandbox(t.Context(), id)
	testkit.Must(t, err)
	testkit.WaitNoError(t, "the sandbox is stored", func() error {
		sb, err := c.Sandbox(t.Context(), id)
		if err == nil && sb.StoredAt.IsZero() {
			err = errors.New("not yet")
		}
		return err
	})
}

// TestStoreIsCollected: while rounds follow each other as quickly as they can, the store
// keeps the last pause of a sandbox and its checkpoint, and nothing of what was before or
// was deleted; both can be used on another host.
func TestStoreIsCollected(t *testing.T) {
	dir := t.TempDir()
	store, err := objects.OpenDir(dir)
	testkit.Must(t, err)
	c, h2, _ := newFleet(t, dir, wrenn.HostFacts{}, func(cfg *Config) { cfg.Store.Round.Duration = 50 * time.Millisecond })
	records := func() (all []string) {
		for _, key := range objectstest.List(t, store, "teams/") {
			if strings.Contains(key, "/snapshots/") {
				all = append(all, key)
			}
		}
		return all
	}
	kept, gone := onlyOn(t, c, "h2"), onlyOn(t, c, "h2")
	made, err := c.CreateCheckpoint(t.Context(), kept, "before")
	testkit.Must(t, err)
	pauseStored(t, c, gone)
	for range 3 {
		pauseStored(t, c, kept)
		_, err := c.ResumeSandbox(t.Context(), kept)
		testkit.Must(t, err)
	}
	pauseStored(t, c, kept)
	testkit.Must(t, c.DeleteSandbox(t.Context(), gone))
	testkit.WaitUntil(t, "the rest is deleted", func() bool { return len(records()) == 2 })

	_, err = c.UncordonHost(t.Context(), "h3")
	testkit.Must(t, err)
	h2.agent.Stop(t)
	testkit.WaitNoError(t, "the host is lost", func() error { _, err := c.LoseHost(t.Context(), "h2"); return err })
	testkit.WaitNoError(t, "it continues on the other host", func() error { _, err := c.ResumeSandbox(t.Context(), kept); return err })
	says(t, c, kept, "again")
	_, err = c.RestoreCheckpoint(t.Context(), kept, made.ID)
	testkit.Must(t, err)
	says(t, c, kept, "at the checkpoint")
	testkit.Must(t, c.DeleteSandbox(t.Context(), kept))
	testkit.WaitUntil(t, "all is deleted", func() bool { return len(objectstest.List(t, store, "teams/")) == 0 })
}
