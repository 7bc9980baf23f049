package service_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

func TestLife(t *testing.T) {
	t.Parallel()
	agent := &hosttest.Agent{}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	c := w.caller
	sb, err := s.CreateSandbox(t.Context(), c, service.CreateSandbox{
		Metadata: map[string]string{"for": "a test"}, SandboxSpec: wrenn.SandboxSpec{Env: map[string]string{"WHO": "me"}, EndOfLife: wrenn.EndOfLife{Timeout: 90 * time.Second}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &wrenn.Sandbox{
		ID: sb.ID, Team: c.Team, Host: "h1", State: wrenn.Running, OnHostLoss: wrenn.FailOnHostLoss, Metadata: map[string]string{"for": "a test"},
		SandboxSpec: wrenn.SandboxSpec{
			Epoch:    wrenn.FirstEpoch,
			Template: "base", Size: wrenn.Size{VCPUs: 1, MemoryMiB: 512}, Env: map[string]string{"WHO": "me"},
			EndOfLife: wrenn.EndOfLife{Timeout: 90 * time.Second, OnTimeout: wrenn.DestroyOnTimeout},
		},
		CreatedAt: sb.CreatedAt, StartedAt: sb.StartedAt, LastActiveAt: sb.LastActiveAt, UpdatedAt: sb.UpdatedAt, Version: 2,
	}
	if diff := cmp.Diff(want, sb); diff != "" || sb.StartedAt.IsZero() || sb.CreatedAt.IsZero() {
		t.Errorf("created (-want +got):\n%s", diff)
	}
	res, err := s.Exec(t.Context(), c, sb.ID, wrenn.ExecCommand{Cmd: "printenv", Args: []string{"WHO"}})
	if err != nil || string(res.Stdout) != "me\n" {
		t.Errorf("exec: %+v, %v", res, err)
	}
	if err := s.WriteFile(t.Context(), c, sb.ID, "", "/f", strings.NewReader("content")); err != nil {
		t.Fatal(err)
	}
	paused, err := s.PauseSandbox(t.Context(), c, sb.ID)
	if err != nil || paused.State != wrenn.Paused || agent.Sandboxes()[sb.ID] != wrenn.ObservedPaused {
		t.Fatalf("paused: %+v, %v", paused, err)
	}
	_, err = s.Exec(t.Context(), c, sb.ID, wrenn.ExecCommand{Cmd: "echo"})
	testkit.WantCode(t, err, wrenn.FailedPrecondition)
	if again, err := s.PauseSandbox(t.Context(), c, sb.ID); err != nil || again.Version != paused.Version {
		t.Errorf("paused twice: %+v, %v", again, err)
	}
	if resumed, err := s.ResumeSandbox(t.Context(), c, sb.ID); err != nil || resumed.State != wrenn.Running {
		t.Fatalf("resumed: %+v, %v", resumed, err)
	}
	r, err := s.ReadFile(t.Context(), c, sb.ID, "", "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if content, err := io.ReadAll(r); err != nil || string(content) != "content" {
		t.Errorf("read %q, %v", content, err)
	}
	if longer, err := s.SetTimeout(t.Context(), c, sb.ID, time.Hour); err != nil || longer.Timeout != time.Hour || agent.Timeout(sb.ID) != time.Hour {
		t.Errorf("timeout: %+v, %v, host %v", longer, err, agent.Timeout(sb.ID))
	}
	for range 2 { // deleting twice is no error
		if err := s.DeleteSandbox(t.Context(), c, sb.ID); err != nil {
			t.Fatal(err)
		}
	}
	gone, err := s.Sandbox(t.Context(), c, sb.ID)
	if err != nil || gone.State != wrenn.Stopped || gone.Reason != "" || len(agent.Sandboxes()) != 0 {
		t.Errorf("after its end: %+v, %v, host %v", gone, err, agent.Sandboxes())
	}
	_, err = s.Exec(t.Context(), c, sb.ID, wrenn.ExecCommand{Cmd: "echo"})
	testkit.WantCode(t, err, wrenn.FailedPrecondition)
	w.checkEvents(t, gone)
}

func TestLogs(t *testing.T) {
	t.Parallel()
	agent := &hosttest.Agent{}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	id := create(t, s, w.caller).ID
	read := func(follow bool) string {
		r, err := s.Logs(t.Context(), w.caller, id, wrenn.ConsoleQuery{Follow: follow, Since: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		text, err := io.ReadAll(r)
		if err != nil {
			t.Error(err)
		}
		return string(text)
	}
	said := "console of " + string(id) + "\r\n"
	if got := read(false); got != said {
		t.Errorf("got %q", got)
	}
	if got := read(true); got != said+"Power down\r\n" {
		t.Errorf("followed: %q", got)
	}
	agent.NoConsoleTimes = true
	_, err := s.Logs(t.Context(), w.caller, id, wrenn.ConsoleQuery{Since: time.Now()})
	testkit.WantCode(t, err, wrenn.Unavailable, "older version")
	if err := s.DeleteSandbox(t.Context(), w.caller, id); err != nil {
		t.Fatal(err)
	}
	_, err = s.Logs(t.Context(), w.caller, id, wrenn.ConsoleQuery{})
	testkit.WantCode(t, err, wrenn.NotFound)
	_, err = s.Logs(t.Context(), service.Caller{Team: "00000000-0000-4000-8000-000000000000"}, id, wrenn.ConsoleQuery{})
	testkit.WantCode(t, err, wrenn.NotFound)
}

func TestStreams(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	id := create(t, s, w.caller).ID
	stream, err := s.StartExec(t.Context(), w.caller, id, wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "cat"}, WantStdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if err := errors.Join(stream.SendStdin([]byte("\xff\x00")), stream.CloseStdin()); err != nil {
		t.Fatal(err)
	}
	var got []wrenn.ExecOutput
	for {
		out, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, out)
	}
	want := []wrenn.ExecOutput{{Started: &wrenn.ExecStarted{PID: 1000}}, {Stdout: []byte("\xff\x00")}, {Exit: &wrenn.ExecExit{Status: "exit status 0"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stream (-want +got):\n%s", diff)
	}
	stream, err = s.AttachExec(t.Context(), w.caller, id, wrenn.ExecAttach{PID: 4711})
	testkit.WantCode(t, err, wrenn.NotFound)
	if stream != nil {
		t.Error("a stream that holds nothing is not nil")
	}
}

func TestTeamsDoNotSeeEachOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	id := create(t, s, w.caller).ID
	other := w.team(t, "other")
	ctx := t.Context()
	for name, f := range map[string]func() error{
		"get":    func() error { _, err := s.Sandbox(ctx, other, id); return err },
		"delete": func() error { return s.DeleteSandbox(ctx, other, id) },
		"pause":  func() error { _, err := s.PauseSandbox(ctx, other, id); return err },
		"resume": func() error { _, err := s.ResumeSandbox(ctx, other, id); return err },
		"fork": func() error {
			_, err := s.ForkSandbox(ctx, other, id, service.ForkSandbox{Count: 1})
			return err
		},
		"checkpoint":        func() error { _, err := s.CreateCheckpoint(ctx, other, id, ""); return err },
		"checkpoints":       func() error { _, err := s.Checkpoints(ctx, other, id); return err },
		"go back":           func() error { _, err := s.RestoreCheckpoint(ctx, other, id, "s"); return err },
		"delete checkpoint": func() error { return s.DeleteCheckpoint(ctx, other, id, "s") },
		"timeout":           func() error { _, err := s.SetTimeout(ctx, other, id, time.Hour); return err },
		"exec":              func() error { _, err := s.Exec(ctx, other, id, wrenn.ExecCommand{Cmd: "echo"}); return err },
		"stream": func() error {
			_, err := s.StartExec(ctx, other, id, wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "echo"}})
			return err
		},
		"attach": func() error { _, err := s.AttachExec(ctx, other, id, wrenn.ExecAttach{PID: 1}); return err },
		"write":  func() error { return s.WriteFile(ctx, other, id, "", "/f", strings.NewReader("")) },
		"read":   func() error { _, err := s.ReadFile(ctx, other, id, "", "/f"); return err },
	} {
		t.Run(name, func(t *testing.T) { testkit.WantCode(t, f(), wrenn.NotFound) })
	}
	if page, _, err := s.ListSandboxes(ctx, other, service.ListSandboxes{}); err != nil || len(page) != 0 {
		t.Errorf("listed %v, %v", page, err)
	}
	w.reaches(t, id, wrenn.Running)
}

func TestRequestsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	for name, req := range map[string]service.CreateSandbox{
		"a path as template":       {SandboxSpec: wrenn.SandboxSpec{Template: "../../etc"}},
		"too many vCPUs":           {SandboxSpec: wrenn.SandboxSpec{Size: wrenn.Size{VCPUs: 1000}}},
		"fewer than one":           {SandboxSpec: wrenn.SandboxSpec{Size: wrenn.Size{VCPUs: -1}}},
		"too much memory":          {SandboxSpec: wrenn.SandboxSpec{Size: wrenn.Size{MemoryMiB: 1 << 30}}},
		"too little":               {SandboxSpec: wrenn.SandboxSpec{Size: wrenn.Size{MemoryMiB: 1}}},
		"a timeout over the limit": {SandboxSpec: wrenn.SandboxSpec{EndOfLife: wrenn.EndOfLife{Timeout: 10000 * time.Hour}}},
		"a NUL in the metadata":    {Metadata: map[string]string{"a": "\x00"}},
		"no key":                   {Metadata: map[string]string{"": "a"}},
		"bytes that are no text":   {SandboxSpec: wrenn.SandboxSpec{Env: map[string]string{"A": "\xff"}}},
		"another ending":           {SandboxSpec: wrenn.SandboxSpec{EndOfLife: wrenn.EndOfLife{OnTimeout: "sell"}}},
		"too many bytes in all":    {SandboxSpec: wrenn.SandboxSpec{Env: map[string]string{"A": strings.Repeat("a", 30<<10), "B": strings.Repeat("b", 30<<10), "C": strings.Repeat("c", 30<<10)}}},
		"= in a name":              {SandboxSpec: wrenn.SandboxSpec{Env: map[string]string{"A=B": ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.CreateSandbox(t.Context(), w.caller, req)
			testkit.WantCode(t, err, wrenn.Invalid)
		})
	}
	_, _, err := s.ListSandboxes(t.Context(), w.caller, service.ListSandboxes{States: []wrenn.State{"dead"}})
	testkit.WantCode(t, err, wrenn.Invalid)
	_, _, err = s.ListSandboxes(t.Context(), w.caller, service.ListSandboxes{Page: "x"})
	testkit.WantCode(t, err, wrenn.Invalid)
	_, err = s.SetTimeout(t.Context(), w.caller, wrenn.NewSandboxID(), 0)
	testkit.WantCode(t, err, wrenn.Invalid)
	if n := w.agents[0].Creates(); n != 0 {
		t.Errorf("%d sandboxes were made", n)
	}
}

func TestSandboxWithoutEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	sb, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{EndOfLife: wrenn.EndOfLife{Timeout: -1}}})
	if err != nil || sb.Timeout != 0 || w.agents[0].Timeout(sb.ID) != 0 {
		t.Errorf("%+v, %v", sb, err)
	}
}

// TestCreateThatFails checks the result: a row with the reason, and no sandbox on the host.
func TestCreateThatFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, after error
		lost          bool // the template, since its name was looked up
		code          wrenn.Code
		reason        string
	}{
		"the host refuses":       {before: errors.New("qemu: /secret/path"), code: wrenn.Internal, reason: "its host could not start it"},
		"the host says why":      {before: wrenn.Errorf(wrenn.DeadlineExceeded, "the guest did not boot"), code: wrenn.DeadlineExceeded, reason: "the guest did not boot"},
		"the answer is lost":     {after: wrenn.Errorf(wrenn.Unavailable, "lost"), code: wrenn.Unavailable, reason: "lost"},
		"its template is lost":   {lost: true, code: wrenn.NotFound, reason: "there is no template mine here"},
		"full, whatever it said": {before: wrenn.Errorf(wrenn.Exhausted, "full"), code: wrenn.Exhausted, reason: "full"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			only := func(err error) func(context.Context, string, string) error {
				return func(_ context.Context, method, _ string) error {
					if method == "CreateSandbox" {
						return err
					}
					return nil
				}
			}
			w := newWorld(t, &hosttest.Agent{Before: only(c.before), After: only(c.after)})
			s, _ := w.replica(t, nil)
			var wish service.CreateSandbox
			if c.lost {
				w.agents[0].Forget(built(t, s, w.caller, service.BuildTemplate{Name: "mine"}).ID)
				wish.Template = "mine"
			}
			_, err := s.CreateSandbox(t.Context(), w.caller, wish)
			testkit.WantCode(t, err, c.code)
			page, _, err := s.ListSandboxes(t.Context(), w.caller, service.ListSandboxes{})
			if err != nil || len(page) != 1 {
				t.Fatalf("%d rows, %v", len(page), err)
			}
			if sb := page[0]; sb.State != wrenn.Failed || sb.Reason != c.reason {
				t.Errorf("the row is %s: %q, want failed: %q", sb.State, sb.Reason, c.reason)
			}
			if left := w.agents[0].Sandboxes(); len(left) != 0 {
				t.Errorf("the host has %v", left)
			}
			w.checkEvents(t, &page[0])
		})
	}
}

func TestCreateWhoseCallerGoesAway(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	agent := &hosttest.Agent{}
	agent.After = func(ctx context.Context, method, _ string) error {
		if method == "CreateSandbox" { // it exists, the answer is on its way
			close(asked)
			<-ctx.Done()
		}
		return nil
	}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	_, err := s.CreateSandbox(ctx, w.caller, service.CreateSandbox{})
	testkit.WantCode(t, err, wrenn.Canceled)
	page, _, err := s.ListSandboxes(t.Context(), w.caller, service.ListSandboxes{})
	if err != nil || len(page) != 1 || page[0].State != wrenn.Failed || !strings.Contains(page[0].Reason, "disconnected") {
		t.Errorf("got %+v, %v", page, err)
	}
	if left := agent.Sandboxes(); len(left) != 0 {
		t.Errorf("the host has %v", left)
	}
}

func TestDeleteWhileItStarts(t *testing.T) {
	t.Parallel()
	asked, goOn := make(chan string, 1), make(chan struct{})
	agent := &hosttest.Agent{Before: func(_ context.Context, method, id string) error {
		if method == "CreateSandbox" {
			asked <- id
			<-goOn
		}
		return nil
	}}
	w := newWorld(t, agent)
	one, _ := w.replica(t, nil)
	two, _ := w.replica(t, nil)
	done := make(chan error, 1)
	go func() {
		_, err := one.CreateSandbox(context.WithoutCancel(t.Context()), w.caller, service.CreateSandbox{})
		done <- err
	}()
	id := wrenn.SandboxID(<-asked)
	if err := two.DeleteSandbox(t.Context(), w.caller, id); err != nil {
		t.Fatal(err)
	}
	w.reaches(t, id, wrenn.Stopped)
	close(goOn) // the host creates it only now, after the call to destroy it
	testkit.WantCode(t, <-done, wrenn.FailedPrecondition)
	if left := agent.Sandboxes(); len(left) != 0 {
		t.Errorf("the host has %v", left)
	}
	w.checkEvents(t, w.reaches(t, id, wrenn.Stopped))
}

func TestPauseThatFails(t *testing.T) {
	t.Parallel()
	var fail atomic.Pointer[wrenn.Error]
	agent := &hosttest.Agent{After: func(_ context.Context, method, _ string) error {
		if err := fail.Load(); err != nil && method == "PauseSandbox" {
			return err
		}
		return nil
	}}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	sb := create(t, s, w.caller)
	fail.Store(wrenn.Errorf(wrenn.Unavailable, "the answer is lost"))
	_, err := s.PauseSandbox(t.Context(), w.caller, sb.ID)
	testkit.WantCode(t, err, wrenn.Unavailable)
	w.reaches(t, sb.ID, wrenn.Paused) // as its host has it

	fail.Store(nil)
	if _, err := s.ResumeSandbox(t.Context(), w.caller, sb.ID); err != nil {
		t.Fatal(err)
	}
	agent.Lose(sb.ID)
	_, err = s.PauseSandbox(t.Context(), w.caller, sb.ID)
	testkit.WantCode(t, err, wrenn.FailedPrecondition)
	if got := w.reaches(t, sb.ID, wrenn.Failed); !strings.Contains(got.Reason, "does not have it") {
		t.Errorf("reason %q", got.Reason)
	}
}

func TestDeleteOnAHostThatIsAway(t *testing.T) {
	t.Parallel()
	agent := &hosttest.Agent{}
	w := newWorld(t, agent)
	s, _ := w.replica(t, func(c *service.Config) { c.ReconcileEvery = 20 * time.Millisecond })
	sb := create(t, s, w.caller)
	w.servers[0].Stop()
	if err := s.DeleteSandbox(t.Context(), w.caller, sb.ID); err != nil {
		t.Fatalf("the wish was not taken: %v", err)
	}
	w.reaches(t, sb.ID, wrenn.Stopping)
	w.sql(t, "UPDATE sandboxes SET updated_at = updated_at - interval '1 hour'") // older than any request
	if err := w.servers[0].Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.reaches(t, sb.ID, wrenn.Stopped)
	testkit.WaitUntil(t, "the host has destroyed it", func() bool { return len(agent.Sandboxes()) == 0 })
}

func TestPlacing(t *testing.T) {
	t.Parallel()
	small := func() *hosttest.Agent { a := &hosttest.Agent{}; a.Capacity.Sandboxes = 2; return a }
	w := newWorld(t, small(), small())
	s, _ := w.replica(t, func(c *service.Config) { c.PingEvery = never }) // it does not learn the hosts' use
	for range 4 {
		create(t, s, w.caller)
	}
	for i, agent := range w.agents {
		if n := len(agent.Sandboxes()); n != 2 {
			t.Errorf("host %d has %d sandboxes, want 2", i+1, n)
		}
	}
	_, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{})
	testkit.WantCode(t, err, wrenn.Exhausted)
}

func TestNoHosts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	w.servers[0].Stop()
	s, _ := w.replica(t, nil)
	_, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{})
	testkit.WantCode(t, err, wrenn.Unavailable)
	if page, _, err := s.ListSandboxes(t.Context(), w.caller, service.ListSandboxes{}); err != nil || len(page) != 0 {
		t.Errorf("it left rows: %v, %v", page, err)
	}
	for name, hosts := range map[string][]service.Host{
		"twice":     {{ID: "a", URL: "http://x"}, {ID: "a", URL: "http://y"}},
		"a bad id":  {{ID: "A b", URL: "http://x"}},
		"a bad URL": {{ID: "a", URL: "x"}},
	} {
		if _, err := service.New(service.Config{Hosts: hosts}, w.store, nil); wrenn.CodeOf(err) != wrenn.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCheckExec: it reports for each state what StartExec would do, and changes no row.
func TestCheckExec(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	for _, state := range wrenn.States() {
		for _, autoResume := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, auto_resume %t", state, autoResume), func(t *testing.T) {
				sb, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{AutoResume: autoResume}})
				testkit.Must(t, err)
				w.sql(t, "UPDATE sandboxes SET state = $1 WHERE id = $2", string(state), string(sb.ID))
				err = s.CheckExec(t.Context(), w.caller, sb.ID)
				resumes := autoResume && slices.Contains([]wrenn.State{wrenn.Pausing, wrenn.Paused, wrenn.Resuming}, state)
				switch {
				case state == wrenn.Running || resumes:
					testkit.Must(t, err)
				case state == wrenn.Paused:
					testkit.WantCode(t, err, wrenn.FailedPrecondition, "wrenn sandbox resume "+string(sb.ID))
				case state.Ended():
					testkit.WantCode(t, err, wrenn.FailedPrecondition, "create another")
				default:
					testkit.WantCode(t, err, wrenn.FailedPrecondition, "wait until it is running")
				}
				if now, err := s.Sandbox(t.Context(), w.caller, sb.ID); err != nil || now.State != state || now.Version != sb.Version {
					t.Errorf("afterwards %+v, %v", now, err)
				}
			})
		}
	}
	testkit.WantCode(t, s.CheckExec(t.Context(), w.team(t, "other"), wrenn.NewSandboxID()), wrenn.NotFound)
}

// TestAStartThatWaits takes longer than the deadline of a start, and its row shows why.
func TestAStartThatWaits(t *testing.T) {
	t.Parallel()
	const reason = "waiting for its turn to be booted, with 3 ahead of it"
	waits, turn := make(chan wrenn.SandboxID, 1), make(chan struct{})
	agent := &hosttest.Agent{Waiting: func(_ context.Context, id string) iter.Seq[string] {
		return func(yield func(string) bool) {
			waits <- wrenn.SandboxID(id)
			for { // as a host does every few seconds
				if !yield(reason) {
					return
				}
				select {
				case <-turn:
					yield("")
					return
				case <-time.After(50 * time.Millisecond):
				}
			}
		}
	}}
	w := newWorld(t, agent)
	s, _ := w.replica(t, func(cfg *service.Config) { cfg.Deadlines.Create = time.Second })
	created := make(chan *wrenn.Sandbox, 1)
	go func() {
		sb, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{})
		if err != nil {
			t.Error(err)
		}
		created <- sb
	}()
	id := <-waits
	testkit.WaitUntil(t, "the row shows why it waits", func() bool {
		sb, err := s.Sandbox(t.Context(), w.caller, id)
		return err == nil && sb.State == wrenn.Starting && sb.Reason == reason
	})
	began := time.Now()
	testkit.WaitUntil(t, "the deadline of a start is over", func() bool { return time.Since(began) > 1500*time.Millisecond })
	close(turn)
	if sb := <-created; sb == nil || sb.State != wrenn.Running || sb.Reason != "" {
		t.Errorf("created %+v", sb)
	}

	agent.Waiting = nil
	ctx, leave := context.WithCancel(t.Context())
	agent.Waiting = func(ctx context.Context, id string) iter.Seq[string] {
		return func(yield func(string) bool) {
			waits <- wrenn.SandboxID(id)
			yield(reason)
			<-ctx.Done()
		}
	}
	failed := make(chan error, 1)
	go func() {
		_, err := s.CreateSandbox(ctx, w.caller, service.CreateSandbox{})
		failed <- err
	}()
	id = <-waits
	leave()
	testkit.WantCode(t, <-failed, wrenn.Canceled)
	if sb := w.reaches(t, id, wrenn.Failed); sb.Reason != "the client disconnected while it started" {
		t.Errorf("a sandbox whose client left has the reason %q", sb.Reason)
	}
}
