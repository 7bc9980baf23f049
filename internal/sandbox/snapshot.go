package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"wrenn"
	"wrenn/internal/durable"
	"wrenn/internal/envdclient"
	"wrenn/internal/rollback"
	"wrenn/internal/storage"
)

// The parts of a snapshot's directory.
const (
	snapshotMachine  = "machine"       // what the driver wrote
	snapshotDisk     = "root.ext4"     // the disk at the same moment
	snapshotManifest = "snapshot.json" // written last
)

// stagedPrefix begins the names of directories in which snapshots are made and
// unmade. No snapshot's name begins so.
const stagedPrefix = ".staged-"

var snapshotName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

type manifest struct {
	Format int   `json:"format"`
	Shape  Shape `json:"shape"`
}

// Snapshot keeps the sandbox's memory and disk as they are now under a new
// name, from which Restore makes sandboxes; the sandbox goes on. The snapshot
// is whole or not there. AlreadyExists when the name is taken.
func (s *Sandbox) Snapshot(ctx context.Context, name string) error {
	if !snapshotName.MatchString(name) {
		return wrenn.Errorf(wrenn.Invalid, "%.80q cannot name a snapshot: use a-z, 0-9 and -, up to 63", name)
	}
	final := filepath.Join(s.m.snapshots(), name)
	taken := wrenn.Errorf(wrenn.AlreadyExists, "snapshot %s is there already", name)
	if _, err := os.Lstat(final); err == nil {
		return taken
	}
	release, err := s.Use()
	if err != nil {
		return err
	}
	defer release()
	staged, err := os.MkdirTemp(s.m.snapshots(), stagedPrefix)
	if err != nil {
		return err
	}
	var undo rollback.Stack
	defer undo.Run(ctx)
	undo.Add(func(context.Context) error { return os.RemoveAll(staged) })
	if err := s.freezeInto(ctx, staged); err != nil {
		return fmt.Errorf("snapshot of sandbox %s: %w", s.id, err)
	}
	if err := writeManifest(staged, manifest{Format: 1, Shape: s.request.Shape}); err != nil {
		return err
	}
	if err := durable.Publish(staged, final); errors.Is(err, os.ErrExist) { // somebody was faster
		return taken
	} else if err != nil {
		return err
	}
	undo.Keep()
	return nil
}

// freezeInto stops the vCPUs while disk and memory are taken. The guest is
// synced first, so that the disk alone would boot as well.
func (s *Sandbox) freezeInto(ctx context.Context, dir string) (err error) {
	if err := s.sync(ctx); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	// Not the turn: a snapshot takes long, and a sandbox can be destroyed meanwhile.
	if err := s.freezing.take(ctx); err != nil {
		return err
	}
	defer s.freezing.give()
	if info := s.Info(); info.Status == StatusPaused { // meanwhile
		return info.refusal()
	}
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Run(ctx)) }()
	undo.Add(s.machine.Resume) // first: a Pause whose answer does not come may have worked
	if err := s.machine.Pause(ctx); err != nil {
		return err
	}
	if _, err := storage.Clone(ctx, filepath.Join(dir, snapshotDisk), s.disk(), 0o600); err != nil {
		return err
	}
	machine := filepath.Join(dir, snapshotMachine)
	if err := os.Mkdir(machine, 0o711); err != nil {
		return err
	}
	return s.machine.Snapshot(ctx, machine)
}

func (s *Sandbox) sync(ctx context.Context) error {
	res, err := s.guest.Exec(ctx, envdclient.Command{Path: "sync", User: "root"})
	if err == nil && res.Code != 0 {
		err = wrenn.Errorf(wrenn.FailedPrecondition, "the sandbox could not write its disk: %s: %.300q", res.Status, res.Stderr)
	}
	return err
}

// RemoveSnapshot deletes a snapshot. No sandbox that was restored from it may
// be left. NotFound when there is none. Its name is free at once; a crash in the
// middle leaves the rest to the next Open.
func (m *Manager) RemoveSnapshot(name string) error {
	dir, _, err := m.openSnapshot(name)
	if err != nil {
		return err
	}
	aside, err := os.MkdirTemp(m.snapshots(), stagedPrefix)
	if err != nil {
		return err
	}
	if err := os.Rename(dir, filepath.Join(aside, name)); err != nil {
		return errors.Join(err, os.Remove(aside))
	}
	return os.RemoveAll(aside)
}

func (m *Manager) openSnapshot(name string) (string, manifest, error) {
	var man manifest
	if !snapshotName.MatchString(name) {
		return "", man, wrenn.Errorf(wrenn.NotFound, "there is no snapshot %.80q", name)
	}
	dir := filepath.Join(m.snapshots(), name)
	data, err := os.ReadFile(filepath.Join(dir, snapshotManifest))
	if errors.Is(err, os.ErrNotExist) {
		return "", man, wrenn.Errorf(wrenn.NotFound, "there is no snapshot %q", name)
	}
	if err != nil {
		return "", man, err
	}
	if err := json.Unmarshal(data, &man); err != nil || man.Format != 1 {
		return "", man, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: fmt.Sprintf("snapshot %s cannot be read by this version", name), Err: err}
	}
	return dir, man, nil
}

func writeManifest(dir string, man manifest) error {
	data, err := json.Marshal(man)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, snapshotManifest), data, 0o600)
}
