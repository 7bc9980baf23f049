//go:build root

package controlplane

import (
	"errors"
	"strings"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
)

// TestSandboxOfALostHost: a running sandbox continues on another host from its newest stored
// checkpoint when its own is declared lost.
func TestSandboxOfALostHost(t *testing.T) {
	c, h2, h3 := newFleet(t, t.TempDir(), wrenn.HostFacts{})
	testkit.Must(t, c.DeleteSandbox(t.Context(), onlyOn(t, c, "h2")))
	sb, err := c.CreateSandbox(t.Context(), client.CreateSandbox{OnHostLoss: client.RestoreOnHostLoss, CheckpointEvery: time.Hour})
	testkit.Must(t, err)
	if sb.OnHostLoss != client.RestoreOnHostLoss || sb.CheckpointEverySec != 3600 {
		t.Errorf("made: %+v", sb)
	}
	_, err = c.CreateSandbox(t.Context(), client.CreateSandbox{CheckpointEvery: time.Second})
	if err == nil || !strings.Contains(err.Error(), "60") && !strings.Contains(err.Error(), "1m0s") {
		t.Errorf("a checkpoint every second: %v", err)
	}
	made, err := c.CreateCheckpoint(t.Context(), sb.ID, "before")
	testkit.Must(t, err)
	testkit.WaitNoError(t, "the checkpoint is stored", func() error {
		sb, err := c.Sandbox(t.Context(), sb.ID)
		if err == nil && sb.CheckpointStoredAt.IsZero() {
			err = errors.New("not yet")
		}
		return err
	})
	list, err := c.Checkpoints(t.Context(), sb.ID)
	if err != nil || len(list.Checkpoints) != 1 || list.Checkpoints[0].ID != made.ID || list.Checkpoints[0].StoredAt.IsZero() || list.Checkpoints[0].Automatic {
		t.Errorf("%+v, %v", list, err)
	}
	_, err = c.UncordonHost(t.Context(), "h3")
	testkit.Must(t, err)
	h2.agent.Stop(t)
	testkit.WaitNoError(t, "the host is lost", func() error { _, err := c.LoseHost(t.Context(), "h2"); return err })
	testkit.WaitNoError(t, "it runs on the other host", func() error {
		now, err := c.Sandbox(t.Context(), sb.ID)
		if err == nil && now.State != client.Running {
			err = errors.New(string(now.State) + ": " + now.Reason)
		}
		return err
	})
	if n := h3.agent.Manager.Live(); n != 1 {
		t.Errorf("the other host runs %d sandboxes", n)
	}
	says(t, c, sb.ID, "again")
	_, err = c.RestoreCheckpoint(t.Context(), sb.ID, made.ID)
	testkit.Must(t, err)
	says(t, c, sb.ID, "at the checkpoint")
	testkit.Must(t, c.DeleteSandbox(t.Context(), sb.ID))
}
