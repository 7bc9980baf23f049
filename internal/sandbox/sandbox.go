package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"wrenn"
	"wrenn/internal/envdclient"
	"wrenn/internal/network"
	"wrenn/internal/rollback"
	"wrenn/internal/storage"
	"wrenn/internal/vm"
)

// Sandbox is one sandbox. Destroy it. Its methods are safe for concurrent use.
type Sandbox struct {
	id      wrenn.SandboxID
	m       *Manager
	request Request
	made    chan struct{} // closed when the launch has ended, well or not

	freezing turn // who pauses and resumes the machine
	turn     turn // who has it may change the next four; taken before freezing
	journal  *journal
	slot     *network.Slot
	machine  vm.Machine
	unwatch  context.CancelFunc // stops the watcher; nil when there is none

	guest *envdclient.Client // set before the sandbox runs

	mu       sync.Mutex // guards the following
	life     life
	unwanted bool                    // somebody destroys it
	abort    context.CancelCauseFunc // ends what is going on in the turn; may be nil
}

// Request is what sandbox is wanted.
type Request struct {
	ID       wrenn.SandboxID
	Template string
	Shape    Shape
	// Timeout is the time without use after which the sandbox ends; 0 is never.
	Timeout time.Duration
	// Env is for every command of the sandbox. It is kept in the guest alone.
	Env map[string]string
}

// ID is the sandbox's name.
func (s *Sandbox) ID() wrenn.SandboxID { return s.id }

// Guest talks to the agent in the sandbox. Hold a Use meanwhile.
func (s *Sandbox) Guest() *envdclient.Client { return s.guest }

// Create boots a new sandbox and returns when its agent answered. When it
// fails nothing of the sandbox is left, or the error says what is and why: Run
// tries again to remove that. Invalid for a malformed id, AlreadyExists when it is taken.
func (m *Manager) Create(ctx context.Context, id wrenn.SandboxID, shape Shape) (*Sandbox, error) {
	return m.createNew(ctx, Request{ID: id, Shape: shape}, m.boot())
}

// Restore makes a new sandbox from the snapshot of the given name, and is
// otherwise like Create. NotFound when there is no such snapshot.
func (m *Manager) Restore(ctx context.Context, id wrenn.SandboxID, snapshot string) (*Sandbox, error) {
	origin, shape, err := m.restoration(snapshot)
	if err != nil {
		return nil, err
	}
	return m.createNew(ctx, Request{ID: id, Shape: shape}, origin)
}

func (m *Manager) createNew(ctx context.Context, req Request, from origin) (*Sandbox, error) {
	s, isNew, err := m.register(req)
	switch {
	case err != nil:
		return nil, err
	case !isNew:
		return nil, wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s is there already", req.ID)
	}
	if err := s.launch(ctx, from); err != nil {
		return nil, err
	}
	return s, nil
}

// origin is what a sandbox is made from.
type origin struct {
	rootfs string // cloned
	start  starter
}

// starter makes a machine, by booting or restoring it.
type starter func(context.Context, vm.Spec) (vm.Machine, error)

// boot is the origin of sandboxes that boot the guest image.
func (m *Manager) boot() origin {
	return origin{m.cfg.Guest.RootFS, func(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
		spec.Kernel = m.cfg.Guest.Kernel
		return m.cfg.Driver.Start(ctx, spec)
	}}
}

// restoration is the origin of sandboxes that a snapshot holds, and their shape.
func (m *Manager) restoration(snapshot string) (origin, Shape, error) {
	dir, manifest, err := m.openSnapshot(snapshot)
	if err != nil {
		return origin{}, Shape{}, err
	}
	return origin{filepath.Join(dir, snapshotDisk), func(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
		return m.cfg.Driver.Restore(ctx, spec, filepath.Join(dir, snapshotMachine))
	}}, manifest.Shape, nil
}

// launch makes a registered sandbox, whose turn the caller has, and gives the
// turn back. Who destroys the sandbox meanwhile ends it.
func (s *Sandbox) launch(ctx context.Context, from origin) error {
	defer s.unlock()
	defer close(s.made)
	ctx, done := s.interruptible(ctx)
	defer done()
	if err := s.assemble(ctx, from); err != nil {
		return err
	}
	s.watch(ctx)
	s.set(StatusRunning, "")
	return nil
}

// abortBy sets how what is going on is given up, which it is at once if
// somebody wants that already.
func (s *Sandbox) abortBy(cancel context.CancelCauseFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.abort = cancel
	if s.unwanted && cancel != nil {
		cancel(errDestroyed)
	}
}

// giveUp ends what is going on, now and from now on.
func (s *Sandbox) giveUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unwanted = true
	if s.abort != nil {
		s.abort(errDestroyed)
	}
}

// assemble takes the steps that a booted and a restored sandbox share. When it
// fails it undoes them, and the sandbox is forgotten unless that fails too.
func (s *Sandbox) assemble(ctx context.Context, from origin) (err error) {
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Run(ctx)) }()
	undo.AddFunc(func() { s.m.forgetUnmade(s) })
	if err := s.enter(); err != nil {
		return err
	}
	undo.Add(s.destroy)
	for _, p := range s.parts(from) {
		if err := s.add(ctx, p); err != nil {
			return fmt.Errorf("sandbox %s: %s: %w", s.id, p.step, err)
		}
	}
	if err := s.begin(stepRunning); err != nil {
		return err
	}
	undo.Keep()
	return nil
}

// enter makes the directory of a new sandbox.
func (s *Sandbox) enter() error {
	if err := os.Mkdir(s.dir(), 0o711); err != nil {
		if errors.Is(err, os.ErrExist) {
			return wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s is there already", s.id)
		}
		return err
	}
	s.m.crash("directory made")
	s.journal = &journal{
		Format: journalFormat, ID: s.id, Created: s.life.created.UTC(), path: filepath.Join(s.dir(), journalName),
		Template: s.request.Template, Shape: s.request.Shape, Timeout: s.request.Timeout,
	}
	return nil
}

// part is something that a sandbox is made of.
type part struct {
	step step
	make func(context.Context) error
}

// parts are those of a sandbox, in order.
func (s *Sandbox) parts(from origin) []part {
	return []part{
		{stepSlot, s.takeSlot},
		{stepDisk, func(ctx context.Context) error { return s.cloneDisk(ctx, from.rootfs) }},
		{stepMachine, func(ctx context.Context) error { return s.startMachine(ctx, from.start) }},
		{stepReady, s.waitReady},
	}
}

// add makes a part; the journal knows before.
func (s *Sandbox) add(ctx context.Context, p part) error {
	began := time.Now()
	if err := s.begin(p.step); err != nil {
		return err
	}
	if err := p.make(ctx); err != nil {
		return err
	}
	s.m.crash(string(p.step) + " done")
	s.trace(string(p.step), began)
	return nil
}

// begin notes a step in the journal.
func (s *Sandbox) begin(step step) error {
	s.m.crash(string(step) + " to be noted")
	if err := s.journal.begin(step); err != nil {
		return err
	}
	s.m.crash(string(step) + " noted")
	return nil
}

func (s *Sandbox) takeSlot(ctx context.Context) error {
	slot, err := s.m.cfg.Slots.Acquire(ctx, string(s.id))
	if err != nil {
		return err
	}
	s.slot = slot
	s.m.crash("slot taken")
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
		VCPUs:     s.request.Shape.VCPUs,
		MemoryMiB: s.request.Shape.MemoryMiB,
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
	s.m.crash("machine started")
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
	s.connect()
	if err := s.guest.WaitReady(ctx, s.machine.Wait); err != nil {
		return err
	}
	if err := s.guest.Init(ctx, envdclient.Init{Env: s.request.Env}); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return err
	}
	return nil
}

func (s *Sandbox) connect() {
	s.guest = envdclient.New(envdclient.Config{Dial: s.slot.DialContext, Address: network.EnvdAddress})
}

func (s *Sandbox) trace(step string, began time.Time) {
	if s.m.cfg.Trace != nil {
		s.m.cfg.Trace(s.id, step, time.Since(began))
	}
}

func (s *Sandbox) dir() string    { return filepath.Join(s.m.sandboxes(), string(s.id)) }
func (s *Sandbox) runDir() string { return filepath.Join(s.m.machines(), string(s.id)) }
func (s *Sandbox) disk() string   { return filepath.Join(s.dir(), "root.ext4") }
