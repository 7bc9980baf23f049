package service_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

// sleeper makes a sandbox that its use resumes.
func sleeper(t *testing.T, s *service.Service, c service.Caller) *wrenn.Sandbox {
	t.Helper()
	sb, err := s.CreateSandbox(t.Context(), c, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{AutoResume: true, EndOfLife: wrenn.EndOfLife{OnTimeout: wrenn.PauseOnTimeout}}})
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

func say(t *testing.T, s *service.Service, c service.Caller, id wrenn.SandboxID) error {
	t.Helper()
	res, err := s.Exec(t.Context(), c, id, wrenn.ExecCommand{Cmd: "echo", Args: []string{"here"}})
	if err == nil && string(res.Stdout) != "here\n" {
		t.Errorf("it printed %q", res.Stdout)
	}
	return err
}

// watch does what say does, by a stream.
func watch(t *testing.T, s *service.Service, c service.Caller, id wrenn.SandboxID) error {
	t.Helper()
	stream, err := s.StartExec(t.Context(), c, id, wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "echo", Args: []string{"here"}}})
	if err != nil {
		return err
	}
	defer stream.Close()
	var printed []byte
	for {
		out, err := stream.Receive()
		if err != nil {
			return err
		}
		printed = append(printed, out.Stdout...)
		if out.Exit != nil {
			break
		}
	}
	if string(printed) != "here\n" {
		t.Errorf("it printed %q", printed)
	}
	return nil
}

// TestOneWakeForAll: a hundred callers of two replicas, half of them by streams, cause one resume, and complete events.
func TestOneWakeForAll(t *testing.T) {
	t.Parallel()
	agent := &hosttest.Agent{}
	w := newWorld(t, agent)
	one, _ := w.replica(t, nil)
	two, _ := w.replica(t, nil)
	sb := sleeper(t, one, w.caller)
	if _, err := one.PauseSandbox(t.Context(), w.caller, sb.ID); err != nil {
		t.Fatal(err)
	}
	var callers sync.WaitGroup
	for i := range 100 {
		s := []*service.Service{one, two}[i%2]
		use := say
		if i%4 > 1 {
			use = watch
		}
		callers.Go(func() {
			if err := use(t, s, w.caller, sb.ID); err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	if n := agent.Resumes(); n != 1 {
		t.Errorf("%d wakes", n)
	}
	w.checkEvents(t, w.reaches(t, sb.ID, wrenn.Running))
	if events, err := w.store.Events(t.Context(), sb.ID); err != nil || len(events) != 6 {
		t.Errorf("%d events, %v; want one transition each way", len(events), err)
	}
}

// TestRowsThatLag: the host paused a sandbox a moment ago, and the row says "running".
func TestRowsThatLag(t *testing.T) {
	t.Parallel()
	agent := &hosttest.Agent{}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil) // its rounds are too rare to help
	t.Run("with auto_resume", func(t *testing.T) {
		sb := sleeper(t, s, w.caller)
		agent.Put(sb.ID, wrenn.ObservedPaused)
		if err := say(t, s, w.caller, sb.ID); err != nil {
			t.Error(err)
		}
	})
	t.Run("without", func(t *testing.T) {
		sb := create(t, s, w.caller)
		agent.Put(sb.ID, wrenn.ObservedPaused)
		err := say(t, s, w.caller, sb.ID)
		testkit.WantCode(t, err, wrenn.FailedPrecondition)
		if err == nil || !strings.Contains(err.Error(), "wrenn sandbox resume "+string(sb.ID)) {
			t.Errorf("it does not say what to do: %v", err)
		}
		if _, err := s.ResumeSandbox(t.Context(), w.caller, sb.ID); err != nil || agent.Sandboxes()[sb.ID] != wrenn.ObservedRunning {
			t.Errorf("resumed: %v, the host has it %s", err, agent.Sandboxes()[sb.ID])
		}
	})
	t.Run("paused, says the row", func(t *testing.T) {
		sb := sleeper(t, s, w.caller)
		if _, err := s.PauseSandbox(t.Context(), w.caller, sb.ID); err != nil {
			t.Fatal(err)
		}
		agent.Put(sb.ID, wrenn.ObservedRunning)
		if _, err := s.PauseSandbox(t.Context(), w.caller, sb.ID); err != nil || agent.Sandboxes()[sb.ID] != wrenn.ObservedPaused {
			t.Errorf("paused: %v, the host has it %s", err, agent.Sandboxes()[sb.ID])
		}
	})
	t.Run("resumed, and the host has lost it", func(t *testing.T) {
		sb := create(t, s, w.caller)
		agent.Lose(sb.ID)
		_, err := s.ResumeSandbox(t.Context(), w.caller, sb.ID)
		testkit.WantCode(t, err, wrenn.FailedPrecondition)
		w.reaches(t, sb.ID, wrenn.Failed)
	})
}

func TestPausedIsNotWoken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	sb := create(t, s, w.caller)
	if _, err := s.PauseSandbox(t.Context(), w.caller, sb.ID); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func() error{
		"exec":   func() error { return say(t, s, w.caller, sb.ID) },
		"stream": func() error { return watch(t, s, w.caller, sb.ID) },
		"attach": func() error {
			_, err := s.AttachExec(t.Context(), w.caller, sb.ID, wrenn.ExecAttach{PID: 1})
			return err
		},
		"read":       func() error { _, err := s.ReadFile(t.Context(), w.caller, sb.ID, "", "/f"); return err },
		"checkpoint": func() error { _, err := s.CreateCheckpoint(t.Context(), w.caller, sb.ID, ""); return err },
	} {
		err := f()
		testkit.WantCode(t, err, wrenn.FailedPrecondition)
		if err == nil || !strings.Contains(err.Error(), "resume it first") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWakeDuringAPause waits for the pause of another request.
func TestWakeDuringAPause(t *testing.T) {
	t.Parallel()
	asked, goOn := make(chan struct{}), make(chan struct{})
	agent := &hosttest.Agent{Before: func(_ context.Context, method, _ string) error {
		if method == "PauseSandbox" {
			close(asked)
			<-goOn
		}
		return nil
	}}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	sb := sleeper(t, s, w.caller)
	paused := make(chan error, 1)
	go func() {
		_, err := s.PauseSandbox(t.Context(), w.caller, sb.ID)
		paused <- err
	}()
	<-asked
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Millisecond)
	defer cancel()
	_, err := s.Exec(ctx, w.caller, sb.ID, wrenn.ExecCommand{Cmd: "echo"})
	if err == nil {
		t.Error("it ran during the pause")
	}
	used := make(chan error, 1)
	go func() { used <- say(t, s, w.caller, sb.ID) }()
	close(goOn)
	if err := errors.Join(<-paused, <-used); err != nil {
		t.Error(err)
	}
	w.checkEvents(t, w.reaches(t, sb.ID, wrenn.Running))
}

// TestResumeAndLimits: the memory of paused sandboxes is free for others, and a resume asks for it.
func TestResumeAndLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, func(c *service.Config) { c.Limits.TeamMemoryMB = 1024 })
	sb := sleeper(t, s, w.caller)
	create(t, s, w.caller)
	_, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{})
	testkit.WantCode(t, err, wrenn.Exhausted)
	if _, err := s.PauseSandbox(t.Context(), w.caller, sb.ID); err != nil {
		t.Fatal(err)
	}
	other := create(t, s, w.caller)
	testkit.WantCode(t, say(t, s, w.caller, sb.ID), wrenn.Exhausted)
	w.reaches(t, sb.ID, wrenn.Paused)
	if err := s.DeleteSandbox(t.Context(), w.caller, other.ID); err != nil {
		t.Fatal(err)
	}
	if err := say(t, s, w.caller, sb.ID); err != nil {
		t.Error(err)
	}
}

// A sandbox whose timeout was cut short runs for a while after its use has resumed it.
func TestTimeAfterAWakeUp(t *testing.T) {
	t.Parallel()
	agent := &hosttest.Agent{}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	for given, want := range map[time.Duration]time.Duration{time.Second: 5 * time.Minute, time.Hour: time.Hour} {
		sb, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{
			SandboxSpec: wrenn.SandboxSpec{AutoResume: true, EndOfLife: wrenn.EndOfLife{Timeout: given, OnTimeout: wrenn.PauseOnTimeout, Absolute: true}},
		})
		testkit.Must(t, err)
		_, err = s.PauseSandbox(t.Context(), w.caller, sb.ID)
		testkit.Must(t, err)
		testkit.Must(t, say(t, s, w.caller, sb.ID))
		now, err := s.Sandbox(t.Context(), w.caller, sb.ID)
		if err != nil || now.Timeout != want || agent.Timeout(sb.ID) != want {
			t.Errorf("with a timeout of %v it has %v after the wake-up, and %v on its host, %v", given, now.Timeout, agent.Timeout(sb.ID), err)
		}
	}
}

func TestFork(t *testing.T) {
	t.Parallel()
	agent := &hosttest.Agent{}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	sb, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{
		Metadata: map[string]string{"a": "1"}, SandboxSpec: wrenn.SandboxSpec{AutoResume: true, Env: map[string]string{"WHO": "me"}, EndOfLife: wrenn.EndOfLife{Timeout: time.Hour, OnTimeout: wrenn.PauseOnTimeout}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WriteFile(t.Context(), w.caller, sb.ID, "", "/f", strings.NewReader("shared")); err != nil {
		t.Fatal(err)
	}
	forked, err := s.ForkSandbox(t.Context(), w.caller, sb.ID, service.ForkSandbox{Count: 12})
	if err != nil || len(forked.Sandboxes) != 12 || len(forked.Failed) != 0 {
		t.Fatalf("%+v, %v", forked, err)
	}
	for i := range forked.Sandboxes {
		got := &forked.Sandboxes[i]
		want := &wrenn.Sandbox{
			ID: got.ID, Parent: sb.ID, Team: sb.Team, Host: sb.Host, State: wrenn.Running, OnHostLoss: wrenn.FailOnHostLoss, Metadata: sb.Metadata,
			SandboxSpec: wrenn.SandboxSpec{
				Epoch:    wrenn.FirstEpoch,
				Template: "base", Size: wrenn.Size{VCPUs: 1, MemoryMiB: 512}, Env: sb.Env,
				EndOfLife: wrenn.EndOfLife{Timeout: time.Hour, OnTimeout: wrenn.PauseOnTimeout}, AutoResume: true,
			},
			CreatedAt: got.CreatedAt, StartedAt: got.StartedAt, LastActiveAt: got.LastActiveAt, UpdatedAt: got.UpdatedAt, Version: 2,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("copy (-want +got):\n%s", diff)
		}
		w.checkEvents(t, got)
	}
	id := forked.Sandboxes[0].ID
	r, err := s.ReadFile(t.Context(), w.caller, id, "", "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if content, err := io.ReadAll(r); err != nil || string(content) != "shared" {
		t.Errorf("the copy has %q, %v", content, err)
	}
	other, err := s.ForkSandbox(t.Context(), w.caller, sb.ID, service.ForkSandbox{Count: 1, Metadata: map[string]string{"b": "2"}})
	if err != nil || other.Sandboxes[0].Metadata["b"] != "2" || other.Sandboxes[0].Metadata["a"] != "" {
		t.Errorf("with other metadata: %+v, %v", other, err)
	}
	for _, n := range []int{-1, 0, 101} {
		_, err := s.ForkSandbox(t.Context(), w.caller, sb.ID, service.ForkSandbox{Count: n})
		testkit.WantCode(t, err, wrenn.Invalid)
	}
}

// TestForkOfACheckpoint copies the state of then; a host that cannot makes no copy.
func TestForkOfACheckpoint(t *testing.T) {
	t.Parallel()
	for _, older := range []bool{false, true} {
		agent := &hosttest.Agent{NoCheckpointForks: older}
		w := newWorld(t, agent)
		s, _ := w.replica(t, nil)
		sb := create(t, s, w.caller)
		write := func(text string) {
			testkit.Must(t, s.WriteFile(t.Context(), w.caller, sb.ID, "", "/f", strings.NewReader(text)))
		}
		write("then")
		cp, err := s.CreateCheckpoint(t.Context(), w.caller, sb.ID, "")
		testkit.Must(t, err)
		write("now")
		forked, err := s.ForkSandbox(t.Context(), w.caller, sb.ID, service.ForkSandbox{Count: 1, Checkpoint: cp.ID})
		if older {
			testkit.WantCode(t, err, wrenn.Unavailable)
			if live := len(agent.Sandboxes()); live != 1 {
				t.Errorf("the host has %d sandboxes, want one", live)
			}
			continue
		}
		testkit.Must(t, err)
		r, err := s.ReadFile(t.Context(), w.caller, forked.Sandboxes[0].ID, "", "/f")
		testkit.Must(t, err)
		if content, err := io.ReadAll(r); err != nil || string(content) != "then" {
			t.Errorf("the copy has %q, %v", content, err)
		}
		testkit.Must(t, r.Close())
		before := agent.Creates()
		_, err = s.ForkSandbox(t.Context(), w.caller, sb.ID, service.ForkSandbox{Count: 1, Checkpoint: wrenn.NewCheckpointID()})
		testkit.WantCode(t, err, wrenn.NotFound)
		if agent.Creates() != before {
			t.Error("a copy was made of a checkpoint that does not exist")
		}
	}
}

// TestForkThatFails: the answer has the copies that run and the reasons of those that do not, which are also in their rows.
func TestForkThatFails(t *testing.T) {
	t.Parallel()
	some := func() func(context.Context, string) error {
		var mu sync.Mutex
		n := 0
		return func(context.Context, string) error {
			mu.Lock()
			defer mu.Unlock()
			if n++; n > 1 {
				return wrenn.Errorf(wrenn.Exhausted, "no memory for this one")
			}
			return nil
		}
	}
	lost := func(_ context.Context, method, _ string) error {
		if method == "ForkSandbox" {
			return wrenn.Errorf(wrenn.Unavailable, "the answer is lost")
		}
		return nil
	}
	for name, c := range map[string]struct {
		agent  *hosttest.Agent
		limit  int
		code   wrenn.Code // of the whole
		runs   int
		failed int // rows
		reason string
	}{
		"some do not fit":    {agent: &hosttest.Agent{Copy: some()}, runs: 1, failed: 2, reason: "no memory for this one"},
		"none is made":       {agent: &hosttest.Agent{Copy: func(context.Context, string) error { return errors.New("secret") }}, code: wrenn.Internal, failed: 3, reason: "its host could not start it"},
		"the answer is lost": {agent: &hosttest.Agent{After: lost}, code: wrenn.Unavailable, failed: 3, reason: "the answer is lost"},
		"the team may not":   {agent: &hosttest.Agent{}, limit: 3, code: wrenn.Exhausted},
		"the team may, just": {agent: &hosttest.Agent{}, limit: 4, runs: 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, c.agent)
			s, _ := w.replica(t, func(cfg *service.Config) { cfg.Limits.Sandboxes = c.limit })
			sb := create(t, s, w.caller)
			got, err := s.ForkSandbox(t.Context(), w.caller, sb.ID, service.ForkSandbox{Count: 3})
			testkit.WantCode(t, err, c.code)
			if err == nil && (len(got.Sandboxes) != c.runs || len(got.Failed) != c.failed) {
				t.Errorf("%+v", got)
			}
			page, _, err := s.ListSandboxes(t.Context(), w.caller, service.ListSandboxes{States: []wrenn.State{wrenn.Failed}})
			if err != nil || len(page) != c.failed {
				t.Fatalf("%d rows failed, %v", len(page), err)
			}
			for i := range page {
				if page[i].Reason != c.reason {
					t.Errorf("reason %q", page[i].Reason)
				}
				w.checkEvents(t, &page[i])
			}
			if n := len(c.agent.Sandboxes()); n != 1+c.runs {
				t.Errorf("the host has %d", n)
			}
		})
	}
}

func TestForkWhoseCallerGoesAway(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	agent := &hosttest.Agent{After: func(ctx context.Context, method, _ string) error {
		if method == "ForkSandbox" { // they exist, the answer is on its way
			close(asked)
			<-ctx.Done()
		}
		return nil
	}}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	sb := create(t, s, w.caller)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	_, err := s.ForkSandbox(ctx, w.caller, sb.ID, service.ForkSandbox{Count: 3})
	testkit.WantCode(t, err, wrenn.Canceled)
	if left := agent.Sandboxes(); len(left) != 1 {
		t.Errorf("the host has %v", left)
	}
	w.reaches(t, sb.ID, wrenn.Running)
}

func TestCheckpoints(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	c := w.caller
	sb := create(t, s, c)
	make := func(name string) wrenn.CheckpointID {
		t.Helper()
		cp, err := s.CreateCheckpoint(t.Context(), c, sb.ID, name)
		if err != nil || cp.Name != name || cp.CreatedAt.IsZero() || cp.SizeBytes == 0 {
			t.Fatalf("%+v, %v", cp, err)
		}
		if _, err := wrenn.ParseCheckpointID(string(cp.ID)); err != nil {
			t.Error(err)
		}
		return cp.ID
	}
	first := make("first")
	second := make("second")
	if got, err := s.RestoreCheckpoint(t.Context(), c, sb.ID, first); err != nil || got.State != wrenn.Running {
		t.Errorf("%+v, %v", got, err)
	}
	third := make("third")
	tree := func() map[wrenn.CheckpointID]wrenn.CheckpointID {
		t.Helper()
		all, err := s.Checkpoints(t.Context(), c, sb.ID)
		if err != nil || all.Head != third {
			t.Errorf("head %q, %v", all.Head, err)
		}
		parents := map[wrenn.CheckpointID]wrenn.CheckpointID{}
		for _, cp := range all.List {
			parents[cp.ID] = cp.Parent
		}
		return parents
	}
	if diff := cmp.Diff(map[wrenn.CheckpointID]wrenn.CheckpointID{first: "", second: first, third: first}, tree()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for range 2 {
		if err := s.DeleteCheckpoint(t.Context(), c, sb.ID, first); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(map[wrenn.CheckpointID]wrenn.CheckpointID{second: "", third: ""}, tree()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	_, err := s.RestoreCheckpoint(t.Context(), c, sb.ID, first)
	testkit.WantCode(t, err, wrenn.NotFound)
	_, err = s.CreateCheckpoint(t.Context(), c, sb.ID, strings.Repeat("x", 201))
	testkit.WantCode(t, err, wrenn.Invalid)
	if err := s.DeleteSandbox(t.Context(), c, sb.ID); err != nil {
		t.Fatal(err)
	}
	if all, err := s.Checkpoints(t.Context(), c, sb.ID); err != nil || len(all.List) != 0 {
		t.Errorf("of what is gone: %+v, %v", all, err)
	}
}
