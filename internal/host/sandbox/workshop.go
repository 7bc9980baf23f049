package sandbox

import (
	"context"
	"fmt"
	"log/slog"

	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/storage"
)

// Work boots a guest as Build does, and calls work with its sandbox. When Work
// returns nothing of the sandbox is left. Of the recipe it needs Size, DiskMiB, Guest, Env and Network.
func (m *Manager) Work(ctx context.Context, r Recipe, work func(context.Context, *Sandbox) error) error {
	guest := m.cfg.Guest
	if r.Guest != nil {
		guest = *r.Guest
	}
	req, err := r.request(guest)
	if err != nil {
		return err
	}
	s, err := m.create(ctx, req, m.guestSource(guest))
	if err != nil {
		return fmt.Errorf("boot the guest: %w", err)
	}
	defer func() {
		if err := s.Destroy(context.WithoutCancel(ctx)); err != nil {
			s.logError(ctx, slog.LevelError, "guest of a build cannot be removed", err)
		}
	}()
	release, err := s.Use(ctx)
	if err != nil {
		return err
	}
	defer release()
	return work(ctx, s)
}

// CloneDisk writes a copy of the running sandbox's disk as it is now to a new file,
// from which a guest can boot, and returns how it did; the sandbox continues. If it
// fails it leaves no file.
func (s *Sandbox) CloneDisk(ctx context.Context, path string) (how storage.Method, err error) {
	locked, err := s.lock(ctx, StatusRunning)
	if err != nil {
		return "", err
	}
	defer locked.unlock()
	err = locked.perform(ctx, operation{name: "clone of the disk"}, func(ctx context.Context, _ *rollback.Stack) (err error) {
		how, err = locked.cloneDisk(ctx, path)
		return err
	})
	return how, err
}

// cloneDisk stops the guest's processes with everything that they wrote on the
// disk, and the vCPUs, so that the kernel does not write either.
func (s locked) cloneDisk(ctx context.Context, path string) (how storage.Method, err error) {
	var restart rollback.Stack
	defer func() {
		if failed := restart.Run(ctx); err == nil {
			err = failed
		}
	}()
	if err := s.freeze(ctx, &restart, freezeNeeded); err != nil {
		return "", err
	}
	if err := s.stopCPUs(ctx); err != nil {
		return "", err
	}
	return storage.Clone(ctx, path, s.instance.Disk(), 0o400)
}

// SnapshotDisk returns the disk of a snapshot that Snapshot or Build has made, as
// something to boot, and the snapshot. It stays until release is called. NotFound
// as for KeptSnapshot.
func (m *Manager) SnapshotDisk(ctx context.Context, name string) (guest Guest, kept Kept, release func(), err error) {
	snap, release, err := m.loadNamed(ctx, name)
	if err != nil {
		return Guest{}, Kept{}, nil, err
	}
	guest = Guest{Name: snap.Guest, RootFS: snap.Disk(), Kernel: m.cfg.Guest.Kernel}
	if kept, err = keptOf(snap); err != nil {
		release()
		return Guest{}, Kept{}, nil, err
	}
	return guest, kept, release, nil
}

// BaseGuest returns what sandboxes boot without a template.
func (m *Manager) BaseGuest() Guest { return m.cfg.Guest }
