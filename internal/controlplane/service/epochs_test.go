package service_test

import (
	"context"
	"sync/atomic"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// on returns the agent with that id.
func (w *world) on(id wrenn.HostID) *hosttest.Agent { return w.agents[id[1]-'1'] }

// wantSuperseded waits until the old copy of a sandbox on a host is paused for good, and
// checks that it is reported.
func wantSuperseded(t *testing.T, w *world, s *service.Service, id wrenn.SandboxID, on wrenn.HostID) {
	t.Helper()
	testkit.WaitUntil(t, "the old copy is paused for good", func() bool {
		_, by := w.on(on).Epochs(id)
		return by == 2 && w.on(on).Sandboxes()[id] == wrenn.ObservedPaused
	})
	testkit.WaitUntil(t, "it is reported", func() bool {
		_, unknown, err := s.Hosts(t.Context())
		return err == nil && len(unknown) == 1 && unknown[0].ID == id && unknown[0].Host == on
	})
}

// TestHostComesBackWithAnOldCopy: the answer to a resume is lost, and then the host. The
// sandbox continues on another one from what is stored. When the host is back, what it runs
// is stopped and kept.
func TestHostComesBackWithAnOldCopy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{HasStore: true}, &hosttest.Agent{HasStore: true})
	s, _ := w.replica(t, nil)
	sb := pauseStored(t, w, s, map[wrenn.HostID]*hosttest.Agent{"h1": w.on("h1"), "h2": w.on("h2")})
	from, server := sb.Host, w.servers[sb.Host[1]-'1']
	if epoch, _ := w.on(from).Epochs(sb.ID); epoch != wrenn.FirstEpoch || sb.Epoch != wrenn.FirstEpoch {
		t.Fatalf("a new sandbox has epoch %d, its row %d", epoch, sb.Epoch)
	}
	server.Stop()
	resumed, err := s.ResumeSandbox(t.Context(), w.caller, sb.ID)
	testkit.WaitNoError(t, "it is resumed on the other host", func() error {
		if err != nil {
			resumed, err = s.ResumeSandbox(t.Context(), w.caller, sb.ID)
		}
		return err
	})
	w.on(from).Put(sb.ID, wrenn.ObservedRunning) // that resume whose answer was lost
	if resumed.Host == from || resumed.Epoch != 2 {
		t.Fatalf("resumed: %+v", resumed)
	}
	testkit.Must(t, server.Start(t.Context()))
	wantSuperseded(t, w, s, sb.ID, from)
	now := w.reaches(t, sb.ID, wrenn.Running)
	if epoch, by := w.on(now.Host).Epochs(sb.ID); now.Host != resumed.Host || epoch != 2 || by != 0 || w.on(now.Host).Sandboxes()[sb.ID] != wrenn.ObservedRunning {
		t.Errorf("the sandbox is %+v, and its host has epoch %d", now, epoch)
	}
	_, err = s.Exec(t.Context(), w.caller, sb.ID, wrenn.ExecCommand{Cmd: "echo"})
	testkit.Must(t, err)
}

// TestLateResume: a replica hangs between its change of the row and the call to the host.
// By then the sandbox was moved. The old copy is not the sandbox, whatever the call did.
func TestLateResume(t *testing.T) {
	t.Parallel()
	for name, knows := range map[string]bool{"the old host does not know of the move": false, "it does": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var late atomic.Bool
			called, release := make(chan struct{}), make(chan struct{})
			hang := func(_ context.Context, method, _ string) error {
				if method == "ResumeSandbox" && late.CompareAndSwap(true, false) {
					close(called)
					<-release
				}
				return nil
			}
			w := newWorld(t, &hosttest.Agent{HasStore: true, Before: hang}, &hosttest.Agent{HasStore: true, Before: hang})
			s, _ := w.replica(t, nil)
			sb := pauseStored(t, w, s, map[wrenn.HostID]*hosttest.Agent{"h1": w.on("h1"), "h2": w.on("h2")})
			to := map[wrenn.HostID]wrenn.HostID{"h1": "h2", "h2": "h1"}[sb.Host]
			late.Store(true)
			done := make(chan error, 1)
			go func() {
				_, err := s.ResumeSandbox(t.Context(), w.caller, sb.ID)
				done <- err
			}()
			<-called
			// As the reconciler does with a row that is late.
			w.sql(t, "UPDATE sandboxes SET state = 'paused', version = version + 1, worker = NULL WHERE id = $1", string(sb.ID))
			moved, err := s.MoveSandbox(t.Context(), sb.ID, to)
			if err != nil || moved.Host != to || moved.Epoch != 2 {
				t.Fatalf("%+v, %v", moved, err)
			}
			if knows {
				_, err := w.on(sb.Host).PauseSandbox(t.Context(), &pb.PauseSandboxRequest{SandboxId: string(sb.ID), Hold: true, SupersededBy: 2})
				testkit.Must(t, err)
			}
			resumes := w.on(sb.Host).Resumes()
			close(release)
			testkit.Must(t, <-done) // on its host of now
			if now := w.reaches(t, sb.ID, wrenn.Running); now.Host != to || w.on(to).Sandboxes()[sb.ID] != wrenn.ObservedRunning {
				t.Errorf("%+v", now)
			}
			if knows && w.on(sb.Host).Resumes() != resumes {
				t.Error("the old copy was woken")
			}
			if !knows {
				wantSuperseded(t, w, s, sb.ID, sb.Host)
			}
		})
	}
}

// TestFetchedAgain: a control plane ends after a host has fetched its own sandbox again, and
// before the row says so.
func TestFetchedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{HasStore: true})
	s, _ := w.replica(t, nil)
	sb := pauseStored(t, w, s, map[wrenn.HostID]*hosttest.Agent{"h1": w.on("h1")})
	_, err := w.on("h1").FetchSandbox(t.Context(), &pb.FetchSandboxRequest{SandboxId: string(sb.ID), Team: string(sb.Team), Key: sb.Stored.Key, Epoch: 2})
	testkit.Must(t, err)
	w.on("h1").Announce()
	testkit.WaitNoError(t, "it can be resumed", func() error {
		_, err := s.ResumeSandbox(t.Context(), w.caller, sb.ID)
		return err
	})
	now := w.reaches(t, sb.ID, wrenn.Running)
	if now.Epoch != 2 {
		t.Errorf("%+v", now)
	}
}

// TestCopiedByAnOperator: files that an operator copied are of the placement that the row
// gets.
func TestCopiedByAnOperator(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{}, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	sb := create(t, s, w.caller)
	_, err := s.PauseSandbox(t.Context(), w.caller, sb.ID)
	testkit.Must(t, err)
	to := map[wrenn.HostID]wrenn.HostID{"h1": "h2", "h2": "h1"}[sb.Host]
	w.on(to).Put(sb.ID, wrenn.ObservedPaused)
	moved, err := s.MoveSandbox(t.Context(), sb.ID, to)
	testkit.Must(t, err)
	if epoch, _ := w.on(to).Epochs(sb.ID); epoch != 2 || moved.Epoch != 2 {
		t.Errorf("the host has epoch %d, the row %d", epoch, moved.Epoch)
	}
	_, err = s.ResumeSandbox(t.Context(), w.caller, sb.ID)
	testkit.Must(t, err)
}

// TestUseOfASandboxThatWasMoved: a sandbox is moved between a request's look at its row and
// its call to the host, which does not have it any more. The request goes to the next host.
func TestUseOfASandboxThatWasMoved(t *testing.T) {
	t.Parallel()
	var move atomic.Pointer[func()]
	before := func(_ context.Context, method, _ string) error {
		if f := move.Load(); f != nil && method == "Exec" && move.CompareAndSwap(f, nil) {
			(*f)()
		}
		return nil
	}
	agent := func() *hosttest.Agent { return &hosttest.Agent{HasStore: true, Stores: true, Before: before} }
	w := newWorld(t, agent(), agent())
	s, _ := w.replica(t, nil)
	sb, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{})
	testkit.Must(t, err)
	to := map[wrenn.HostID]wrenn.HostID{"h1": "h2", "h2": "h1"}[sb.Host]
	moves := func() {
		_, err := s.PauseSandbox(t.Context(), w.caller, sb.ID)
		if err == nil {
			testkit.WaitNoError(t, "it is moved", func() error { _, err := s.MoveSandbox(t.Context(), sb.ID, to); return err })
			_, err = s.ResumeSandbox(t.Context(), w.caller, sb.ID)
		}
		if err != nil {
			t.Error(err)
		}
		w.on(sb.Host).Lose(sb.ID)
	}
	move.Store(&moves)
	_, err = s.Exec(t.Context(), w.caller, sb.ID, wrenn.ExecCommand{Cmd: "echo"})
	testkit.Must(t, err)
	if now := w.reaches(t, sb.ID, wrenn.Running); now.Host != to || move.Load() != nil {
		t.Errorf("%+v", now)
	}
}
