//go:build root

package sandbox

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/objects/objectstest"
	"wrenn.dev/internal/testkit"
)

const team = wrenn.TeamID("0b0c7c1e-8d0f-4f6e-9d5e-1f1f4d7c2a11")

// storedLab is a lab with a store that may fail, and the spec of sandboxes that are stored.
func storedLab(t *testing.T, s objects.Store) (*lab, wrenn.SandboxSpec) {
	t.Helper()
	l := newLab(t)
	l.cfg.Objects = s
	return l, wrenn.SandboxSpec{Size: small, Team: team}
}

func newObjects(t *testing.T) *objectstest.Faulty {
	t.Helper()
	dir, err := objects.OpenDir(t.TempDir())
	must(t, err)
	return objectstest.NewFaulty(dir)
}

func waitStored(t *testing.T, sb *Sandbox) wrenn.Stored {
	t.Helper()
	testkit.WaitUntil(t, "the sandbox is stored", func() bool { return sb.Info().Stored.Key != "" })
	return sb.Info().Stored
}

// TestResumeOnAnotherHost pauses on one host, whose state is deleted then, and resumes
// on another one: memory and disk are as they were.
func TestResumeOnAnotherHost(t *testing.T) {
	s := newObjects(t)
	a, spec := storedLab(t, s)
	m := a.open(t)
	must(t, m.Warm(t.Context(), small))
	sb := ensure(t, m, spec)
	must(t, a.mark(t.Context(), sb, 'x'))
	must(t, sb.Pause(t.Context()))
	if sb.Info().Stored != (wrenn.Stored{}) || m.StoreStats().Waiting != 1 {
		t.Errorf("before the upload: %+v, %+v", sb.Info().Stored, m.StoreStats())
	}
	stop := running(t, m)
	stored := waitStored(t, sb)
	testkit.WaitUntil(t, "the upload is counted", func() bool { return m.StoreStats().Done == 1 })
	stop()
	if stats := m.StoreStats(); stats.Waiting != 0 || stats.Sent == 0 || stats.Failed != 0 {
		t.Errorf("%+v", stats)
	}
	must(t, sb.Destroy(t.Context()))
	m.Close()
	must(t, os.RemoveAll(a.cfg.StateDir))

	b, _ := storedLab(t, s)
	b.cfg.Adopt = true
	other := b.open(t)
	t.Cleanup(other.Close)
	for range 2 { // twice is allowed
		_, err := other.Fetch(t.Context(), sb.ID(), wrenn.StoredSandbox{Team: team, Key: stored.Key})
		must(t, err)
	}
	got, err := other.Get(sb.ID())
	must(t, err)
	destroyLater(t, got)
	wantStatus(t, got, StatusPaused, "")
	if got.Info().Stored.Key != stored.Key || got.Info().Size != small {
		t.Errorf("%+v", got.Info())
	}
	other.Close()
	b.crash(t)
	other = b.open(t) // as the next agent finds it
	got, err = other.Get(sb.ID())
	must(t, err)
	must(t, got.Resume(t.Context()))
	wantAlive(t, got)
	b.wantMark(t, got, 'x')
	if got.Info().Stored != (wrenn.Stored{}) {
		t.Errorf("it runs, and is stored: %+v", got.Info().Stored)
	}
	_, err = other.Fetch(t.Context(), sb.ID(), wrenn.StoredSandbox{Team: team, Key: stored.Key})
	testkit.WantCode(t, err, wrenn.AlreadyExists, "running")
	must(t, got.Destroy(t.Context()))
	must(t, other.Collect(t.Context()))
	wantSnapshots(t, other)
	b.wantClean(t, other)
}

// running runs the manager until stop, or the end of the test.
func running(t *testing.T, m *Manager) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			must(t, <-done)
		}
	}
	t.Cleanup(stop)
	return stop
}

// TestStoreThatFails: pauses and resumes work while nothing can be stored; the next agent
// stores what this one could not.
func TestStoreThatFails(t *testing.T) {
	s := newObjects(t)
	s.Set(objectstest.Faults{Before: func(context.Context, string, string) error { return wrenn.Errorf(wrenn.Exhausted, "the store is full") }})
	l, spec := storedLab(t, s)
	l.cfg.Adopt = true
	m := l.open(t)
	stop := running(t, m)
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), spec)
	must(t, err)
	must(t, sb.Pause(t.Context()))
	testkit.WaitUntil(t, "an upload has failed", func() bool { return m.StoreStats().Failed > 0 })
	must(t, sb.Resume(t.Context()))
	must(t, sb.Pause(t.Context()))
	stop()
	m.Close()
	l.crash(t)
	s.Set(objectstest.Faults{})
	m = l.open(t)
	t.Cleanup(m.Close)
	running(t, m)
	sb, err = m.Get(sb.ID())
	must(t, err)
	destroyLater(t, sb)
	waitStored(t, sb)
}

// TestResumeEndsAnUpload: a resume, and a destroy, do not wait for an upload that hangs.
func TestResumeEndsAnUpload(t *testing.T) {
	s := newObjects(t)
	hung := make(chan struct{}, 100)
	s.Set(objectstest.Faults{Before: func(ctx context.Context, method, _ string) error {
		hung <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	}})
	l, spec := storedLab(t, s)
	m := l.open(t)
	t.Cleanup(m.Close)
	running(t, m)
	sb := ensure(t, m, spec)
	must(t, sb.Pause(t.Context()))
	<-hung
	must(t, sb.Resume(t.Context()))
	wantAlive(t, sb)
	must(t, sb.Pause(t.Context()))
	<-hung
	must(t, sb.Destroy(t.Context()))
	if n := m.StoreStats(); n.Failed != 0 || n.Done != 0 {
		t.Errorf("%+v", n)
	}
}

// TestFetchRefuses: what is stored is another team's, another sandbox's, damaged or gone.
func TestFetchRefuses(t *testing.T) {
	dir := t.TempDir()
	s, err := objects.OpenDir(dir)
	must(t, err)
	l, spec := storedLab(t, s)
	m := l.open(t)
	t.Cleanup(m.Close)
	stop := running(t, m)
	sb := ensure(t, m, spec)
	must(t, sb.Pause(t.Context()))
	stored := waitStored(t, sb)
	stop()
	must(t, sb.Destroy(t.Context()))
	must(t, m.Collect(t.Context()))
	fetch := func(id wrenn.SandboxID, from wrenn.StoredSandbox) error {
		_, err := m.Fetch(t.Context(), id, from)
		return err
	}
	other := wrenn.TeamID(strings.Repeat("1", 36))
	testkit.WantCode(t, fetch(sb.ID(), wrenn.StoredSandbox{Team: other, Key: stored.Key}), wrenn.FailedPrecondition, "team")
	testkit.WantCode(t, fetch(wrenn.NewSandboxID(), wrenn.StoredSandbox{Team: team, Key: stored.Key}), wrenn.FailedPrecondition, "of sandbox")
	must(t, os.WriteFile(filepath.Join(dir, stored.Key), []byte("{}"), 0o600))
	testkit.WantCode(t, fetch(sb.ID(), wrenn.StoredSandbox{Team: team, Key: stored.Key}), wrenn.FailedPrecondition, "damaged")
	must(t, os.Remove(filepath.Join(dir, stored.Key)))
	testkit.WantCode(t, fetch(sb.ID(), wrenn.StoredSandbox{Team: team, Key: stored.Key}), wrenn.NotFound)
	m.cfg.Objects = nil
	testkit.WantCode(t, fetch(sb.ID(), wrenn.StoredSandbox{Team: team, Key: stored.Key}), wrenn.FailedPrecondition, "store.url")
	wantSnapshots(t, m)
	l.wantClean(t, m)
}

// TestHold: the use of a held sandbox does not resume it, also after a restart of the
// agent; a resume does, and ends that. What another host fetches is not held.
func TestHold(t *testing.T) {
	s := newObjects(t)
	l, spec := storedLab(t, s)
	l.cfg.Adopt = true
	spec.AutoResume = true
	m := l.open(t)
	stop := running(t, m)
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), spec)
	must(t, err)
	refused := func(sb *Sandbox) {
		t.Helper()
		_, err := sb.Use(t.Context())
		testkit.WantCode(t, err, wrenn.Unavailable, "is being moved to another host")
		wantStatus(t, sb, StatusPaused, "")
	}
	use := func(sb *Sandbox) {
		t.Helper()
		release, err := sb.Use(t.Context())
		must(t, err)
		release()
	}
	must(t, sb.PauseBy(t.Context(), wrenn.PauseOptions{Hold: true}))
	refused(sb)
	must(t, sb.Resume(t.Context()))
	use(sb)
	must(t, sb.Pause(t.Context()))
	use(sb)
	must(t, sb.Pause(t.Context()))
	must(t, sb.PauseBy(t.Context(), wrenn.PauseOptions{Hold: true})) // it is paused already
	refused(sb)
	stored := waitStored(t, sb)
	stop()
	m.Close()
	l.crash(t)
	m = l.open(t)
	t.Cleanup(m.Close)
	sb, err = m.Get(sb.ID())
	must(t, err)
	refused(sb)

	other, _ := storedLab(t, s)
	b := other.open(t)
	t.Cleanup(b.Close)
	copied, err := b.Fetch(t.Context(), sb.ID(), wrenn.StoredSandbox{Team: team, Key: stored.Key})
	must(t, err)
	must(t, sb.Destroy(t.Context()))
	use(copied)
	must(t, copied.Destroy(t.Context()))
}

// TestCheckpointsOnAnotherHost: checkpoints are stored, also of a sandbox that runs, and
// come with it to another host, which fetches them when they are used.
func TestCheckpointsOnAnotherHost(t *testing.T) {
	s := newObjects(t)
	a, spec := storedLab(t, s)
	a.cfg.Adopt = true
	m := a.open(t)
	must(t, m.Warm(t.Context(), small))
	sb := ensure(t, m, spec)
	must(t, a.mark(t.Context(), sb, 'x'))
	first, err := sb.Checkpoint(t.Context(), "first", "")
	must(t, err)
	gone, err := sb.Checkpoint(t.Context(), "gone", "")
	must(t, err)
	must(t, a.mark(t.Context(), sb, 'y'))
	stop := running(t, m)
	isStored := func(of *Sandbox, want int) {
		t.Helper()
		testkit.WaitUntil(t, "the checkpoints are stored", func() bool {
			list := of.Checkpoints().List
			return len(list) == want && !slices.ContainsFunc(list, func(c wrenn.Checkpoint) bool { return c.Stored.Key == "" })
		})
	}
	isStored(sb, 2)
	must(t, sb.Pause(t.Context()))
	waitStored(t, sb)
	must(t, sb.DeleteCheckpoint(t.Context(), gone.ID)) // what is stored has it
	testkit.WaitUntil(t, "it is stored without that", func() bool {
		return sb.Info().Stored.Key != "" && m.StoreStats().Waiting == 0
	})
	stored := waitStored(t, sb)
	stop()

	b, _ := storedLab(t, s)
	other := b.open(t)
	t.Cleanup(other.Close)
	got, err := other.Fetch(t.Context(), sb.ID(), wrenn.StoredSandbox{Team: team, Key: stored.Key})
	must(t, err)
	destroyLater(t, got)
	if all := got.Checkpoints(); len(all.List) != 1 || all.List[0].ID != first.ID || all.Head != first.ID {
		t.Errorf("the sandbox came with %+v, %s", all.List, all.Head)
	}
	must(t, got.Resume(t.Context()))
	b.wantMark(t, got, 'y')
	must(t, got.RestoreCheckpoint(t.Context(), first.ID))
	wantAlive(t, got)
	b.wantMark(t, got, 'x')
	copies, err := got.ForkBy(t.Context(), wrenn.ForkSpec{IDs: []wrenn.SandboxID{wrenn.NewSandboxID()}, Checkpoint: first.ID})
	must(t, err)
	must(t, copies[0].Err)
	b.wantMark(t, copies[0].Sandbox, 'x')
	must(t, copies[0].Sandbox.Destroy(t.Context()))
	must(t, sb.Destroy(t.Context()))
	m.Close()
}

// TestCheckpointThatIsDamaged does not keep its sandbox from being stored.
func TestCheckpointThatIsDamaged(t *testing.T) {
	l, spec := storedLab(t, newObjects(t))
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := ensure(t, m, spec)
	_, err := sb.Checkpoint(t.Context(), "first", "")
	must(t, err)
	must(t, os.Remove(filepath.Join(l.cfg.StateDir, "snapshots", "first", "snapshot.json")))
	must(t, sb.Pause(t.Context()))
	running(t, m)
	waitStored(t, sb)
	if list := sb.Checkpoints().List; len(list) != 1 || list[0].Stored.Key != "" {
		t.Errorf("%+v", list)
	}
}

// TestCopyOfAStoredCheckpoint: a host that never had the sandbox makes copies of its stored
// checkpoint, each with its own identity, and none of what is not that checkpoint.
func TestCopyOfAStoredCheckpoint(t *testing.T) {
	s := newObjects(t)
	a, spec := storedLab(t, s)
	m := a.open(t)
	t.Cleanup(m.Close)
	running(t, m)
	sb := ensure(t, m, spec)
	must(t, a.mark(t.Context(), sb, 'x'))
	cp, err := sb.Checkpoint(t.Context(), "", "")
	must(t, err)
	must(t, a.mark(t.Context(), sb, 'y'))
	var stored wrenn.Stored
	testkit.WaitUntil(t, "the checkpoint is stored", func() bool {
		list := sb.Checkpoints().List
		stored = list[0].Stored
		return stored.Key != ""
	})
	from := wrenn.CheckpointSource{Sandbox: sb.ID(), Checkpoint: cp.ID, Key: stored.Key}

	b, _ := storedLab(t, s)
	other := b.open(t)
	t.Cleanup(other.Close)
	for range 2 {
		id := wrenn.NewSandboxID()
		var got *Sandbox
		for range 2 { // twice is allowed
			got, err = other.EnsureCopy(t.Context(), id, spec, from)
			must(t, err)
		}
		destroyLater(t, got)
		wantAlive(t, got)
		b.wantMark(t, got, 'x')
		if list := got.Checkpoints().List; got.ID() != id || got.Info().Size != small || len(list) != 0 {
			t.Errorf("%+v, checkpoints %v", got.Info(), list)
		}
	}
	for _, wrong := range []wrenn.CheckpointSource{{Sandbox: wrenn.NewSandboxID(), Checkpoint: cp.ID, Key: stored.Key}, {Sandbox: sb.ID(), Checkpoint: "other", Key: stored.Key}, {Sandbox: sb.ID(), Checkpoint: cp.ID}} {
		_, err = other.EnsureCopy(t.Context(), wrenn.NewSandboxID(), spec, wrong)
		testkit.WantCode(t, err, wrenn.FailedPrecondition)
	}
	if n := len(other.Inventory().Sandboxes); n != 2 {
		t.Errorf("the host has %d sandboxes", n)
	}
}

// TestExportToAnotherHost: a paused sandbox that cannot be stored comes to another host as it
// was, which stores it when that works again.
func TestExportToAnotherHost(t *testing.T) {
	s := newObjects(t)
	s.Set(objectstest.Faults{Before: func(context.Context, string, string) error { return wrenn.Errorf(wrenn.Exhausted, "the store is full") }})
	a, spec := storedLab(t, s)
	m := a.open(t)
	t.Cleanup(m.Close)
	must(t, m.Warm(t.Context(), small))
	spec.Epoch = 1
	sb := ensure(t, m, spec)
	must(t, a.mark(t.Context(), sb, 'x'))
	var sent bytes.Buffer
	testkit.WantCode(t, sb.Export(t.Context(), &sent), wrenn.FailedPrecondition, "not paused")
	must(t, sb.Pause(t.Context()))
	must(t, sb.Export(t.Context(), &sent))
	testkit.WantCode(t, sb.Export(WithEpoch(t.Context(), 7), &sent), wrenn.Unavailable)

	b, _ := storedLab(t, s)
	other := b.open(t)
	t.Cleanup(other.Close)
	as := wrenn.StoredSandbox{Team: team, Epoch: 2}
	cut := bytes.NewReader(sent.Bytes()[:sent.Len()/2])
	if _, err := other.Import(t.Context(), sb.ID(), as, cut, 1<<30); err == nil {
		t.Error("half of it was accepted")
	}
	if _, err := other.Get(sb.ID()); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("after half of it: %v", err)
	}
	var got *Sandbox
	for range 2 { // twice is allowed
		var err error
		got, err = other.Import(t.Context(), sb.ID(), as, bytes.NewReader(sent.Bytes()), 1<<30)
		must(t, err)
	}
	destroyLater(t, got)
	must(t, sb.Resume(t.Context())) // as after a move that ended before its row was written
	must(t, sb.Pause(t.Context()))
	var later bytes.Buffer
	must(t, sb.Export(t.Context(), &later))
	_, err := other.Import(t.Context(), sb.ID(), as, &later, 1<<30)
	testkit.WantCode(t, err, wrenn.AlreadyExists, "not as it was sent now")
	wantStatus(t, got, StatusPaused, "")
	if info := got.Info(); info.Stored != (wrenn.Stored{}) || info.Epoch != 2 || info.Size != small {
		t.Errorf("%+v", info)
	}
	s.Set(objectstest.Faults{})
	running(t, other)
	waitStored(t, got)
	must(t, got.Resume(t.Context()))
	wantAlive(t, got)
	b.wantMark(t, got, 'x')
	wantStatus(t, sb, StatusPaused, "") // as it was
	_, err = sb.Checkpoint(t.Context(), "", "")
	testkit.WantCode(t, err, wrenn.FailedPrecondition)
	must(t, sb.Resume(t.Context()))
	_, err = sb.Checkpoint(t.Context(), "", "")
	must(t, err)
	must(t, sb.Pause(t.Context()))
	testkit.WantCode(t, sb.Export(t.Context(), &sent), wrenn.FailedPrecondition, "checkpoints that are not stored")
}
