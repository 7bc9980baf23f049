package service_test

import (
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/testkit"
)

func TestPausedSandboxMovesToAnotherHost(t *testing.T) {
	t.Parallel()
	agents := map[wrenn.HostID]*hosttest.Agent{"h1": {}, "h2": {}}
	w := newWorld(t, agents["h1"], agents["h2"])
	s, _ := w.replica(t, nil)
	sb := create(t, s, w.caller)
	from, to := sb.Host, wrenn.HostID("h1")
	if from == to {
		to = "h2"
	}
	_, err := s.MoveSandbox(t.Context(), sb.ID, to)
	testkit.WantCode(t, err, wrenn.FailedPrecondition) // it runs
	if _, err := s.PauseSandbox(t.Context(), w.caller, sb.ID); err != nil {
		t.Fatal(err)
	}
	_, err = s.MoveSandbox(t.Context(), sb.ID, to)
	testkit.WantCode(t, err, wrenn.FailedPrecondition) // its files are not there
	_, err = s.MoveSandbox(t.Context(), sb.ID, "h9")
	testkit.WantCode(t, err, wrenn.NotFound)

	agents[to].Put(sb.ID, wrenn.ObservedPaused) // a copy: from still has it
	for range 2 {
		if moved, err := s.MoveSandbox(t.Context(), sb.ID, to); err != nil || moved.Host != to || moved.State != wrenn.Paused {
			t.Fatalf("moved: %+v, %v", moved, err)
		}
	}
	resumed, err := s.ResumeSandbox(t.Context(), w.caller, sb.ID)
	if err != nil || resumed.Host != to || agents[to].Sandboxes()[sb.ID] != wrenn.ObservedRunning {
		t.Errorf("resumed: %+v, %v", resumed, err)
	}
	if got := agents[from].Sandboxes()[sb.ID]; got != wrenn.ObservedPaused {
		t.Errorf("the copy on the old host is %q", got)
	}
	w.checkEvents(t, resumed)
}
