package sandbox

import (
	"context"
	"fmt"
	"log/slog"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/instance"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/storage"
)

// Work calls work with the sandbox of a guest that has just booted, or was restored from a
// snapshot of that moment: the base guest from that of its size, others from r.Booted. When
// Work returns nothing of the sandbox is left. Of the recipe it needs Size, DiskMiB, Guest,
// Booted, Env and Network.
func (m *Manager) Work(ctx context.Context, r Recipe, work func(context.Context, *Sandbox) error) error {
	guest := m.cfg.Guest
	if r.Guest != nil {
		guest = *r.Guest
	}
	req, err := r.request(guest)
	if err != nil {
		return err
	}
	from, boots := m.workSource(ctx, r, guest)
	s, err := m.create(ctx, req, from)
	if err != nil {
		return fmt.Errorf("start the guest: %w", err)
	}
	defer func() {
		if err := s.Destroy(context.WithoutCancel(ctx)); err != nil {
			s.logError(ctx, slog.LevelError, "guest of a build cannot be removed", err)
		}
	}()
	if boots && r.Booted != "" {
		if err := s.Snapshot(ctx, r.Booted); err != nil && wrenn.CodeOf(err) != wrenn.AlreadyExists { // of another build
			s.logError(ctx, slog.LevelWarn, "the guest of a build cannot be saved: the next one boots, too", err)
		}
	}
	release, err := s.Use(ctx)
	if err != nil {
		return err
	}
	defer release()
	return work(ctx, s)
}

// workSource is what the guest of Work is made from; boots reports whether it boots and has
// no better source.
func (m *Manager) workSource(ctx context.Context, r Recipe, guest Guest) (from instance.Source, boots bool) {
	if r.Guest == nil {
		return m.baseSource(ctx, r.Size), false
	}
	if r.Booted != "" {
		from, err := m.snapshotSource(ctx, r.Booted)
		if err == nil {
			return from, false
		}
		if wrenn.CodeOf(err) != wrenn.NotFound {
			m.logError(ctx, slog.LevelWarn, "snapshot of the guest of a build cannot be used; booting instead", err)
		}
	}
	return m.guestSource(guest), true
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
