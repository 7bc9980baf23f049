package sandbox

import (
	"context"
	"fmt"
	"log/slog"

	"wrenn"
	"wrenn/internal/envdclient"
	"wrenn/internal/host/sandbox/journal"
	"wrenn/internal/snapshot"
)

// Recipe is how a snapshot that sandboxes start from is made.
type Recipe struct {
	Name  string // of the snapshot
	Shape Shape
	// Guest boots; nil is the base guest. Its files may go when Build has returned.
	Guest *Guest
	// Env is for every command of the sandboxes that give none of their own.
	Env map[string]string
	// Prepare, if set, does in the guest what is to be done before the snapshot.
	// What it has started runs on in every sandbox.
	Prepare func(context.Context, *envdclient.Client) error
	// Note goes with the snapshot, see KeptSnapshot; some KiB at most.
	Note []byte
}

// Build boots a guest, has it prepared, and keeps it under a name, as Snapshot
// does; of the guest itself nothing is left. It counts as a sandbox meanwhile.
// AlreadyExists when the name is taken.
func (m *Manager) Build(ctx context.Context, r Recipe) (err error) {
	guest := m.cfg.Guest
	if r.Guest != nil {
		guest = *r.Guest
	}
	s, err := m.createNew(ctx, Request{ID: wrenn.NewSandboxID(), Template: journal.BuildTemplate, Shape: r.Shape, Env: r.Env}, m.boot(guest))
	if err != nil {
		return fmt.Errorf("boot the guest: %w", err)
	}
	defer func() {
		if destroyErr := s.Destroy(context.WithoutCancel(ctx)); destroyErr != nil {
			m.cfg.Log.LogAttrs(ctx, slog.LevelError, "the guest of a template cannot be removed", slog.String("sandbox", string(s.id)), slog.Any("err", destroyErr))
		}
	}()
	if r.Prepare != nil {
		if err := s.prepare(ctx, r.Prepare); err != nil {
			return err
		}
	}
	s.rehearse(ctx)
	return s.keep(ctx, r.Name, r.Note)
}

func (s *Sandbox) prepare(ctx context.Context, prepare func(context.Context, *envdclient.Client) error) error {
	release, err := s.Use(ctx)
	if err != nil {
		return err
	}
	defer release()
	return prepare(ctx, s.Guest())
}

// rehearse runs what sandboxes are used for, so that every machine that is made
// from the snapshot has it in memory, which it shares with the others, instead
// of reading it from its disk. What an image does not have is left out.
func (s *Sandbox) rehearse(ctx context.Context) {
	for _, argv := range [][]string{
		{"true"}, {"sh", "-c", "cat /dev/null"}, {"bash", "-c", "ls / >/dev/null"}, {"python3", "-c", "import json, os, sys"},
	} {
		if _, err := s.Guest().Exec(ctx, envdclient.Command{Path: argv[0], Args: argv[1:]}); err != nil {
			s.m.cfg.Log.LogAttrs(ctx, slog.LevelDebug, "the base guest cannot run a program", slog.String("program", argv[0]), slog.Any("err", err))
		}
	}
}

// Kept is a snapshot that Snapshot or Build has made.
type Kept struct {
	Shape Shape
	Bytes int64  // on the disk, shared ones included
	Note  []byte // of the Recipe
}

// KeptSnapshot says what the snapshot of a name is. NotFound when there is none, or
// it was removed and a sandbox still needs it; FailedPrecondition when it is damaged.
func (m *Manager) KeptSnapshot(ctx context.Context, name string) (Kept, error) {
	snap, release, err := m.loadKept(ctx, name)
	if err != nil {
		return Kept{}, err
	}
	defer release()
	return Kept{Shape{VCPUs: snap.VCPUs, MemoryMiB: snap.MemoryMiB}, snap.DataBytes(), snap.Metadata}, nil
}

// loadKept loads a snapshot by its name. NotFound also when it was removed.
func (m *Manager) loadKept(ctx context.Context, name string) (*snapshot.Snapshot, func(), error) {
	snap, release, err := m.snapshots.Load(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	if !snap.Pinned {
		release()
		return nil, nil, wrenn.Errorf(wrenn.NotFound, "snapshot %s was removed", name)
	}
	return snap, release, nil
}

// KeptSnapshots lists those that KeptSnapshot finds.
func (m *Manager) KeptSnapshots() []string { return m.snapshots.Pinned() }
