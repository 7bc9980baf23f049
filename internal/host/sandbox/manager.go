// Package sandbox composes the life of each sandbox on this host: a network
// slot, a disk, a machine and the agent in it. Every step is journaled, so that
// the next agent finds what a killed one left.
package sandbox

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"wrenn"
	"wrenn/internal/durable"
	"wrenn/internal/host/sandbox/console"
	"wrenn/internal/host/sandbox/journal"
	"wrenn/internal/netns"
	"wrenn/internal/network"
	"wrenn/internal/snapshot"
	"wrenn/internal/storage"
	"wrenn/internal/vm"
)

// Guest is what new sandboxes boot: files that never change.
type Guest struct {
	Name   string // differs when the files do; needed by Warm alone
	RootFS string // a raw ext4 image; each sandbox gets a clone
	Kernel vm.Kernel
}

// Config says where sandboxes live and what they are made of. All fields
// without a default are needed.
type Config struct {
	StateDir string // disks, snapshots and journals
	RunDir   string // sockets and consoles; short, see vm.Spec.Dir
	Driver   vm.Driver
	Slots    *network.Pool
	Guest    Guest
	// FirstUID is the first of the user ids that machines run as, one each; 0
	// runs them as the agent's own user.
	FirstUID uint32
	// Store is what StateDir is on; by default a plain directory.
	Store *storage.Store
	// ReadyTimeout bounds the wait for the guest's agent; default 60 s: under
	// emulation on a busy machine a cold boot was seen to take 10.
	ReadyTimeout time.Duration
	Log          *slog.Logger
	// Trace, if set, hears how long each step of a sandbox took.
	Trace func(id wrenn.SandboxID, step string, took time.Duration)
	// Adopt takes over the sandboxes of an earlier agent; otherwise Open
	// destroys them.
	Adopt bool
	// Limits bound what Create, Restore and Ensure make; zero is unlimited.
	Limits Limits
	// Stock is how many machines Run makes ahead of need from the snapshot of
	// each shape that Warm was called for. Ensure takes them. 0 is none.
	Stock int
	// Crash, if set, is called at each point where an agent that dies must
	// leave a state that the next one can work with. For tests, which die there.
	Crash func(point string)
}

// Manager makes, finds and destroys the sandboxes of one state directory. It
// is safe for concurrent use. Close it.
//
// Locks: each sandbox has a turn, which is held while something is done to it;
// that of a copy comes before that of the sandbox it is copied from, that of a
// new one before that of the stock it is made of, and else never two at a time. mu comes before a sandbox's mu. Nothing is waited
// for under the latter two.
type Manager struct {
	cfg       Config
	snapshots *snapshot.Store
	consoles  console.Store
	reserve   *durable.Reserve // for notes by which space is given back
	instance  string
	versions  atomic.Uint64
	wake      chan struct{} // holds one: Run has something to look at
	garbage   atomic.Bool   // snapshots may have become nobody's, or the reserve is to be filled
	full      atomic.Bool   // there was no space for the reserve
	watchers  sync.WaitGroup
	stock     stock

	mu    sync.Mutex // guards boxes
	boxes map[wrenn.SandboxID]*Sandbox
}

// Shape is how large a sandbox is.
type Shape = wrenn.Size

// Open returns the manager of cfg.StateDir. What an earlier agent left is
// adopted or, without cfg.Adopt, removed: machines, slots and disks. Snapshots stay.
// An error names what could not be removed; the manager is usable all the same,
// and what is left keeps its journal for the next Open. Slots that no journal
// names are left to the caller, who sweeps the pool afterwards.
// The caller sees to it that one agent at a time uses the directory.
func Open(ctx context.Context, cfg Config) (*Manager, error) {
	cfg.ReadyTimeout = cmp.Or(cfg.ReadyTimeout, 60*time.Second)
	cfg.Store = cmp.Or(cfg.Store, &storage.Store{Dir: cfg.StateDir})
	m := &Manager{
		cfg: cfg, instance: rand.Text(), consoles: console.Store{Dir: filepath.Join(cfg.StateDir, "consoles")},
		wake: make(chan struct{}, 1), boxes: map[wrenn.SandboxID]*Sandbox{},
		stock: stock{wake: make(chan struct{}, 1), memory: readMemory},
	}
	for _, dir := range []string{m.sandboxes(), m.machines()} {
		if err := os.MkdirAll(dir, 0o711); err != nil { // x: machines run as other users
			return nil, fmt.Errorf("state directory: %w", err)
		}
	}
	m.reserve = durable.NewReserve(filepath.Join(cfg.StateDir, "reserve"))
	var err error
	if m.snapshots, err = snapshot.Open(filepath.Join(cfg.StateDir, "snapshots"), m.reserve, cfg.Log); err != nil {
		return nil, err
	}
	take := m.sweep
	if cfg.Adopt {
		take = m.adoptAll
	}
	if err := take(ctx); err != nil {
		return m, err // who knows what it needs
	}
	return m, m.Collect(ctx)
}

// Close stops watching the sandboxes and leaves them as they are, for the next
// agent to adopt. No other method may be running. Twice is allowed.
func (m *Manager) Close() {
	for _, s := range m.all() {
		for _, b := range []*body{s.body, s.spare} {
			if b != nil && b.unwatch != nil {
				b.unwatch()
			}
		}
	}
	m.watchers.Wait()
}

func (m *Manager) crash(point string) {
	if m.cfg.Crash != nil {
		m.cfg.Crash(point)
	}
}

func (m *Manager) sandboxes() string { return filepath.Join(m.cfg.StateDir, "sandboxes") }
func (m *Manager) machines() string  { return filepath.Join(m.cfg.RunDir, "vm") }

// sweep destroys every sandbox that has a journal. One that cannot be
// destroyed does not keep the others.
func (m *Manager) sweep(ctx context.Context) error {
	all, err := journal.ReadAll(m.sandboxes())
	if err != nil {
		return err
	}
	var errs []error
	for _, left := range all {
		err := left.Err
		if err == nil {
			err = m.reclaim(ctx, left.Journal)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("leftover %s: %w", left.Name, err))
			continue
		}
		m.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "leftover sandbox removed", slog.String("sandbox", left.Name))
	}
	return errors.Join(errs...)
}

// reclaim destroys the sandbox of a dead agent.
func (m *Manager) reclaim(ctx context.Context, j *journal.Journal) error {
	s := m.revive(j)
	if err := s.findBodies(ctx); err != nil {
		return err
	}
	return s.Destroy(ctx)
}

// findBodies takes over what is left of what the journal names.
func (s *Sandbox) findBodies(ctx context.Context) error {
	for _, b := range []*body{s.body, s.spare} {
		if b != nil {
			if err := b.find(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// killUnknown ends a VMM whose agent died before it could note in the journal
// what it had started: the slot, which was noted before, holds nothing else.
func killUnknown(ctx context.Context, slot *network.Slot) error {
	_, err := netns.Kill(ctx, slot.Namespace())
	return err
}

// Leftovers names everything in the manager's directories that belongs to a
// sandbox; empty when the host is clean.
func (m *Manager) Leftovers() ([]string, error) {
	var left []string
	for _, dir := range []string{m.sandboxes(), m.machines()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			left = append(left, filepath.Join(dir, e.Name()))
		}
	}
	return left, nil
}
