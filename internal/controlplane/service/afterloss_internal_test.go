package service

import (
	"strings"
	"testing"
	"time"

	"wrenn.dev"
)

// TestAfterLoss: what becomes of a sandbox with its host, by its state. Nothing that did not
// ask for it is restored, and nothing from a checkpoint that is older than its stored pause.
func TestAfterLoss(t *testing.T) {
	const restore, fail = wrenn.RestoreOnHostLoss, wrenn.FailOnHostLoss
	newest := wrenn.StoredCheckpoint{ID: "c1", Stored: wrenn.Stored{Key: "checkpoint", At: time.Unix(1e9, 0)}}
	for name, c := range map[string]struct {
		state      wrenn.State
		loss       wrenn.OnHostLoss
		checkpoint bool
		pause      string // where its last pause is stored
		to         wrenn.State
		from       string // what it continues from; "" keeps what the row has
		runs       bool   // it shall run again
		says       string
	}{
		"runs":                       {state: wrenn.Running, loss: restore, checkpoint: true, to: wrenn.Paused, from: "checkpoint", runs: true, says: "checkpoint c1"},
		"runs, nothing is stored":    {state: wrenn.Running, loss: restore, to: wrenn.Failed, says: "no checkpoint"},
		"runs, and shall fail":       {state: wrenn.Running, loss: fail, checkpoint: true, to: wrenn.Failed, says: "c1 of 2001-09-09T01:46:40Z"},
		"runs, of an older version":  {state: wrenn.Running, to: wrenn.Failed, says: "its host was lost"},
		"pausing":                    {state: wrenn.Pausing, loss: restore, checkpoint: true, to: wrenn.Paused, from: "checkpoint", runs: true, says: "checkpoint c1"},
		"resuming":                   {state: wrenn.Resuming, loss: restore, checkpoint: true, pause: "pause", to: wrenn.Paused, runs: true, says: "its host was lost"},
		"resuming, pause not stored": {state: wrenn.Resuming, loss: restore, checkpoint: true, to: wrenn.Paused, from: "checkpoint", runs: true, says: "checkpoint c1"},
		"resuming, shall fail":       {state: wrenn.Resuming, loss: fail, pause: "pause", to: wrenn.Failed, says: "its host was lost"},
		"paused, not stored":         {state: wrenn.Paused, loss: restore, checkpoint: true, to: wrenn.Paused, from: "checkpoint", says: "checkpoint c1"},
		"starting":                   {state: wrenn.Starting, loss: restore, checkpoint: true, to: wrenn.Failed, says: "its host was lost"},
		"stopping":                   {state: wrenn.Stopping, loss: restore, checkpoint: true, to: wrenn.Failed, says: "its host was lost"},
	} {
		t.Run(name, func(t *testing.T) {
			sb := &wrenn.Sandbox{Host: "h1", State: c.state, OnHostLoss: c.loss, Stored: wrenn.Stored{Key: c.pause}}
			if c.checkpoint {
				sb.Newest = newest
			}
			got := afterLoss(sb)
			if got.To != c.to || got.Stored.Key != c.from || got.Moving != c.runs || !strings.Contains(got.Reason, c.says) {
				t.Errorf("%+v", got)
			}
			if changesHost := got.To == sb.State && got.Host == sb.Host; !sb.State.Can(got.To) && !changesHost {
				t.Errorf("the states do not allow %s to %s", sb.State, got.To)
			}
			if (got.Cause == wrenn.CauseLost) != (got.To == wrenn.Failed) {
				t.Errorf("the cause is %q", got.Cause)
			}
		})
	}
}
