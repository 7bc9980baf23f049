package service_test

import (
	"context"
	"errors"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

// storing is a host that stores what is paused.
func storing() *hosttest.Agent { return &hosttest.Agent{HasStore: true, Stores: true} }

// createOn makes sandboxes until one is on the host, and returns that.
func createOn(t *testing.T, s *service.Service, c service.Caller, host wrenn.HostID, req service.CreateSandbox) *wrenn.Sandbox {
	t.Helper()
	for range 20 {
		sb, err := s.CreateSandbox(t.Context(), c, req)
		testkit.Must(t, err)
		if sb.Host == host {
			return sb
		}
		testkit.Must(t, s.DeleteSandbox(t.Context(), c, sb.ID))
	}
	t.Fatalf("no sandbox was placed on %s", host)
	return nil
}

// drained waits until a host that is drained has that many sandboxes.
func drained(t *testing.T, s *service.Service, host wrenn.HostID, left int) *service.HostState {
	t.Helper()
	var state *service.HostState
	testkit.WaitUntil(t, "the host is drained", func() bool {
		h, err := s.Host(t.Context(), service.Caller{}, host)
		state = h
		return err == nil && h.Drain != nil && h.Drain.Left == left && h.Drain.Moving == 0
	})
	return state
}

// TestDrain empties a host: running and paused sandboxes are on another one, as they
// were, and nothing is left of them.
func TestDrain(t *testing.T) {
	t.Parallel()
	h1 := storing()
	w := newWorld(t, h1, storing(), storing())
	s, _ := w.replica(t, nil)
	seeAll(t, s, 3)
	runs := createOn(t, s, w.caller, "h1", service.CreateSandbox{})
	rests := createOn(t, s, w.caller, "h1", service.CreateSandbox{})
	_, err := s.PauseSandbox(t.Context(), w.caller, rests.ID)
	testkit.Must(t, err)
	_, err = s.CordonHost(t.Context(), w.caller, "h3") // gets none of them
	testkit.Must(t, err)
	for range 2 {
		h, err := s.DrainHost(t.Context(), w.caller, "h1")
		if err != nil || h.Status != wrenn.HostDraining || h.Drain == nil {
			t.Fatalf("%+v, %v", h, err)
		}
	}
	if h := drained(t, s, "h1", 0); len(h.Drain.Stuck) != 0 {
		t.Errorf("stuck: %+v", h.Drain.Stuck)
	}
	moved := w.reaches(t, runs.ID, wrenn.Running)
	still := w.reaches(t, rests.ID, wrenn.Paused)
	if moved.Host != "h2" || moved.Moving || still.Host != "h2" || still.Stored.Key == "" {
		t.Errorf("moved: %+v, %+v", moved, still)
	}
	testkit.WaitUntil(t, "the host has none of them", func() bool { return len(h1.Sandboxes()) == 0 })
	w.checkEvents(t, moved)
	if got := w.agents[1].Sandboxes(); got[runs.ID] != wrenn.ObservedRunning || got[rests.ID] != wrenn.ObservedPaused {
		t.Errorf("the other host has %v", got)
	}
	p, err := s.ExplainPlacement(t.Context(), w.caller, runs.ID)
	if err != nil || len(p.Decisions) != 2 || p.Decisions[1].Reason != "moved from host h1" {
		t.Errorf("explained: %+v, %v", p, err)
	}
	_, err = s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{})
	testkit.Must(t, err)
	if h, err := s.UncordonHost(t.Context(), w.caller, "h1"); err != nil || h.Status != wrenn.HostActive || h.Drain != nil {
		t.Errorf("uncordoned: %+v, %v", h, err)
	}
}

// TestRequestsWaitForMoves: a request for a sandbox that is moved waits until it runs
// again, also where use does not resume sandboxes, and nothing wakes it on its old host.
func TestRequestsWaitForMoves(t *testing.T) {
	t.Parallel()
	h1, h2 := storing(), storing()
	fetching, fetch := make(chan struct{}), make(chan struct{})
	h2.Before = func(_ context.Context, method, _ string) error {
		if method == "FetchSandbox" {
			close(fetching)
			<-fetch
		}
		return nil
	}
	w := newWorld(t, h1, h2)
	s, _ := w.replica(t, nil)
	seeAll(t, s, 2)
	sb := createOn(t, s, w.caller, "h1", service.CreateSandbox{})
	_, err := s.DrainHost(t.Context(), w.caller, "h1")
	testkit.Must(t, err)
	<-fetching
	if now := w.reaches(t, sb.ID, wrenn.Paused); !now.Moving {
		t.Errorf("it is not moved: %+v", now)
	}
	done := make(chan error, 1)
	go func() {
		_, err := s.Exec(t.Context(), w.caller, sb.ID, wrenn.ExecCommand{Cmd: "echo", Args: []string{"hi"}})
		done <- err
	}()
	if got := h1.Sandboxes()[sb.ID]; got != wrenn.ObservedPaused {
		t.Errorf("its old host has it %s", got)
	}
	close(fetch)
	testkit.Must(t, <-done)
	if now := w.reaches(t, sb.ID, wrenn.Running); now.Host != "h2" {
		t.Errorf("it runs on %s", now.Host)
	}
	drained(t, s, "h1", 0)
}

// TestDrainKeepsWhatItCannotMove: a sandbox that no host takes runs where it was, with
// the reason, and a drain that is ended lets everything run.
func TestDrainKeepsWhatItCannotMove(t *testing.T) {
	t.Parallel()
	h1, h2 := storing(), storing()
	h2.Before = func(_ context.Context, method, _ string) error {
		if method == "FetchSandbox" {
			return wrenn.Errorf(wrenn.FailedPrecondition, "the snapshot does not fit this host")
		}
		return nil
	}
	h1.Labels = map[string]string{"gpu": "a10"}
	w := newWorld(t, h1, h2)
	s, _ := w.replica(t, nil)
	seeAll(t, s, 2)
	gpu := createOn(t, s, w.caller, "h1", service.CreateSandbox{Requires: h1.Labels})
	refused := createOn(t, s, w.caller, "h1", service.CreateSandbox{})
	_, err := s.DrainHost(t.Context(), w.caller, "h1")
	testkit.Must(t, err)
	why := map[wrenn.SandboxID]string{}
	testkit.WaitUntil(t, "both have reasons", func() bool {
		h, err := s.Host(t.Context(), w.caller, "h1")
		testkit.Must(t, err)
		for _, sb := range h.Drain.Stuck {
			why[sb.ID] = sb.Reason
		}
		return len(why) == 2
	})
	if why[refused.ID] != "the snapshot does not fit this host" || why[gpu.ID] == "" {
		t.Errorf("reasons: %v", why)
	}
	for _, id := range []wrenn.SandboxID{gpu.ID, refused.ID} {
		if now := w.reaches(t, id, wrenn.Running); now.Host != "h1" || now.Moving {
			t.Errorf("%+v", now)
		}
	}
	for _, p := range h1.Pauses() {
		if p.GetSandboxId() == string(gpu.ID) {
			t.Error("a sandbox that fits no other host was paused for nothing")
		}
	}
	_, err = s.UncordonHost(t.Context(), w.caller, "h1")
	testkit.Must(t, err)
}

func TestDrainNeedsAStore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{}, storing())
	s, _ := w.replica(t, nil)
	seeAll(t, s, 2)
	createOn(t, s, w.caller, "h1", service.CreateSandbox{})
	_, err := s.DrainHost(t.Context(), w.caller, "h1")
	testkit.WantCode(t, err, wrenn.FailedPrecondition, "h1 has no snapshot store", "set url of [store]")
	createOn(t, s, w.caller, "h2", service.CreateSandbox{})
	_, err = s.DrainHost(t.Context(), w.caller, "h2")
	testkit.WantCode(t, err, wrenn.FailedPrecondition, "no other host that takes sandboxes has a snapshot store")
	_, err = s.DrainHost(t.Context(), w.caller, "h9")
	testkit.WantCode(t, err, wrenn.NotFound)
}

// TestDrainSurvivesItsReplica: the next replica continues what one has begun, at the
// worst moment: the sandbox is moved and does not run yet.
func TestDrainSurvivesItsReplica(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storing(), storing())
	s, stop := w.replica(t, nil)
	seeAll(t, s, 2)
	one := createOn(t, s, w.caller, "h1", service.CreateSandbox{})
	two := createOn(t, s, w.caller, "h1", service.CreateSandbox{})
	for _, id := range []wrenn.SandboxID{one.ID, two.ID} {
		_, err := s.PauseSandbox(t.Context(), w.caller, id)
		testkit.Must(t, err)
	}
	stop()
	w.sql(t, `UPDATE sandboxes SET moving = true WHERE id IN ($1, $2)`, string(one.ID), string(two.ID))
	w.sql(t, `UPDATE hosts SET status = 'draining' WHERE id = 'h1'`)
	s, _ = w.replica(t, nil)
	drained(t, s, "h1", 0)
	for _, id := range []wrenn.SandboxID{one.ID, two.ID} {
		if now := w.reaches(t, id, wrenn.Running); now.Host != "h2" {
			t.Errorf("%+v", now)
		}
	}
	// A drain that was ended meanwhile: what it has paused runs again where it is.
	w.sql(t, `UPDATE hosts SET status = 'active'`)
	three := createOn(t, s, w.caller, "h2", service.CreateSandbox{})
	_, err := s.PauseSandbox(t.Context(), w.caller, three.ID)
	testkit.Must(t, err)
	w.sql(t, `UPDATE sandboxes SET moving = true WHERE id = $1`, string(three.ID))
	if now := w.reaches(t, three.ID, wrenn.Running); now.Host != "h2" {
		t.Errorf("%+v", now)
	}
}

// TestResumeElsewhere: a stored sandbox whose host is full, cordoned, lost, or has lost
// it, resumes on another one.
func TestResumeElsewhere(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*testing.T, *world, *service.Service, *wrenn.Sandbox){
		"full": func(*testing.T, *world, *service.Service, *wrenn.Sandbox) {},
		"cordoned": func(t *testing.T, w *world, s *service.Service, _ *wrenn.Sandbox) {
			t.Helper()
			_, err := s.CordonHost(t.Context(), w.caller, "h1")
			testkit.Must(t, err)
		},
		"lost the sandbox": func(_ *testing.T, w *world, _ *service.Service, sb *wrenn.Sandbox) { w.agents[0].Lose(sb.ID) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hooked := storing()
			hooked.Before = func(_ context.Context, method, _ string) error {
				if name == "full" && method == "ResumeSandbox" {
					return wrenn.Errorf(wrenn.Exhausted, "this host is full")
				}
				return nil
			}
			w := newWorld(t, hooked, storing())
			s, _ := w.replica(t, nil)
			seeAll(t, s, 2)
			sb := createOn(t, s, w.caller, "h1", service.CreateSandbox{})
			_, err := s.PauseSandboxBy(t.Context(), w.caller, sb.ID, wrenn.PauseOptions{Durable: true})
			testkit.Must(t, err)
			spoil(t, w, s, sb)
			now, err := s.ResumeSandbox(t.Context(), w.caller, sb.ID)
			if err != nil || now.State != wrenn.Running || name != "lost the sandbox" && now.Host != "h2" {
				t.Fatalf("%+v, %v", now, err)
			}
			w.checkEvents(t, now)
		})
	}
}

// TestStoredOnALostHost: paused and stored sandboxes of a host that is declared lost resume on
// another one; the copy that a host has which comes back is removed if it is the same.
func TestStoredOnALostHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storing(), storing())
	s, _ := w.replica(t, nil)
	seeAll(t, s, 2)
	stored := createOn(t, s, w.caller, "h1", service.CreateSandbox{})
	_, err := s.PauseSandboxBy(t.Context(), w.caller, stored.ID, wrenn.PauseOptions{Durable: true})
	testkit.Must(t, err)
	runs := createOn(t, s, w.caller, "h1", service.CreateSandbox{})
	w.servers[0].Stop()
	testkit.WaitUntil(t, "the host can be declared lost", func() bool {
		_, err = s.LoseHost(t.Context(), w.caller, "h1")
		return err == nil
	})
	w.reaches(t, runs.ID, wrenn.Failed)
	now, err := s.ResumeSandbox(t.Context(), w.caller, stored.ID)
	if err != nil || now.Host != "h2" || now.State != wrenn.Running {
		t.Fatalf("%+v, %v", now, err)
	}
}

// TestVoidCopy: what a host has of a sandbox that another host fetched is removed when it
// comes back, and nothing else.
func TestVoidCopy(t *testing.T) {
	t.Parallel()
	h1 := storing()
	w := newWorld(t, h1, storing())
	s, _ := w.replica(t, nil)
	seeAll(t, s, 2)
	var boxes []*wrenn.Sandbox
	for range 2 {
		sb := createOn(t, s, w.caller, "h1", service.CreateSandbox{})
		sb, err := s.PauseSandboxBy(t.Context(), w.caller, sb.ID, wrenn.PauseOptions{Durable: true})
		testkit.Must(t, err)
		boxes = append(boxes, sb)
	}
	same, newer := boxes[0], boxes[1]
	for _, sb := range boxes { // as if h1 could not be reached
		_, err := s.MoveSandbox(t.Context(), sb.ID, "h2")
		testkit.Must(t, err)
	}
	h1.Store(newer.ID, storedKey(w.caller)) // it ran there since
	h1.Announce()
	testkit.WaitUntil(t, "the copy that is the same is removed", func() bool { _, has := h1.Sandboxes()[same.ID]; return !has })
	testkit.WaitNoError(t, "the other one is reported", func() error {
		_, unknown, err := s.Hosts(t.Context())
		if err == nil && (len(unknown) != 1 || unknown[0].ID != newer.ID) {
			err = errors.New("not yet")
		}
		return err
	})
	if h1.Sandboxes()[newer.ID] != wrenn.ObservedPaused {
		t.Errorf("the host has %v", h1.Sandboxes())
	}
}
