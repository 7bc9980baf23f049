package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm"
)

// stoppable is a machine that can do nothing but stop.
type stoppable struct {
	vm.Machine
	stopped bool
}

func (m *stoppable) Stop(context.Context) error {
	m.stopped = true
	return nil
}

// newRunning is a sandbox that runs, on a host that has nothing else.
func newRunning(t *testing.T) (*Sandbox, *stoppable) {
	t.Helper()
	dir, log := t.TempDir(), slog.New(slog.NewTextHandler(t.Output(), nil))
	m := &Manager{}
	testkit.Must(t, m.open(Config{StateDir: dir, RunDir: t.TempDir(), Log: log, Store: &storage.Store{Dir: dir}}))
	id := wrenn.NewSandboxID()
	s := revive(&m.host, journal.New(filepath.Join(m.sandboxesDir(), string(id)), id).With(func(j *journal.Journal) {
		j.Step, j.Instance = journal.StepRunning, &journal.Instance{Start: 1}
	}))
	machine := &stoppable{}
	s.instance.Machine = machine
	if err := errors.Join(os.MkdirAll(s.dir(), 0o700), s.journal.commit("a test", func(*journal.Journal) {}), os.WriteFile(s.instance.Disk(), []byte("a user's work"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s.state.set(StatusRunning, "")
	return s, machine
}

// hide moves a directory away, so that no journal can be written in it, until
// restore is called.
func hide(t *testing.T, dir string) (restore func()) {
	t.Helper()
	away := filepath.Join(t.TempDir(), "away")
	testkit.Must(t, os.Rename(dir, away))
	return func() { testkit.Must(t, os.Rename(away, dir)) }
}

// The verdict holds although the journal cannot be written, as on a full disk.
func TestAnEndThatCannotBeNoted(t *testing.T) {
	for _, tc := range []struct {
		verdict Verdict
		disk    bool
	}{
		{Verdict{StatusFailed, "its machine ended", wrenn.CauseVMM}, true},
		{Verdict{StatusStopped, "not used for 1m0s", wrenn.CauseTimeout}, false},
	} {
		t.Run(string(tc.verdict.Status), func(t *testing.T) {
			s, machine := newRunning(t)
			disk, restore := s.instance.Disk(), hide(t, s.dir())
			if err := (locked{s}).end(t.Context(), tc.verdict); err == nil || !machine.stopped {
				t.Errorf("end() = %v, stopped: %v; want an error, and no machine", err, machine.stopped)
			}
			restore()
			if err := (locked{s}).finishEnding(t.Context()); err != nil {
				t.Errorf("finishEnding() = %v", err)
			}
			if info := s.Info(); info.Status != tc.verdict.Status || info.Reason != tc.verdict.Reason || info.EndCause != tc.verdict.Cause {
				t.Errorf("the sandbox is %+v, want %+v", info, tc.verdict)
			}
			if _, err := os.Stat(disk); (err == nil) != tc.disk {
				t.Errorf("disk: %v, want it kept: %v", err, tc.disk)
			}
			if _, err := s.host.Get(s.id); err != nil {
				t.Error(err)
			}
		})
	}
}

// Who destroys a sandbox whose end could not be noted means all of it.
func TestDestroyAfterAnEndThatCannotBeNoted(t *testing.T) {
	s, _ := newRunning(t)
	restore := hide(t, s.dir())
	if err := (locked{s}).end(t.Context(), Verdict{StatusFailed, "its machine ended", wrenn.CauseVMM}); err == nil {
		t.Error("end() succeeded")
	}
	restore()
	if err := s.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its directory: %v, want it gone", err)
	}
}
