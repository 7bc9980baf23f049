package service_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

// checkpointKey is where a host stores a checkpoint of a sandbox of the caller's team.
func checkpointKey(c service.Caller) string { return "teams/" + string(c.Team) + "/snapshots/c1.x" }

// TestRestoreOnHostLoss: of the running sandboxes of a host that an operator declares lost
// those continue on another one that are to be restored and have a stored checkpoint. The
// others fail, and say which checkpoint is left.
func TestRestoreOnHostLoss(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storing(), storing())
	s, _ := w.replica(t, nil)
	seeAll(t, s, 2)
	make := func(loss wrenn.OnHostLoss, stored bool) *wrenn.Sandbox {
		t.Helper()
		sb := createOn(t, s, w.caller, "h1", service.CreateSandbox{OnHostLoss: loss})
		if !stored {
			return sb
		}
		cp := wrenn.NewCheckpointID()
		w.on("h1").StoreCheckpoint(sb.ID, cp, checkpointKey(w.caller))
		testkit.WaitUntil(t, "the row has the checkpoint", func() bool {
			now, err := s.Sandbox(t.Context(), w.caller, sb.ID)
			if err != nil || now.Newest.ID != cp {
				return false
			}
			sb = now
			return true
		})
		return sb
	}
	restored, waits, fails := make(wrenn.RestoreOnHostLoss, true), make(wrenn.RestoreOnHostLoss, false), make("", true)
	if restored.Newest.Stored.Key != checkpointKey(w.caller) || restored.Newest.Stored.At.IsZero() || restored.OnHostLoss != wrenn.RestoreOnHostLoss || fails.OnHostLoss != wrenn.FailOnHostLoss {
		t.Errorf("%+v", restored)
	}
	w.servers[0].Stop()
	// A host that does not answer is not lost.
	testkit.WaitUntil(t, "the host is known not to answer", func() bool {
		h, err := s.Host(t.Context(), service.Caller{}, "h1")
		return err == nil && !h.Reachable
	})
	if now := w.reaches(t, restored.ID, wrenn.Running); now.Host != "h1" {
		t.Fatalf("it was moved before an operator said anything: %+v", now)
	}
	testkit.WaitNoError(t, "the host can be declared lost", func() error {
		_, err := s.LoseHost(t.Context(), w.caller, "h1")
		return err
	})
	testkit.WaitUntil(t, "the sandbox runs on the other host", func() bool {
		now, err := s.Sandbox(t.Context(), w.caller, restored.ID)
		return err == nil && now.State == wrenn.Running && now.Host == "h2" && now.Epoch == 2 && !now.Moving
	})
	_, err := s.Exec(t.Context(), w.caller, restored.ID, wrenn.ExecCommand{Cmd: "echo"})
	testkit.Must(t, err)
	w.checkEvents(t, w.reaches(t, restored.ID, wrenn.Running))
	none, named := w.reaches(t, waits.ID, wrenn.Failed), w.reaches(t, fails.ID, wrenn.Failed)
	if none.Reason != "its host was lost, and no checkpoint of it was in the snapshot store" || none.EndCause != wrenn.CauseLost {
		t.Errorf("%+v", none)
	}
	if want := "its host was lost; its newest checkpoint in the snapshot store is " + string(fails.Newest.ID); len(named.Reason) < len(want) || named.Reason[:len(want)] != want {
		t.Errorf("%q", named.Reason)
	}

	testkit.Must(t, w.servers[0].Start(t.Context())) // it was not gone
	testkit.WaitUntil(t, "the old copy is paused for good", func() bool {
		_, by := w.on("h1").Epochs(restored.ID)
		return by == 2 && w.on("h1").Sandboxes()[restored.ID] == wrenn.ObservedPaused
	})
	if got := w.on("h1").Sandboxes(); len(got) != 3 || got[fails.ID] != wrenn.ObservedRunning || w.on("h2").Sandboxes()[restored.ID] != wrenn.ObservedRunning {
		t.Errorf("the hosts have %v and %v", got, w.on("h2").Sandboxes())
	}
}

// TestHostLossIsBounded: what cannot be done is refused.
func TestHostLossIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storing())
	s, _ := w.replica(t, nil)
	for want, req := range map[string]service.CreateSandbox{
		"use fail or restore": {OnHostLoss: "pray"},
		"every 1m0s to":       {SandboxSpec: wrenn.SandboxSpec{CheckpointEvery: time.Second}},
		"to 24h0m0s":          {SandboxSpec: wrenn.SandboxSpec{CheckpointEvery: 25 * time.Hour}},
	} {
		_, err := s.CreateSandbox(t.Context(), w.caller, req)
		testkit.WantCode(t, err, wrenn.Invalid, want)
	}
	sb, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{CheckpointEvery: 5 * time.Minute}})
	if err != nil || sb.CheckpointEvery != 5*time.Minute {
		t.Errorf("%+v, %v", sb, err)
	}
}

// failedWithHost returns a sandbox that ran on h1, had a stored checkpoint and failed when
// that host was lost, and the other host.
func failedWithHost(t *testing.T, w *world, s *service.Service) *wrenn.Sandbox {
	t.Helper()
	sb := createOn(t, s, w.caller, "h1", service.CreateSandbox{})
	cp := wrenn.NewCheckpointID()
	w.on("h1").StoreCheckpoint(sb.ID, cp, checkpointKey(w.caller))
	testkit.WaitUntil(t, "the row has the checkpoint", func() bool {
		now, err := s.Sandbox(t.Context(), w.caller, sb.ID)
		return err == nil && now.Newest.ID == cp
	})
	w.servers[0].Stop()
	testkit.WaitNoError(t, "the host can be declared lost", func() error {
		_, err := s.LoseHost(t.Context(), w.caller, "h1")
		return err
	})
	return w.reaches(t, sb.ID, wrenn.Failed)
}

// TestRestoreAfterHostLoss: a sandbox that failed with its host continues on another one,
// with a higher epoch, from the checkpoint that its reason names. What the old host has is void.
func TestRestoreAfterHostLoss(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storing(), storing())
	s, _ := w.replica(t, nil)
	seeAll(t, s, 2)
	failed := failedWithHost(t, w, s)
	left, err := s.Checkpoints(t.Context(), w.caller, failed.ID)
	testkit.Must(t, err)
	if len(left.List) != 1 || left.List[0].ID != failed.Newest.ID || left.Head != failed.Newest.ID || left.List[0].Stored.At.IsZero() {
		t.Errorf("of its checkpoints are left %+v", left)
	}
	_, err = s.ResumeSandbox(t.Context(), w.caller, failed.ID)
	testkit.WantCode(t, err, wrenn.FailedPrecondition, "its host was lost", "wrenn checkpoint restore "+string(failed.ID)+" "+string(failed.Newest.ID))
	_, err = s.RestoreCheckpoint(t.Context(), w.caller, failed.ID, wrenn.NewCheckpointID())
	testkit.WantCode(t, err, wrenn.NotFound, string(failed.Newest.ID))
	_, err = s.RestoreCheckpoint(t.Context(), w.team(t, "other"), failed.ID, failed.Newest.ID)
	testkit.WantCode(t, err, wrenn.NotFound)

	restored, err := s.RestoreCheckpoint(t.Context(), w.caller, failed.ID, failed.Newest.ID)
	testkit.Must(t, err)
	if restored.State != wrenn.Running || restored.Host != "h2" || restored.Epoch <= failed.Epoch || restored.Reason != "" || restored.EndCause != wrenn.CauseUnknown {
		t.Errorf("%+v", restored)
	}
	_, err = s.Exec(t.Context(), w.caller, restored.ID, wrenn.ExecCommand{Cmd: "echo"})
	testkit.Must(t, err)
	w.checkEvents(t, restored)
	if use := w.dump(t, `SELECT used_sandboxes || ' ' || used_memory_mb FROM teams WHERE name = 'team'`); use != "1 512" {
		t.Errorf("the team uses %s", use)
	}

	testkit.Must(t, w.servers[0].Start(t.Context())) // it was not gone
	testkit.WaitUntil(t, "the old copy is paused for good", func() bool {
		_, by := w.on("h1").Epochs(restored.ID)
		return by == restored.Epoch && w.on("h1").Sandboxes()[restored.ID] == wrenn.ObservedPaused
	})
}

// TestRestoreThatCannotRun: while no host has room the sandbox is paused at the checkpoint;
// if that is gone from the store the sandbox is failed as before. Limits hold.
func TestRestoreThatCannotRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storing(), storing())
	missing := true
	w.on("h2").Before = func(_ context.Context, method, _ string) error {
		switch {
		case method == "FetchSandbox" && missing:
			return wrenn.Errorf(wrenn.NotFound, "the store does not have it")
		case method == "ResumeSandbox":
			return wrenn.Errorf(wrenn.Exhausted, "this host is full")
		}
		return nil
	}
	s, _ := w.replica(t, func(c *service.Config) { c.Limits.Sandboxes = 1 })
	seeAll(t, s, 2)
	failed := failedWithHost(t, w, s)
	_, err := s.RestoreCheckpoint(t.Context(), w.caller, failed.ID, failed.Newest.ID)
	testkit.WantCode(t, err, wrenn.FailedPrecondition, "not in the snapshot store any more")
	if now := w.reaches(t, failed.ID, wrenn.Failed); now.Reason != failed.Reason || now.EndCause != wrenn.CauseLost || now.Newest != failed.Newest {
		t.Errorf("%+v", now)
	}
	missing = false
	other := create(t, s, w.caller)
	_, err = s.RestoreCheckpoint(t.Context(), w.caller, failed.ID, failed.Newest.ID)
	testkit.WantCode(t, err, wrenn.Exhausted, "2 sandboxes of at most 1")
	w.reaches(t, failed.ID, wrenn.Failed)
	testkit.Must(t, s.DeleteSandbox(t.Context(), w.caller, other.ID))
	_, err = s.RestoreCheckpoint(t.Context(), w.caller, failed.ID, failed.Newest.ID)
	testkit.WantCode(t, err, wrenn.Exhausted, "is paused at the checkpoint")
	paused := w.reaches(t, failed.ID, wrenn.Paused)
	if paused.Host != "h2" || paused.Stored.Key != failed.Newest.Stored.Key {
		t.Errorf("%+v", paused)
	}
	w.checkEvents(t, paused)
}

// TestCopiesOfAStoredCheckpoint are made on another host when that of the sandbox is cordoned,
// cannot be reached, or was lost with the sandbox.
func TestCopiesOfAStoredCheckpoint(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storing(), storing())
	s, _ := w.replica(t, nil)
	seeAll(t, s, 2)
	parent := createOn(t, s, w.caller, "h1", service.CreateSandbox{Metadata: map[string]string{"name": "parent"}})
	checkpoint := func() wrenn.CheckpointID {
		cp, err := s.CreateCheckpoint(t.Context(), w.caller, parent.ID, "")
		testkit.Must(t, err)
		return cp.ID
	}
	stored, local := checkpoint(), checkpoint()
	w.on("h1").StoreCheckpoint(parent.ID, stored, checkpointKey(w.caller))
	testkit.WaitUntil(t, "the row has the checkpoint", func() bool {
		now, err := s.Sandbox(t.Context(), w.caller, parent.ID)
		return err == nil && now.Newest.ID == stored
	})
	fork := func(cp wrenn.CheckpointID, count int) (*service.Forked, error) {
		return s.ForkSandbox(t.Context(), w.caller, parent.ID, service.ForkSandbox{Count: count, Checkpoint: cp})
	}
	copied := func(on wrenn.HostID) {
		t.Helper()
		before := len(w.on("h2").Copies())
		made, err := fork(stored, 2)
		testkit.Must(t, err)
		for _, sb := range made.Sandboxes {
			if sb.Host != on || sb.Parent != parent.ID || sb.State != wrenn.Running || sb.Metadata["name"] != "parent" || w.on(on).Sandboxes()[sb.ID] != wrenn.ObservedRunning {
				t.Errorf("%+v", sb)
			}
			w.checkEvents(t, &sb)
			testkit.Must(t, s.DeleteSandbox(t.Context(), w.caller, sb.ID))
		}
		if asked := w.on("h2").Copies()[before:]; on == "h2" && (len(asked) != 2 || asked[0].GetParentId() != string(parent.ID) || asked[0].GetCheckpointId() != string(stored) || asked[0].GetKey() != checkpointKey(w.caller) || asked[0].GetSandbox().GetTeam() != string(w.caller.Team)) {
			t.Errorf("asked for %v", asked)
		}
	}
	copied("h1")
	_, err := s.CordonHost(t.Context(), w.caller, "h1")
	testkit.Must(t, err)
	copied("h2")
	_, err = fork(local, 1)
	testkit.WantCode(t, err, wrenn.Unavailable, "cordoned")
	_, err = fork("", 1)
	testkit.WantCode(t, err, wrenn.Unavailable, "cordoned")

	w.servers[0].Stop()
	testkit.WaitUntil(t, "the host is known not to answer", func() bool {
		_, err := fork(local, 1)
		return wrenn.CodeOf(err) == wrenn.Unavailable && strings.Contains(err.Error(), "copies can be made of its newest stored checkpoint alone, which is "+string(stored))
	})
	copied("h2")
	testkit.WaitNoError(t, "the host can be declared lost", func() error {
		_, err := s.LoseHost(t.Context(), w.caller, "h1")
		return err
	})
	w.reaches(t, parent.ID, wrenn.Failed)
	copied("h2")
	_, err = fork(local, 1)
	testkit.WantCode(t, err, wrenn.NotFound, string(stored))
	_, err = fork("", 1)
	testkit.WantCode(t, err, wrenn.FailedPrecondition, "its host was lost")
}
