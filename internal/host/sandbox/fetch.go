package sandbox

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
	"wrenn.dev/internal/host/sandbox/instance"
	"wrenn.dev/internal/host/sandbox/journal"
)

// Fetch makes a paused sandbox from what another host has stored of it. One that was
// fetched from there already, or stored it, gets the epoch and stays as it is otherwise.
// FailedPrecondition when this host has no store, or what is stored cannot be used;
// NotFound when nothing is stored there; AlreadyExists when the sandbox exists otherwise;
// Exhausted when a limit does not allow another sandbox.
func (m *Manager) Fetch(ctx context.Context, id wrenn.SandboxID, from wrenn.StoredSandbox) (*Sandbox, error) {
	if !m.HasStore() {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "this host has no snapshot store: set store.url of its agent")
	}
	if err := m.fetching.Lock(ctx); err != nil { // its bandwidth is the same for one or many
		return nil, err
	}
	defer m.fetching.Unlock()
	if s, err := m.Get(id); err == nil {
		if s.Info().Stored.Key == from.Key {
			return s, s.place(ctx, from)
		}
		return nil, wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s exists already on this host, and is %s", id, s.Info().Status)
	}
	defer m.garbage.mark() // the base, or all of it after an error
	snap, state, release, err := m.archive.Fetch(ctx, string(from.Team), string(id), from.Key)
	if err != nil {
		return nil, err
	}
	defer release()
	return m.enterFetched(ctx, id, from, snap.ID, state)
}

// Export writes to w what another host needs to make the paused sandbox, and the store does
// not have; see Import. It ends when the sandbox is resumed or destroyed. FailedPrecondition
// when the sandbox cannot be stored, or has checkpoints that are not.
func (s *Sandbox) Export(ctx context.Context, w io.Writer) error {
	if err := s.CheckEpoch(ctx); err != nil {
		return err
	}
	j := s.journal.latest.Load()
	switch {
	case j == nil || s.Info().Status != StatusPaused:
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is not paused", s.id)
	case s.request.Team == "" || len(s.request.Volumes) > 0:
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s has volumes, or belongs to no team: it stays on its host", s.id)
	case slices.ContainsFunc(j.Checkpoints, func(c wrenn.Checkpoint) bool { return c.Stored.Key == "" }):
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s has checkpoints that are not stored yet, and would lose them", s.id)
	}
	state, err := j.Portable()
	if err != nil {
		return err
	}
	ctx, done := s.cancel.context(ctx)
	defer done()
	round, end := s.host.rounds.begin()
	defer end()
	return s.host.archive.Export(ctx, round, string(s.request.Team), string(s.id), j.Snapshot, state, w)
}

// Import makes a paused sandbox from what Export of another host has written, of at most so
// many bytes, and from the store. It is stored by this host then. Twice is allowed, with the
// same epoch and content; AlreadyExists when the sandbox exists otherwise.
func (m *Manager) Import(ctx context.Context, id wrenn.SandboxID, from wrenn.StoredSandbox, r io.Reader, most int64) (*Sandbox, error) {
	if err := m.fetching.Lock(ctx); err != nil {
		return nil, err
	}
	defer m.fetching.Unlock()
	existing, err := m.Get(id)
	if err == nil && !existing.isPausedAt(from.Epoch) {
		return nil, wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s exists already on this host, and is %s", id, existing.Info().Status)
	}
	defer m.garbage.mark() // the base, or all of it after an error
	snap, state, release, err := m.archive.Import(ctx, string(from.Team), string(id), r, most)
	if err != nil {
		return nil, err
	}
	defer release()
	if existing != nil {
		if j := existing.journal.latest.Load(); !existing.isPausedAt(from.Epoch) || j.Snapshot != snap { // of an earlier move, which ended halfway
			return nil, wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s exists already on this host, and is not as it was sent now", id)
		}
		return existing, nil
	}
	from.Key = "" // it is not stored
	return m.enterFetched(ctx, id, from, snap, state)
}

// isPausedAt reports whether the sandbox is paused and of that epoch.
func (s *Sandbox) isPausedAt(epoch wrenn.Epoch) bool {
	info := s.Info()
	return info.Status == StatusPaused && info.Epoch == epoch && epoch != 0
}

// enterFetched enters the sandbox of a snapshot that was fetched with its state.
func (m *Manager) enterFetched(ctx context.Context, id wrenn.SandboxID, from wrenn.StoredSandbox, snap string, state []byte) (*Sandbox, error) {
	dir := filepath.Join(m.sandboxesDir(), string(id))
	j, err := journal.ReadPortable(state, dir)
	if err != nil {
		return nil, err
	}
	if j.Snapshot != snap || j.Team != from.Team {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "what is stored of sandbox %s is of another snapshot or team", id)
	}
	if !m.registry.hasRoom(wrenn.Size{}) {
		return nil, wrenn.Errorf(wrenn.Exhausted, "this host is at a limit and cannot have sandbox %s", id)
	}
	return m.adoptFetched(ctx, j, dir, from)
}

// adoptFetched enters the sandbox of a fetched journal. The write of the journal makes it
// exist on this host.
func (m *Manager) adoptFetched(ctx context.Context, j *journal.Journal, dir string, from wrenn.StoredSandbox) (*Sandbox, error) {
	if err := os.Mkdir(dir, 0o711); err != nil {
		return nil, err
	}
	err := m.cfg.Hook.At("fetched: directory made")
	if err == nil {
		err = j.Commit(durable.WriteFile, func(j *journal.Journal) {
			j.Epoch = from.Epoch
			if from.Key == "" {
				return
			}
			j.Stored = &journal.Stored{Snapshot: j.Snapshot, Stored: wrenn.StoredNow(from.Key)}
			if i := j.Checkpoint(wrenn.CheckpointID(j.Snapshot)); i >= 0 { // what was fetched is a checkpoint
				j.Checkpoints = slices.Clone(j.Checkpoints)
				j.Checkpoints[i].Stored = j.Stored.Stored
			}
		})
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s := revive(&m.host, j)
	s.state.set(StatusPaused, "")
	s.log(ctx, slog.LevelInfo, "sandbox fetched", slog.String("snapshot", j.Snapshot), slog.Bool("stored", from.Key != ""))
	m.uploads.wake.Notify()
	return s, nil
}

// place gives a paused sandbox that this host has already the epoch of another placement.
// AlreadyExists when it is not as it is stored any more.
func (s *Sandbox) place(ctx context.Context, from wrenn.StoredSandbox) error {
	locked, err := s.lock(ctx, StatusPaused)
	if err != nil {
		return err
	}
	defer locked.unlock()
	if s.journal.stored().Key != from.Key {
		return wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s exists already on this host, and has been used since it was stored", s.id)
	}
	return locked.setEpoch(from.Epoch, 0)
}

// EnsureCopy is Ensure for a sandbox of the team that is made from a stored checkpoint of
// another one. The guest has the environment of that one. FailedPrecondition when this host
// has no store, or what is stored cannot be used; NotFound when nothing is stored there.
func (m *Manager) EnsureCopy(ctx context.Context, id wrenn.SandboxID, spec wrenn.SandboxSpec, from wrenn.CheckpointSource) (*Sandbox, error) {
	if !m.HasStore() {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "this host has no snapshot store: set store.url of its agent")
	}
	spec.Env, spec.Size = nil, spec.OrDefault()
	return m.ensure(ctx, request{id: id, parent: from.Sandbox, SandboxSpec: spec}, func(ctx context.Context) (instance.Source, error) {
		return m.storedSource(ctx, spec, from)
	})
}

// storedSource is the source of sandboxes that are made from a stored checkpoint.
func (m *Manager) storedSource(ctx context.Context, spec wrenn.SandboxSpec, from wrenn.CheckpointSource) (instance.Source, error) {
	if err := m.fetching.Lock(ctx); err != nil {
		return instance.Source{}, err
	}
	defer m.fetching.Unlock()
	defer m.garbage.mark() // the base, or all of it after an error
	snap, _, release, err := m.archive.Fetch(ctx, string(spec.Team), string(from.Sandbox), from.Key)
	if err != nil {
		return instance.Source{}, err
	}
	size := wrenn.Size{VCPUs: snap.VCPUs, MemoryMiB: snap.MemoryMiB}
	if snap.ID != string(from.Checkpoint) || size != spec.Size {
		release()
		return instance.Source{}, wrenn.Errorf(wrenn.FailedPrecondition, "what is stored of checkpoint %.80q is of another one, or of another size", from.Checkpoint)
	}
	return m.loadedSource(snap, release)
}
