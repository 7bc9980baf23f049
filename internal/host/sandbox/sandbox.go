package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"wrenn"
	"wrenn/internal/envdclient"
	"wrenn/internal/host/sandbox/console"
	"wrenn/internal/host/sandbox/journal"
	"wrenn/internal/rollback"
	"wrenn/internal/snapshot"
	"wrenn/internal/vm"
)

// Sandbox is one sandbox. Destroy it. Its methods are safe for concurrent use.
type Sandbox struct {
	id      wrenn.SandboxID
	m       *Manager
	request Request
	made    chan struct{} // closed when the launch has ended, well or not

	turn    turn // who has it may change the next three, and what the sandbox does
	journal *journal.Journal
	body    *body // what it runs in; nil while it is paused
	spare   *body // another one that is being made or taken away

	console console.Log

	mu       sync.Mutex // guards the following
	life     life
	unwanted int                     // how many destroy it
	abort    context.CancelCauseFunc // ends what is going on in the turn; may be nil
	doom     func()                  // ends the machine, which may be all that ends it; may be nil
	guest    *envdclient.Client      // of the body, or of the last one
	waking   *wake                   // nil when nobody wakes it
}

// Request is what sandbox is wanted.
type Request struct {
	ID       wrenn.SandboxID
	Template string
	Shape    Shape
	// Timeout is the time without use after which the sandbox ends; 0 is never.
	Timeout time.Duration
	// OnTimeout is what happens then.
	OnTimeout Ending
	// AutoResume lets Use resume the sandbox when it is paused.
	AutoResume bool
	// Env is for every command of the sandbox. It is kept in the guest alone.
	Env map[string]string
	// Snapshot is what the sandbox is made from; empty is the base guest. Its shape must be Shape.
	Snapshot string

	parent wrenn.SandboxID // of a fork
}

// Ending is what becomes of a sandbox that is not used for its timeout.
type Ending string

// The endings.
const (
	EndStop  Ending = ""      // its machine is gone, and its disk
	EndPause Ending = "pause" // see Sandbox.Pause
)

// ID is the sandbox's name.
func (s *Sandbox) ID() wrenn.SandboxID { return s.id }

// Guest talks to the agent in the sandbox. Hold a Use meanwhile.
func (s *Sandbox) Guest() *envdclient.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.guest
}

func (s *Sandbox) setGuest(b *body) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.guest = b.guest
}

// Create boots a new sandbox and returns when its agent answered. When it
// fails nothing of the sandbox is left, or the error says what is and why: Run
// tries again to remove that. Invalid for a malformed id, AlreadyExists when it is taken.
func (m *Manager) Create(ctx context.Context, id wrenn.SandboxID, shape Shape) (*Sandbox, error) {
	return m.createNew(ctx, Request{ID: id, Shape: shape}, m.boot(m.cfg.Guest))
}

// Restore makes a new sandbox from the snapshot of the given name, and is
// otherwise like Create. NotFound when there is no such snapshot, or it was
// removed and a sandbox still needs it.
func (m *Manager) Restore(ctx context.Context, id wrenn.SandboxID, name string) (*Sandbox, error) {
	from, shape, err := m.namedRestoration(ctx, name)
	if err != nil {
		return nil, err
	}
	return m.createNew(ctx, Request{ID: id, Shape: shape}, from)
}

func (m *Manager) createNew(ctx context.Context, req Request, from origin) (*Sandbox, error) {
	s, isNew, err := m.register(req)
	if err == nil && !isNew {
		err = wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s is there already", req.ID)
	}
	if err != nil {
		from.release()
		return nil, err
	}
	if err := s.launch(ctx, func(context.Context) (origin, error) { return from, nil }); err != nil {
		return nil, err
	}
	return s, nil
}

// origin is what a body is made from.
type origin struct {
	rootfs   string // cloned
	snapshot string // that the machine is restored from; "" when it boots
	guest    string // the image that it boots, or that was booted for the snapshot
	start    starter
	sole     bool   // nobody else is made from it meanwhile; see vm.Spec
	release  func() // the snapshot may be collected if nobody needs it
}

// starter makes a machine, by booting or restoring it.
type starter func(context.Context, vm.Spec) (vm.Machine, error)

// boot is the origin of sandboxes that boot a guest.
func (m *Manager) boot(guest Guest) origin {
	return origin{rootfs: guest.RootFS, guest: guest.Name, release: func() {}, start: func(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
		spec.Kernel = guest.Kernel
		return m.cfg.Driver.Start(ctx, spec)
	}}
}

// restoration is the origin of sandboxes that a snapshot holds.
func (m *Manager) restoration(ctx context.Context, id string) (origin, error) {
	snap, release, err := m.snapshots.Load(ctx, id)
	if err != nil {
		return origin{}, err
	}
	return m.from(snap, release)
}

// namedRestoration is the restoration of a snapshot that somebody asks for by
// its name, and their shape. One that was removed is there only for who runs from it.
func (m *Manager) namedRestoration(ctx context.Context, name string) (origin, Shape, error) {
	snap, release, err := m.loadKept(ctx, name)
	if err != nil {
		return origin{}, Shape{}, err
	}
	from, err := m.from(snap, release)
	return from, Shape{VCPUs: snap.VCPUs, MemoryMiB: snap.MemoryMiB}, err
}

// from is the origin that a loaded snapshot is, which the origin holds.
func (m *Manager) from(snap *snapshot.Snapshot, release func()) (origin, error) {
	if driver := m.cfg.Driver.Name(); snap.Driver != driver {
		release()
		return origin{}, wrenn.Errorf(wrenn.FailedPrecondition, "snapshot %s cannot be used: it is of driver %s, and this host works with %s", snap.ID, snap.Driver, driver)
	}
	return origin{rootfs: snap.Disk(), snapshot: snap.ID, guest: snap.Guest, release: release, start: func(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
		return m.cfg.Driver.Restore(ctx, spec, snap.Machine())
	}}, nil
}

// launch makes a registered sandbox, whose turn the caller has, and gives the
// turn back. Who destroys the sandbox meanwhile ends it.
func (s *Sandbox) launch(ctx context.Context, from func(context.Context) (origin, error)) error {
	defer s.unlock()
	defer close(s.made)
	ctx, done := s.interruptible(ctx)
	defer done()
	if err := s.assemble(ctx, from, s.buildFirst); err != nil {
		if !errors.Is(err, errDestroyed) {
			s.keepConsole(ctx, err)
		}
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
	if s.unwanted > 0 && cancel != nil {
		cancel(errDestroyed)
	}
}

// giveUp ends what is going on, now and from now on, until leaveAlone.
func (s *Sandbox) giveUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unwanted++
	if s.abort != nil {
		s.abort(errDestroyed)
	}
	if s.doom != nil {
		s.doom()
	}
}

// doomBy sets how the machine is ended when somebody wants what is going on
// given up, which it is at once if somebody does already.
func (s *Sandbox) doomBy(doom func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doom = doom
	if s.unwanted > 0 && doom != nil {
		doom()
	}
}

// leaveAlone is for who gave up what is going on, and destroys nothing.
func (s *Sandbox) leaveAlone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unwanted--
}

// assemble makes the sandbox, and by build its first body. When it fails it
// undoes that, and the sandbox is forgotten unless that fails too.
func (s *Sandbox) assemble(ctx context.Context, from func(context.Context) (origin, error), build func(context.Context, origin) error) (err error) {
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Run(ctx)) }()
	undo.AddFunc(func() { s.m.forgetUnmade(s) })
	origin, err := from(ctx)
	if err != nil {
		return err
	}
	defer origin.release()
	if err := s.enter(); err != nil {
		return err
	}
	undo.Add(s.destroy)
	if err := build(ctx, origin); err != nil {
		return err
	}
	undo.Keep()
	return nil
}

func (s *Sandbox) buildFirst(ctx context.Context, from origin) error {
	if err := s.build(ctx, from); err != nil {
		return err
	}
	return s.moveIn(func(*journal.Journal) {})
}

// enter makes the directory of a new sandbox. Its journal is written when there
// is something to find.
func (s *Sandbox) enter() error {
	if err := os.Mkdir(s.dir(), 0o711); err != nil {
		if errors.Is(err, os.ErrExist) {
			return wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s is there already", s.id)
		}
		return err
	}
	s.crash("directory made")
	req := s.request
	s.journal = journal.New(s.dir(), s.id).With(func(j *journal.Journal) {
		j.Created, j.Step = s.life.created.UTC(), journal.StepMaking
		j.Template, j.Size, j.Timeout, j.OnTimeout = req.Template, req.Shape, req.Timeout, string(req.OnTimeout)
		j.AutoResume, j.Parent = req.AutoResume, req.parent
	})
	return nil
}

// moveIn makes the spare what the sandbox runs in, and what it ran in until now
// the spare. The note of it, with what change adds, is what makes it so.
func (s *Sandbox) moveIn(change func(*journal.Journal)) error {
	err := s.commit(string(journal.StepRunning), func(j *journal.Journal) {
		j.Step, j.Snapshot = journal.StepRunning, ""
		j.Instance, j.Other = j.Other, j.Instance
		change(j)
	})
	if err != nil {
		return err
	}
	s.body, s.spare = s.spare, s.body
	s.setGuest(s.body)
	s.console.Attach(s.body.machine)
	return nil
}

func (s *Sandbox) trace(step string, began time.Time) {
	if s.m.cfg.Trace != nil {
		s.m.cfg.Trace(s.id, s.label(step), time.Since(began))
	}
}

func (s *Sandbox) crash(point string) { s.m.crash(s.label(point)) }

// label tells what is done for the stock from what is done for somebody.
func (s *Sandbox) label(step string) string {
	if s.isStock() {
		return "stock: " + step
	}
	return step
}

func (s *Sandbox) dir() string { return filepath.Join(s.m.sandboxes(), string(s.id)) }
