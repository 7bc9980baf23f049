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

// Sandbox is one running sandbox. Destroy it. It is safe for concurrent use.
type Sandbox struct {
	id      wrenn.SandboxID
	m       *Manager
	shape   Shape
	journal *journal
	slot    *network.Slot
	machine vm.Machine
	guest   *envdclient.Client

	freezing   turn // whoever pauses the machine
	destroying turn // not for who freezes too: a guest must not be able to delay its end
	destroyed  bool // guarded by destroying
}

// turn is a lock that can be waited for with a context. It holds one.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t turn) give() { <-t }

// starter makes a machine, by booting or restoring it.
type starter func(context.Context, vm.Spec) (vm.Machine, error)

// ID is the sandbox's name.
func (s *Sandbox) ID() wrenn.SandboxID { return s.id }

// Guest talks to the agent in the sandbox.
func (s *Sandbox) Guest() *envdclient.Client { return s.guest }

// Create boots a new sandbox and returns when its agent answered. When it
// fails nothing of the sandbox is left, or the error says what is and why; the
// next Open removes that. Invalid for a malformed id, AlreadyExists when there is such a sandbox.
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

// launch takes the steps that a booted and a restored sandbox share.
func (m *Manager) launch(ctx context.Context, id wrenn.SandboxID, shape Shape, rootfs string, start starter) (_ *Sandbox, err error) {
	s, err := m.enter(id, shape)
	if err != nil {
		return nil, err
	}
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Run(ctx)) }()
	undo.Add(s.Destroy)
	for _, p := range s.parts(rootfs, start) {
		if err := s.add(ctx, p); err != nil {
			return nil, fmt.Errorf("sandbox %s: %s: %w", id, p.step, err)
		}
	}
	if err := s.journal.begin(stepRunning); err != nil {
		return nil, err
	}
	undo.Keep()
	return s, nil
}

// enter makes the directory of a new sandbox, which is its hold on the id.
func (m *Manager) enter(id wrenn.SandboxID, shape Shape) (*Sandbox, error) {
	if _, err := wrenn.ParseSandboxID(string(id)); err != nil {
		return nil, err
	}
	s := newSandbox(m, id)
	s.shape = shape
	if err := os.Mkdir(s.dir(), 0o711); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil, wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s is there already", id)
		}
		return nil, err
	}
	s.journal = &journal{Format: journalFormat, ID: id, Created: time.Now().UTC(), path: filepath.Join(s.dir(), journalName)}
	return s, nil
}

func newSandbox(m *Manager, id wrenn.SandboxID) *Sandbox {
	return &Sandbox{id: id, m: m, freezing: newTurn(), destroying: newTurn()}
}

// part is something that a sandbox is made of.
type part struct {
	step step
	make func(context.Context) error
}

// parts are those of a sandbox, in order.
func (s *Sandbox) parts(rootfs string, start starter) []part {
	return []part{
		{stepSlot, s.takeSlot},
		{stepDisk, func(ctx context.Context) error { return s.cloneDisk(ctx, rootfs) }},
		{stepMachine, func(ctx context.Context) error { return s.startMachine(ctx, start) }},
		{stepReady, s.waitReady},
	}
}

// add makes a part; the journal knows before.
func (s *Sandbox) add(ctx context.Context, p part) error {
	began := time.Now()
	if err := s.journal.begin(p.step); err != nil {
		return err
	}
	if err := p.make(ctx); err != nil {
		return err
	}
	s.trace(string(p.step), began)
	return nil
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

func (s *Sandbox) startMachine(ctx context.Context, start starter) error {
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
	if err := s.guest.Init(ctx, envdclient.Init{}); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return err
	}
	return nil
}

// Destroy ends the sandbox and removes everything it had. After an error the
// rest and the journal are still there: Destroy again, or the next Open, goes on
// with it. Twice is allowed, also when the id has another owner by then.
func (s *Sandbox) Destroy(ctx context.Context) error {
	if err := s.destroying.take(ctx); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", s.id, err)
	}
	defer s.destroying.give()
	if s.destroyed {
		return nil
	}
	began := time.Now()
	_ = s.journal.begin(stepDestroy) // for people; a full disk must not keep the sandbox alive
	if err := s.dismantle(ctx); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", s.id, err)
	}
	s.destroyed = true
	s.trace("destroy", began)
	return nil
}

// dismantle takes the parts away, last made first, and the journal with the
// last. Each rests on the one before: a slot whose machine may still run must
// not get to another sandbox.
func (s *Sandbox) dismantle(ctx context.Context) error {
	if s.guest != nil {
		s.guest.Close()
	}
	if s.machine != nil {
		if err := s.machine.Stop(ctx); err != nil {
			return err
		}
	}
	if s.slot != nil {
		if err := s.slot.Release(ctx); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(s.runDir()); err != nil {
		return err
	}
	return os.RemoveAll(s.dir())
}

func (s *Sandbox) trace(step string, began time.Time) {
	if s.m.cfg.Trace != nil {
		s.m.cfg.Trace(s.id, step, time.Since(began))
	}
}

func (s *Sandbox) dir() string    { return filepath.Join(s.m.sandboxes(), string(s.id)) }
func (s *Sandbox) runDir() string { return filepath.Join(s.m.machines(), string(s.id)) }
func (s *Sandbox) disk() string   { return filepath.Join(s.dir(), "root.ext4") }
