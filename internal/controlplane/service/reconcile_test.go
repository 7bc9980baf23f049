package service_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/testkit"
)

func TestReconciler(t *testing.T) {
	t.Parallel()
	agent := &hosttest.Agent{}
	w := newWorld(t, agent)
	s, _ := w.replica(t, func(c *service.Config) { c.ReconcileEvery = 10 * time.Millisecond })

	t.Run("its time was up", func(t *testing.T) {
		sb := create(t, s, w.caller)
		agent.End(sb.ID, wrenn.ObservedStopped, "it was not used for 300 s")
		got := w.reaches(t, sb.ID, wrenn.Stopped)
		if got.Reason != "it was not used for 300 s" {
			t.Errorf("reason %q", got.Reason)
		}
		testkit.WaitUntil(t, "the host may forget it", func() bool { _, there := agent.Sandboxes()[sb.ID]; return !there })
		w.checkEvents(t, got)
	})
	t.Run("its time was up, and it is paused", func(t *testing.T) {
		sb := create(t, s, w.caller)
		agent.Put(sb.ID, wrenn.ObservedPaused)
		w.reaches(t, sb.ID, wrenn.Paused)
		agent.Put(sb.ID, wrenn.ObservedRunning) // its use resumed it
		w.checkEvents(t, w.reaches(t, sb.ID, wrenn.Running))
	})
	t.Run("it broke", func(t *testing.T) {
		sb := create(t, s, w.caller)
		agent.End(sb.ID, wrenn.ObservedFailed, "the guest panicked")
		if got := w.reaches(t, sb.ID, wrenn.Failed); got.Reason != "the guest panicked" {
			t.Errorf("reason %q", got.Reason)
		}
	})
	t.Run("its host lost it", func(t *testing.T) {
		sb := create(t, s, w.caller)
		agent.Lose(sb.ID)
		w.reaches(t, sb.ID, wrenn.Failed)
	})
	t.Run("stuck between two states", func(t *testing.T) {
		for _, c := range []struct {
			row  wrenn.State
			seen wrenn.ObservedState
			want wrenn.State
		}{
			{wrenn.Pending, "", wrenn.Failed}, {wrenn.Starting, "", wrenn.Failed}, {wrenn.Starting, wrenn.ObservedRunning, wrenn.Running},
			{wrenn.Stopping, wrenn.ObservedRunning, wrenn.Stopped}, {wrenn.Stopping, "", wrenn.Stopped},
			{wrenn.Pausing, wrenn.ObservedRunning, wrenn.Running}, {wrenn.Resuming, wrenn.ObservedRunning, wrenn.Running},
			{wrenn.Pausing, wrenn.ObservedPaused, wrenn.Paused},
		} {
			t.Run(fmt.Sprintf("%s/%s", c.row, c.seen), func(t *testing.T) {
				id := wrenn.NewSandboxID()
				if c.seen != "" {
					agent.Put(id, c.seen)
				}
				w.sql(t, `INSERT INTO sandboxes (id, team_id, template, state, vcpus, memory_mb, timeout_sec, host_id, updated_at)
					VALUES ($1, $2, 'base', $3, 1, 512, 300, $4, now() - interval '1 hour')`,
					string(id), string(w.caller.Team), string(c.row), map[bool]string{true: "", false: "h1"}[c.row == wrenn.Pending])
				w.reaches(t, id, c.want)
			})
		}
	})
	t.Run("a sandbox without a row", func(t *testing.T) {
		id := wrenn.NewSandboxID()
		agent.Put(id, wrenn.ObservedRunning)
		testkit.WaitUntil(t, "it is reported", func() bool { return w.dump(t, "SELECT count(*)::text FROM unknown_sandboxes") == "1" })
		testkit.WaitUntil(t, "it is counted", func() bool { return metric(t, s, "wrenn_host_unknown_sandboxes") == 1 })
		agent.Put(id, wrenn.ObservedQuarantined)
		testkit.WaitUntil(t, "the operator is told of the quarantine", func() bool {
			hosts, unknown, err := s.Hosts(t.Context())
			if err != nil || len(hosts) != 1 || hosts[0].SeenAt.IsZero() || len(unknown) != 1 || unknown[0].ID != id || unknown[0].Host != "h1" {
				t.Fatalf("hosts: %+v, unknown: %+v, %v", hosts, unknown, err)
			}
			return unknown[0].State == wrenn.ObservedQuarantined
		})
		create(t, s, w.caller) // other sandboxes are not affected
		if _, there := agent.Sandboxes()[id]; !there {
			t.Error("it was destroyed")
		}
		agent.Lose(id)
		testkit.WaitUntil(t, "the report is gone with it", func() bool { return w.dump(t, "SELECT count(*)::text FROM unknown_sandboxes") == "0" })
		testkit.WaitUntil(t, "and so is the number", func() bool { return metric(t, s, "wrenn_host_unknown_sandboxes") == 0 })
	})
	t.Run("a host that is away", func(t *testing.T) {
		if got := metric(t, s, "wrenn_host_up"); got != 1 {
			t.Errorf("wrenn_host_up is %v while it answers", got)
		}
		w.servers[0].Stop()
		testkit.WaitUntil(t, "it is down", func() bool { return metric(t, s, "wrenn_host_up") == 0 })
		if err := w.servers[0].Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		testkit.WaitUntil(t, "it is up", func() bool { return metric(t, s, "wrenn_host_up") == 1 })
	})
}

// metric returns the value of a gauge of the only host, or of a metric without labels, or
// -1 without one.
func metric(t *testing.T, s *service.Service, name string) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(s.Collector())
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			m := family.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return -1
}

// TestReconcileAtOnce has rounds so rare that only the host's return can cause one.
func TestReconcileAtOnce(t *testing.T) {
	t.Parallel()
	agent := &hosttest.Agent{}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	t.Run("when the agent is a new one", func(t *testing.T) {
		sb := create(t, s, w.caller)
		agent.End(sb.ID, wrenn.ObservedStopped, "time was up")
		agent.Restart()
		w.reaches(t, sb.ID, wrenn.Stopped)
	})
	t.Run("when a host is back", func(t *testing.T) {
		sb := create(t, s, w.caller)
		agent.End(sb.ID, wrenn.ObservedStopped, "time was up")
		w.servers[0].Stop()
		testkit.WaitUntil(t, "the host is down", func() bool {
			_, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{})
			return err != nil && err.Error() == "no host can be reached; try again in a moment"
		})
		if err := w.servers[0].Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.reaches(t, sb.ID, wrenn.Stopped)
	})
}

// TestAbandonedRows has rounds so rare that only the search for abandoned rows can cause one.
func TestAbandonedRows(t *testing.T) {
	t.Parallel()
	agent := &hosttest.Agent{}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	create(t, s, w.caller) // the first round has begun
	insert := func(state wrenn.State, seen wrenn.ObservedState, worker any) wrenn.SandboxID {
		t.Helper()
		id := wrenn.NewSandboxID()
		if seen != "" {
			agent.Put(id, seen)
		}
		// New ones: a round that has its inventory already must leave them for the next.
		w.sql(t, `INSERT INTO sandboxes (id, team_id, template, state, vcpus, memory_mb, timeout_sec, host_id, worker)
			VALUES ($1, $2, 'base', $3, 1, 512, 300, $4, $5)`,
			string(id), string(w.caller.Team), string(state), map[bool]string{true: "", false: "h1"}[state == wrenn.Pending], worker)
		return id
	}
	const dead = 4711
	worked := insert(wrenn.Starting, "", nil) // by a program that does not register
	ids := map[wrenn.SandboxID]wrenn.State{}
	for _, c := range []struct {
		row  wrenn.State
		seen wrenn.ObservedState
		want wrenn.State
	}{
		{wrenn.Pending, "", wrenn.Failed}, {wrenn.Starting, "", wrenn.Failed}, {wrenn.Starting, wrenn.ObservedRunning, wrenn.Running},
		{wrenn.Pausing, wrenn.ObservedRunning, wrenn.Running}, {wrenn.Resuming, wrenn.ObservedPaused, wrenn.Paused},
		{wrenn.Stopping, wrenn.ObservedRunning, wrenn.Stopped},
	} {
		ids[insert(c.row, c.seen, dead)] = c.want
	}
	for id, want := range ids {
		if sb := w.reaches(t, id, want); sb.State == wrenn.Failed && !strings.Contains(sb.Reason, "the control plane stopped") {
			t.Errorf("reason %q", sb.Reason)
		}
	}
	if sb, err := w.store.Sandbox(t.Context(), worked); err != nil || sb.State != wrenn.Starting {
		t.Errorf("a row whose worker is not known: %+v, %v", sb, err)
	}
}

// TestEndThatCannotBeWritten loses the database between the call to the host and the
// row's end: the replica lives, but does not work on the row any more.
func TestEndThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	url, stop, restart := pgtest.Server(t)
	agent := &hosttest.Agent{}
	made := make(chan string, 1)
	goOn := make(chan struct{})
	agent.After = func(_ context.Context, method, id string) error {
		if method == "CreateSandbox" {
			made <- id
			<-goOn
		}
		return nil
	}
	w := worldOn(t, url, agent)
	s, _ := w.replica(t, nil)
	done := make(chan error, 1)
	go func() {
		_, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{})
		done <- err
	}()
	id := wrenn.SandboxID(<-made)
	stop()
	close(goOn)
	testkit.WantCode(t, <-done, wrenn.Unavailable)
	if left := agent.Sandboxes(); len(left) != 0 {
		t.Errorf("the host has %v", left)
	}
	restart()
	if sb := w.reaches(t, id, wrenn.Failed); !strings.Contains(sb.Reason, "its database was away") {
		t.Errorf("reason %q", sb.Reason)
	}
}

func TestOneLeads(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first, err := w.store.TryLead(t.Context(), "reconcile")
	if err != nil || first == nil {
		t.Fatalf("%v, %v", first, err)
	}
	if second, err := pgtest.Open(t, w.url).TryLead(t.Context(), "reconcile"); err != nil || second != nil {
		t.Fatalf("two lead: %v, %v", second, err)
	}
	if err := first.Held(t.Context()); err != nil {
		t.Error(err)
	}
	first.Close(t.Context())
	var second *postgres.Lead
	testkit.WaitUntil(t, "another replica can lead", func() bool { // once the server has seen the session's end
		second, err = w.store.TryLead(t.Context(), "reconcile")
		return err == nil && second != nil
	})
	w.sql(t, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())")
	if err := second.Held(t.Context()); err == nil {
		t.Error("a lead whose session ended is held")
	}
	second.Close(t.Context())
}

// TestDatabaseThatComesAndGoes stops the server under a service that runs.
func TestDatabaseThatComesAndGoes(t *testing.T) {
	t.Parallel()
	url, stop, restart := pgtest.Server(t)
	agent := &hosttest.Agent{}
	w := worldOn(t, url, agent)
	s, _ := w.replica(t, func(c *service.Config) {
		c.ReconcileEvery, c.FlushEvery = 20*time.Millisecond, 20*time.Millisecond
		c.Deadlines = hostclient.Deadlines{}
	})
	sb := create(t, s, w.caller)
	_, secret, err := s.CreateKey(t.Context(), w.caller, service.NewKey{Name: "key"})
	if err != nil {
		t.Fatal(err)
	}
	stop()
	for name, f := range map[string]func() error{
		"ready":  func() error { return s.Ready(t.Context()) },
		"get":    func() error { _, err := s.Sandbox(t.Context(), w.caller, sb.ID); return err },
		"list":   func() error { _, _, err := s.ListSandboxes(t.Context(), w.caller, service.ListSandboxes{}); return err },
		"create": func() error { _, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{}); return err },
		"delete": func() error { return s.DeleteSandbox(t.Context(), w.caller, sb.ID) },
		"exec": func() error {
			_, err := s.Exec(t.Context(), w.caller, sb.ID, wrenn.ExecCommand{Cmd: "echo"})
			return err
		},
		"authenticate": func() error { _, err := s.Authenticate(t.Context(), secret); return err },
		"a key":        func() error { _, _, err := s.CreateKey(t.Context(), w.caller, service.NewKey{Name: "key"}); return err },
	} {
		t.Run(name, func(t *testing.T) { testkit.WantCode(t, f(), wrenn.Unavailable) })
	}
	if got := agent.Sandboxes()[sb.ID]; got != wrenn.ObservedRunning {
		t.Errorf("without its database the sandbox is %q", got)
	}
	restart()
	testkit.WaitUntil(t, "it is ready again", func() bool { return s.Ready(t.Context()) == nil })
	if res, err := s.Exec(t.Context(), w.caller, sb.ID, wrenn.ExecCommand{Cmd: "echo", Args: []string{"still", "here"}}); err != nil || string(res.Stdout) != "still here\n" {
		t.Errorf("%+v, %v", res, err)
	}
	agent.End(sb.ID, wrenn.ObservedStopped, "time was up")
	w.reaches(t, sb.ID, wrenn.Stopped) // the reconciler leads again
}
