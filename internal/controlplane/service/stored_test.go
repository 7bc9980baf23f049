package service_test

import (
	"context"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

// storedKey is where a host stores a sandbox of the caller's team.
func storedKey(c service.Caller) string { return "teams/" + string(c.Team) + "/snapshots/s1.x" }

// pauseStored makes a sandbox that is paused and stored, and whose row says so.
func pauseStored(t *testing.T, w *world, s *service.Service, agents map[wrenn.HostID]*hosttest.Agent) *wrenn.Sandbox {
	t.Helper()
	sb := create(t, s, w.caller)
	_, err := s.PauseSandbox(t.Context(), w.caller, sb.ID)
	testkit.Must(t, err)
	agents[sb.Host].Store(sb.ID, storedKey(w.caller))
	agents[sb.Host].Announce()
	testkit.WaitUntil(t, "the row says that it is stored", func() bool {
		sb, err = s.Sandbox(t.Context(), w.caller, sb.ID)
		return err == nil && sb.Stored.Key != ""
	})
	if sb.Stored.Key != storedKey(w.caller) || sb.Stored.At.IsZero() {
		t.Errorf("stored: %+v", sb.Stored)
	}
	return sb
}

// TestResumeWithoutItsHost: a stored sandbox whose host is gone resumes on another one;
// one that is not stored says why it does not.
func TestResumeWithoutItsHost(t *testing.T) {
	t.Parallel()
	agents := map[wrenn.HostID]*hosttest.Agent{"h1": {HasStore: true}, "h2": {HasStore: true}}
	w := newWorld(t, agents["h1"], agents["h2"])
	s, _ := w.replica(t, nil)
	sb := pauseStored(t, w, s, agents)
	var other *wrenn.Sandbox // on the same host, not stored
	for other == nil || other.Host != sb.Host {
		other = create(t, s, w.caller)
	}
	_, err := s.PauseSandbox(t.Context(), w.caller, other.ID)
	testkit.Must(t, err)
	w.servers[sb.Host[1]-'1'].Stop()
	testkit.WaitUntil(t, "the host is known to be gone", func() bool {
		_, err = s.ResumeSandbox(t.Context(), w.caller, other.ID)
		e, ok := err.(*wrenn.Error) //nolint:errorlint // as the API gets it
		return ok && e.Code == wrenn.Unavailable && e.Message == "sandbox "+string(other.ID)+" is on host "+string(sb.Host)+" alone, which cannot be reached; it was not stored elsewhere: try again when the host is back"
	})
	resumed, err := s.ResumeSandbox(t.Context(), w.caller, sb.ID)
	testkit.Must(t, err)
	if resumed.Host == sb.Host || resumed.State != wrenn.Running || resumed.Stored != (wrenn.Stored{}) {
		t.Errorf("%+v", resumed)
	}
	if got := agents[resumed.Host].Sandboxes()[sb.ID]; got != wrenn.ObservedRunning {
		t.Errorf("the other host has it %q", got)
	}
	w.checkEvents(t, resumed)
}

// TestMoveStored: the operator's move needs no copied files.
func TestMoveStored(t *testing.T) {
	t.Parallel()
	agents := map[wrenn.HostID]*hosttest.Agent{"h1": {HasStore: true}, "h2": {HasStore: true}}
	w := newWorld(t, agents["h1"], agents["h2"])
	s, _ := w.replica(t, nil)
	sb := pauseStored(t, w, s, agents)
	to := map[wrenn.HostID]wrenn.HostID{"h1": "h2", "h2": "h1"}[sb.Host]
	moved, err := s.MoveSandbox(t.Context(), sb.ID, to)
	if err != nil || moved.Host != to || moved.Stored.Key != sb.Stored.Key || agents[to].Sandboxes()[sb.ID] != wrenn.ObservedPaused {
		t.Errorf("%+v, %v", moved, err)
	}
}

// TestDurablePause waits until the sandbox is stored, and does not wait for what never comes.
func TestDurablePause(t *testing.T) {
	t.Parallel()
	agent := &hosttest.Agent{HasStore: true}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	sb := create(t, s, w.caller)
	type result struct {
		sb  *wrenn.Sandbox
		err error
	}
	done := make(chan result, 1)
	go func() {
		sb, err := s.PauseSandboxBy(t.Context(), w.caller, sb.ID, wrenn.PauseOptions{Durable: true})
		done <- result{sb, err}
	}()
	w.reaches(t, sb.ID, wrenn.Paused)
	agent.Store(sb.ID, storedKey(service.Caller{Team: "other"})) // a lie, which nothing follows
	agent.Announce()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(wrenn.Errorf(wrenn.Canceled, "gone"))
	_, err := s.PauseSandboxBy(ctx, w.caller, sb.ID, wrenn.PauseOptions{Durable: true})
	if err == nil {
		t.Error("it is stored elsewhere")
	}
	agent.Store(sb.ID, storedKey(w.caller))
	agent.Announce()
	r := <-done
	if r.err != nil || r.sb.Stored.Key != storedKey(w.caller) {
		t.Errorf("%+v, %v", r.sb, r.err)
	}
}

func TestDurablePauseWithoutStore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	sb := create(t, s, w.caller)
	_, err := s.PauseSandboxBy(t.Context(), w.caller, sb.ID, wrenn.PauseOptions{Durable: true})
	testkit.WantCode(t, err, wrenn.FailedPrecondition, "is paused", "store.url")
	w.reaches(t, sb.ID, wrenn.Paused)
}

// TestMoveOfWhatIsNotStored: while a paused sandbox is not stored, another host gets it from
// its own one if that answers. If that breaks off the sandbox is paused where it was.
func TestMoveOfWhatIsNotStored(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storing(), storing())
	breaks := true
	w.on("h1").Before = func(_ context.Context, method, _ string) error {
		switch {
		case method == "ExportSandbox" && breaks:
			return wrenn.Errorf(wrenn.Unavailable, "the host was killed")
		case method == "ResumeSandbox":
			return wrenn.Errorf(wrenn.Exhausted, "this host is full")
		}
		return nil
	}
	w.on("h1").Stores = false
	s, _ := w.replica(t, nil)
	seeAll(t, s, 2)
	sb := createOn(t, s, w.caller, "h1", service.CreateSandbox{})
	_, err := s.PauseSandbox(t.Context(), w.caller, sb.ID)
	testkit.Must(t, err)
	_, err = s.ResumeSandbox(t.Context(), w.caller, sb.ID)
	testkit.WantCode(t, err, wrenn.Exhausted, "this host is full")
	if now := w.reaches(t, sb.ID, wrenn.Paused); now.Host != "h1" || w.on("h1").Sandboxes()[sb.ID] != wrenn.ObservedPaused || len(w.on("h2").Sandboxes()) != 0 {
		t.Errorf("%+v, the other host has %v", now, w.on("h2").Sandboxes())
	}
	breaks = false
	resumed, err := s.ResumeSandbox(t.Context(), w.caller, sb.ID)
	testkit.Must(t, err)
	if resumed.Host != "h2" || resumed.Epoch != 2 || resumed.State != wrenn.Running || w.on("h2").Sandboxes()[sb.ID] != wrenn.ObservedRunning || len(w.on("h1").Sandboxes()) != 0 {
		t.Errorf("%+v, the first host has %v", resumed, w.on("h1").Sandboxes())
	}
	w.checkEvents(t, resumed)
}
