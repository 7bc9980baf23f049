package service_test

import (
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

const silence = "nothing in it answers on its network"

// A host tells of what happened to its sandboxes; the row does not wait for the next
// round, which here never comes.
func TestNewsOfAHost(t *testing.T) {
	t.Parallel()
	agent := &hosttest.Agent{}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	for cause, state := range map[pb.EndCause]wrenn.ObservedState{
		pb.EndCause_END_CAUSE_GUEST_POWERED_OFF: wrenn.ObservedStopped, pb.EndCause_END_CAUSE_GUEST_PANICKED: wrenn.ObservedFailed,
	} {
		sb := create(t, s, w.caller)
		agent.EndFor(sb.ID, state, cause, "it ended")
		agent.Announce()
		row := w.reaches(t, sb.ID, map[wrenn.ObservedState]wrenn.State{wrenn.ObservedStopped: wrenn.Stopped, wrenn.ObservedFailed: wrenn.Failed}[state])
		if want := map[pb.EndCause]wrenn.EndCause{
			pb.EndCause_END_CAUSE_GUEST_POWERED_OFF: wrenn.CausePoweredOff, pb.EndCause_END_CAUSE_GUEST_PANICKED: wrenn.CausePanicked,
		}[cause]; row.EndCause != want || row.Reason != "it ended" {
			t.Errorf("it ended for %q (%s), want %q", row.EndCause, row.Reason, want)
		}
		w.checkEvents(t, row)
	}
}

func TestAnUnresponsiveSandbox(t *testing.T) {
	t.Parallel()
	agent := &hosttest.Agent{}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	sb := create(t, s, w.caller)
	since := time.Now().Add(-time.Minute).UTC().Truncate(time.Millisecond)
	shown := func(want bool) *wrenn.Sandbox {
		t.Helper()
		var row *wrenn.Sandbox
		testkit.WaitUntil(t, "the row follows", func() bool {
			var err error
			row, err = s.Sandbox(t.Context(), w.caller, sb.ID)
			testkit.Must(t, err)
			return (row.Unresponsive != nil) == want
		})
		return row
	}
	agent.Silence(sb.ID, since, silence)
	agent.Announce()
	if row := shown(true); row.State != wrenn.Running || !row.Unresponsive.Since.Equal(since) || row.Unresponsive.Reason != silence {
		t.Errorf("the row is %+v, %+v", row, row.Unresponsive)
	}
	_, execErr := s.Exec(t.Context(), w.caller, sb.ID, wrenn.ExecCommand{Cmd: "true"})
	_, pauseErr := s.PauseSandbox(t.Context(), w.caller, sb.ID)
	for _, err := range []error{execErr, pauseErr} {
		testkit.WantCode(t, err, wrenn.NotResponding, silence, "force")
	}
	agent.Silence(sb.ID, time.Time{}, "")
	agent.Announce()
	shown(false)

	agent.Silence(sb.ID, since, silence)
	agent.Announce()
	shown(true)
	_, err := s.PauseSandboxBy(t.Context(), w.caller, sb.ID, wrenn.PauseOptions{Guest: wrenn.PauseForced})
	testkit.Must(t, err)
	if row := shown(false); row.State != wrenn.Paused {
		t.Errorf("it is %s", row.State)
	}
	testkit.Must(t, s.DeleteSandbox(t.Context(), w.caller, sb.ID))
	row := w.reaches(t, sb.ID, wrenn.Stopped)
	if row.EndCause != wrenn.CauseUser {
		t.Errorf("it ended for %q", row.EndCause)
	}
	var told []string
	events, err := w.store.Events(t.Context(), sb.ID)
	testkit.Must(t, err)
	for _, e := range events {
		if e.From == e.To {
			told = append(told, e.Reason)
		}
	}
	if len(told) != 3 || told[0] != "does not answer: "+silence || told[1] != "answers again" {
		t.Errorf("events: %q", told)
	}
}
