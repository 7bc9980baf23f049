package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"wrenn"
	"wrenn/internal/envdclient"
	"wrenn/internal/network"
	"wrenn/internal/rollback"
	"wrenn/internal/storage"
	"wrenn/internal/vm"
)

// Sandbox is one running sandbox. Destroy it.
type Sandbox struct {
	id      wrenn.SandboxID
	m       *Manager
	shape   Shape
	journal *journal
	slot    *network.Slot
	machine vm.Machine
	guest   *envdclient.Client
}

// ID is the sandbox's name.
func (s *Sandbox) ID() wrenn.SandboxID { return s.id }

// Guest talks to the agent in the sandbox.
func (s *Sandbox) Guest() *envdclient.Client { return s.guest }

// Create boots a new sandbox and returns when its agent answered. When it
// fails nothing of the sandbox is left.
func (m *Manager) Create(ctx context.Context, id wrenn.SandboxID, shape Shape) (*Sandbox, error) {
	return m.launch(ctx, id, shape, m.cfg.Guest.RootFS, func(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
		spec.Kernel = m.cfg.Guest.Kernel
		return m.cfg.Driver.Start(ctx, spec)
	})
}

// Restore makes a new sandbox from the snapshot of the given name, and is
// otherwise like Create. NotFound when there is no such snapshot.
func (m *Manager) Restore(ctx context.Context, id wrenn.SandboxID, snapshot string) (*Sandbox, error) {
	dir, manifest, err := m.openSnapshot(snapshot)
	if err != nil {
		return nil, err
	}
	return m.launch(ctx, id, manifest.Shape, filepath.Join(dir, snapshotDisk), func(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
		return m.cfg.Driver.Restore(ctx, spec, filepath.Join(dir, snapshotMachine))
	})
}

// launch takes the steps that a booted and a restored sandbox share; start
// makes the machine.
func (m *Manager) launch(ctx context.Context, id wrenn.SandboxID, shape Shape, rootfs string, start func(context.Context, vm.Spec) (vm.Machine, error)) (*Sandbox, error) {
	s := &Sandbox{id: id, m: m, shape: shape}
	var undo rollback.Stack
	defer undo.Run(ctx)
	if err := os.Mkdir(s.dir(), 0o711); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil, wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s is there already", id)
		}
		return nil, err
	}
	s.journal = &journal{Format: journalFormat, ID: id, Created: time.Now().UTC(), path: filepath.Join(s.dir(), journalName)}
	undo.Add(s.Destroy)
	for _, step := range []struct {
		name step
		do   func(context.Context) error
	}{
		{stepSlot, s.takeSlot},
		{stepDisk, func(ctx context.Context) error { return s.cloneDisk(ctx, rootfs) }},
		{stepMachine, func(ctx context.Context) error { return s.startMachine(ctx, start) }},
		{stepReady, s.waitReady},
	} {
		began := time.Now()
		if err := s.journal.begin(step.name); err != nil {
			return nil, err
		}
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("sandbox %s: %s: %w", id, step.name, err)
		}
		s.trace(string(step.name), began)
	}
	if err := s.journal.begin(stepRunning); err != nil {
		return nil, err
	}
	undo.Keep()
	return s, nil
}

func (s *Sandbox) takeSlot(ctx context.Context) error {
	slot, err := s.m.cfg.Slots.Acquire(ctx, string(s.id))
	if err != nil {
		return err
	}
	s.slot = slot
	ref := slot.Ref()
	s.journal.Slot = &ref
	return s.journal.save()
}

func (s *Sandbox) cloneDisk(ctx context.Context, rootfs string) error {
	_, err := storage.Clone(ctx, s.disk(), rootfs, 0o600)
	return err
}

func (s *Sandbox) startMachine(ctx context.Context, start func(context.Context, vm.Spec) (vm.Machine, error)) error {
	if err := os.Mkdir(s.runDir(), 0o711); err != nil {
		return err
	}
	spec := vm.Spec{
		ID:        string(s.id),
		Dir:       s.runDir(),
		VCPUs:     s.shape.VCPUs,
		MemoryMiB: s.shape.MemoryMiB,
		Disks:     []vm.Disk{{Path: s.disk()}},
		Net:       vm.NIC{Namespace: s.slot.Namespace(), TAP: s.slot.TAP(), MAC: s.slot.MAC()},
	}
	if s.m.cfg.FirstUID != 0 {
		spec.UID = s.m.cfg.FirstUID + uint32(s.slot.Index())
		spec.GID = spec.UID
	}
	machine, err := start(ctx, spec)
	if err != nil {
		return err
	}
	s.machine = machine
	ref := machine.Ref()
	s.journal.Machine = &ref
	return s.journal.save()
}

// waitReady waits for the agent in the guest, then tells it the time and
// reseeds it: a restored guest is somebody new.
func (s *Sandbox) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.m.cfg.ReadyTimeout,
		wrenn.Errorf(wrenn.DeadlineExceeded, "the guest's agent did not answer within %s", s.m.cfg.ReadyTimeout))
	defer cancel()
	s.guest = envdclient.New(envdclient.Config{Dial: s.slot.DialContext, Address: network.EnvdAddress})
	if err := s.guest.WaitReady(ctx, s.machine.Wait); err != nil {
		return err
	}
	return s.guest.Init(ctx, envdclient.Init{})
}

// Destroy ends the sandbox and removes everything it had, as far as it can: an
// error of one part does not keep the others, and the journal stays until all
// of them are gone. Twice is allowed.
func (s *Sandbox) Destroy(ctx context.Context) error {
	if err := s.journal.begin(stepDestroy); errors.Is(err, os.ErrNotExist) {
		return nil // destroyed before
	}
	began := time.Now()
	if s.guest != nil {
		s.guest.Close()
	}
	var errs []error
	if s.machine != nil {
		errs = append(errs, s.machine.Stop(ctx))
	}
	if s.slot != nil {
		errs = append(errs, s.slot.Release(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", s.id, err)
	}
	if err := errors.Join(os.RemoveAll(s.runDir()), os.RemoveAll(s.dir())); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", s.id, err)
	}
	s.trace("destroy", began)
	return nil
}

func (s *Sandbox) trace(step string, began time.Time) {
	if s.m.cfg.Trace != nil {
		s.m.cfg.Trace(s.id, step, time.Since(began))
	}
}

func (s *Sandbox) dir() string    { return filepath.Join(s.m.sandboxes(), string(s.id)) }
func (s *Sandbox) runDir() string { return filepath.Join(s.m.machines(), string(s.id)) }
func (s *Sandbox) disk() string   { return filepath.Join(s.dir(), "root.ext4") }
