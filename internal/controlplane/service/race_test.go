package service_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

// TestReplicasRace has two control planes change the same sandboxes at once, with a
// host that loses answers and a reconciler that always runs. At the end the events of
// each row must be complete and agree with the host.
func TestReplicasRace(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	lossy := &hosttest.Agent{After: func(_ context.Context, method, _ string) error {
		switch method {
		case "CreateSandbox", "PauseSandbox", "ResumeSandbox", "DestroySandbox":
			if calls.Add(1)%7 == 0 {
				return wrenn.Errorf(wrenn.Unavailable, "the answer is lost")
			}
		}
		return nil
	}}
	w := newWorld(t, lossy, &hosttest.Agent{})
	often := func(c *service.Config) { c.ReconcileEvery = 10 * time.Millisecond }
	one, _ := w.replica(t, often)
	two, _ := w.replica(t, often)
	replicas := []*service.Service{one, two}

	const boxes, visitors, visits = 8, 6, 12
	var all sync.Map
	var wg sync.WaitGroup
	for i := range boxes {
		sb, err := replicas[i%2].CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{AutoResume: i%4 < 2}})
		if err != nil {
			continue // an answer that was lost
		}
		all.Store(sb.ID, true)
		for v := range visitors {
			wg.Go(func() { visit(t, replicas[v%2], w.caller, sb.ID, visits) })
		}
	}
	wg.Wait()
	all.Range(func(id, _ any) bool {
		if err := replicas[0].DeleteSandbox(t.Context(), w.caller, id.(wrenn.SandboxID)); err != nil {
			t.Errorf("the last delete: %v", err)
		}
		return true
	})
	w.sql(t, "UPDATE sandboxes SET updated_at = updated_at - interval '1 hour'") // no request is in progress any more
	testkit.WaitUntil(t, "no sandbox is left on a host", func() bool {
		return len(w.agents[0].Sandboxes())+len(w.agents[1].Sandboxes()) == 0
	})
	page, _, err := one.ListSandboxes(t.Context(), w.caller, service.ListSandboxes{Limit: 500})
	if err != nil {
		t.Fatal(err)
	}
	for i := range page {
		w.reachesEnd(t, page[i].ID)
	}
}

func (w *world) reachesEnd(t *testing.T, id wrenn.SandboxID) {
	t.Helper()
	var sb *wrenn.Sandbox
	testkit.WaitUntil(t, string(id)+" has ended", func() bool {
		var err error
		sb, err = w.store.Sandbox(t.Context(), id)
		return err == nil && sb.State.Ended()
	})
	w.checkEvents(t, sb)
}

// visit calls operations at random. It accepts errors that are meant for users.
func visit(t *testing.T, s *service.Service, c service.Caller, id wrenn.SandboxID, times int) {
	t.Helper()
	ctx := t.Context()
	for range times {
		var err error
		switch n := rand.IntN(20); {
		case n < 6:
			_, err = s.PauseSandbox(ctx, c, id)
		case n < 12:
			_, err = s.ResumeSandbox(ctx, c, id)
		case n < 15:
			_, err = s.SetTimeout(ctx, c, id, time.Duration(1+rand.IntN(100))*time.Second)
		case n < 19:
			_, err = s.Exec(ctx, c, id, wrenn.ExecCommand{Cmd: "echo"})
		default:
			err = s.DeleteSandbox(ctx, c, id)
		}
		switch wrenn.CodeOf(err) {
		case "", wrenn.FailedPrecondition, wrenn.Unavailable, wrenn.NotFound:
		default:
			t.Errorf("%v", err)
		}
	}
}

// TestLimitsHoldBetweenReplicas has many more requests than the limit allows.
func TestLimitsHoldBetweenReplicas(t *testing.T) {
	t.Parallel()
	const places, takers = 5, 20
	w := newWorld(t, &hosttest.Agent{})
	limit := func(c *service.Config) { c.Limits.Sandboxes = places }
	one, _ := w.replica(t, limit)
	two, _ := w.replica(t, limit)
	var made, refused atomic.Int64
	var wg sync.WaitGroup
	for i := range takers {
		wg.Go(func() {
			_, err := []*service.Service{one, two}[i%2].CreateSandbox(t.Context(), w.caller, service.CreateSandbox{})
			switch wrenn.CodeOf(err) {
			case "":
				made.Add(1)
			case wrenn.Exhausted:
				refused.Add(1)
			default:
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	if made.Load() != places || refused.Load() != takers-places {
		t.Errorf("%d made and %d refused, want %d and %d", made.Load(), refused.Load(), places, takers-places)
	}
	// A deleted sandbox makes room for another, and memory has its own limit.
	page, _, err := one.ListSandboxes(t.Context(), w.caller, service.ListSandboxes{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := one.DeleteSandbox(t.Context(), w.caller, page[0].ID); err != nil {
		t.Fatal(err)
	}
	w.sql(t, "UPDATE teams SET max_memory_mb = 2500")
	_, err = one.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{})
	testkit.WantCode(t, err, wrenn.Exhausted)
	if _, err = two.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{Size: wrenn.Size{MemoryMiB: 400}}}); err != nil {
		t.Error(err)
	}
	w.sql(t, "UPDATE teams SET max_sandboxes = 0")
	_, err = two.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{Size: wrenn.Size{MemoryMiB: 64}}})
	testkit.WantCode(t, err, wrenn.Exhausted)
}

func TestConflictIsAFailedPrecondition(t *testing.T) {
	t.Parallel()
	const askers = 8
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	id := create(t, s, w.caller).ID
	var paused atomic.Int64
	var wg sync.WaitGroup
	for range askers {
		wg.Go(func() {
			_, err := s.PauseSandbox(t.Context(), w.caller, id)
			if err == nil {
				paused.Add(1)
			} else if wrenn.CodeOf(err) != wrenn.FailedPrecondition {
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	events, err := w.store.Events(t.Context(), id)
	if err != nil || len(events) != 4 || paused.Load() == 0 {
		t.Errorf("%d of %d pauses won, %d events, %v; want one pause, which those who came later found done", paused.Load(), askers, len(events), err)
	}
}
