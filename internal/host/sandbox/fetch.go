package sandbox

import (
	"context"
	"errors"
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
	snap, state, release, err := m.archive.Fetch(ctx, string(from.Team), string(id), from.Key)
	if err != nil {
		return nil, err
	}
	defer release()
	defer m.garbage.mark() // the base, or all of it after an error
	dir := filepath.Join(m.sandboxesDir(), string(id))
	j, err := journal.ReadPortable(state, dir)
	if err != nil {
		return nil, err
	}
	if j.Snapshot != snap.ID || j.Team != from.Team {
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
			j.Stored = &journal.Stored{Snapshot: j.Snapshot, Stored: wrenn.StoredNow(from.Key)}
			j.Epoch = from.Epoch
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
	s.log(ctx, slog.LevelInfo, "sandbox fetched from the snapshot store", slog.String("snapshot", j.Snapshot))
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
