// Package sandbox composes the life of each sandbox on this host: a network
// slot, a disk, a machine and the agent in it. Every step is journaled, so that
// the next agent finds what a killed one left.
//
// What a sandbox is made of is in packages below this one: journal is the file
// that is left, instance what a sandbox runs in, console what its guest printed.
// The files of this package are layers. Each uses those above it in this list,
// which a test checks:
//
//	status, info, memory, cancel, shared, turns, sizes, uploads, rounds, downloads: which status may follow which; what is asked for and answered; the host's memory; what ends an operation; what several callers wait for; how many start at a time; which sizes get a snapshot; what is being stored, in which round, and fetched
//	state, record, epoch, kmsg: what changes in a sandbox's life, the journal with what follows from it, which placement callers mean, and the log of the host's kernel
//	news, host, source, meter: who is told of changes, what all sandboxes of a host have in common, what they are made from, and what one uses
//	report, sandbox, registry: what logs and traces say of a sandbox; a sandbox, and all of them with the limits
//	vigil: whether guests answer
//	garbage: the snapshots that are not needed
//	operation: how something is done to a sandbox under its operation lock
//	replace, ending, capture: its change of instance, its end, its snapshot
//	sharing: the copies of templates in the snapshot store
//	storing: those of paused sandboxes
//	pause, resume, checkpoint: the operations of users
//	claim, launch, fork: how sandboxes are made
//	warmpool, measure: machines ahead of demand; what the sandboxes use
//	adopt, manager: what an earlier agent left; the package's front
//	fetch: sandboxes of other hosts
//	unused, unfinished, collected: what nothing uses of the snapshot store's: templates on this host, uploads and snapshots in the store
//	clockwork: checkpoints by the clock
//	template, workshop, demand, run: what a manager does besides
package sandbox

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/instance"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/host/sandbox/usage"
	"wrenn.dev/internal/storage"
)

// Manager makes, finds and destroys the sandboxes of one state directory. It
// is safe for concurrent use. Close it.
//
// Locks: each sandbox has an operation lock, which is held while something is done
// to the sandbox; that of a copy comes before that of the sandbox it is copied
// from, that of a new one before that of the pooled machine that it claims, and
// otherwise none is acquired while another is held. The registry's mutex comes
// before that of a sandbox's state. Under these two nothing is waited for.
type Manager struct {
	host
	run string // see Inventory.Instance
}

// Open returns the manager of cfg.StateDir. What an earlier agent left is
// adopted or, without cfg.Adopt, removed: machines, slots and disks. Snapshots stay.
// An error names what could not be removed; the manager is usable all the same,
// and what is left keeps its journal for the next Open. Slots that no journal
// names are left to the caller, who sweeps the pool of slots afterwards.
// The caller must ensure that one agent at a time uses the directory.
func Open(ctx context.Context, cfg Config) (*Manager, error) {
	cfg.ReadyTimeout = cmp.Or(cfg.ReadyTimeout, 60*time.Second)
	cfg.SilentAfter = cmp.Or(cfg.SilentAfter, 9*time.Second)
	cfg.FreezeTimeout = cmp.Or(cfg.FreezeTimeout, 10*time.Second)
	cfg.MetricsEvery = cmp.Or(cfg.MetricsEvery, wrenn.MetricsEvery)
	if cfg.CPUTime == nil {
		cfg.CPUTime = usage.CPUTime
	}
	cfg.Store = cmp.Or(cfg.Store, &storage.Store{Dir: cfg.StateDir})
	m := &Manager{run: rand.Text()}
	if err := m.open(cfg); err != nil {
		return nil, err
	}
	m.archive.IsShared = func(id string) bool { return strings.HasPrefix(id, basePrefix) }
	takeOver := m.destroyAll
	if cfg.Adopt {
		takeOver = m.adoptAll
	}
	if err := takeOver(ctx); err != nil {
		return m, err // without Collect: what the sandboxes need is not known
	}
	return m, m.Collect(ctx)
}

// Close stops watching the sandboxes and leaves them as they are, for the next
// agent to adopt. No other method may be running. Twice is allowed.
func (m *Manager) Close() {
	m.stopWatching()
	m.saveMetrics(context.Background())
}

// Create boots a new sandbox and returns when its agent answered. When it
// fails nothing of the sandbox is left, or the error says what is and why: Run
// tries again to remove that. Invalid for a malformed id, AlreadyExists when it is taken.
func (m *Manager) Create(ctx context.Context, id wrenn.SandboxID, size wrenn.Size) (*Sandbox, error) {
	return m.create(ctx, request{id: id, SandboxSpec: wrenn.SandboxSpec{Size: size}}, m.guestSource(m.cfg.Guest))
}

// Restore makes a new sandbox from the snapshot of the given name, and is
// otherwise like Create. NotFound when there is no such snapshot, or it was
// removed and a sandbox still needs it.
func (m *Manager) Restore(ctx context.Context, id wrenn.SandboxID, name string) (*Sandbox, error) {
	from, size, err := m.namedSource(ctx, name)
	if err != nil {
		return nil, err
	}
	return m.create(ctx, request{id: id, SandboxSpec: wrenn.SandboxSpec{Size: size}}, from)
}

// Ensure returns a sandbox of the spec, running or paused: the existing one, the
// one that is being made, once it is made, or a new one. Without a build in the
// spec only the base template exists. The size is that of the build; of the base,
// zero fields have their defaults. Ensure may be repeated after a lost answer.
// A build that this host does not have is fetched from BuildKey, if that is set.
// AlreadyExists when the id is taken by a sandbox of another template or size,
// FailedPrecondition when it has ended, or what is stored of the template cannot be used,
// NotFound when the template does not exist on this host, or is not stored, Invalid when the size is not the build's, Exhausted when a limit of the
// host does not allow another one.
func (m *Manager) Ensure(ctx context.Context, id wrenn.SandboxID, spec wrenn.SandboxSpec) (*Sandbox, error) {
	spec.Template = cmp.Or(spec.Template, wrenn.BaseTemplate)
	if err := wrenn.CheckVolumes(spec.Volumes); err != nil {
		return nil, err
	}
	if spec.Build != "" {
		return m.ensureRestored(ctx, id, spec)
	}
	if spec.Template != wrenn.BaseTemplate {
		return nil, wrenn.Errorf(wrenn.NotFound, "there is no template %.64q", spec.Template)
	}
	spec.Size = spec.OrDefault()
	var err error
	if spec.DiskMiB, err = diskMiB(m.cfg.Guest.RootFS, spec.DiskMiB); err != nil {
		return nil, err
	}
	return m.ensure(ctx, request{id: id, SandboxSpec: spec}, func(ctx context.Context) (instance.Source, error) { return m.baseSource(ctx, spec.Size), nil })
}

// ensureRestored is Ensure of a sandbox that is restored from a template's build.
func (m *Manager) ensureRestored(ctx context.Context, id wrenn.SandboxID, spec wrenn.SandboxSpec) (*Sandbox, error) {
	from, size, err := m.namedSource(ctx, string(spec.Build))
	if wrenn.CodeOf(err) == wrenn.NotFound && spec.BuildKey != "" {
		if err := m.FetchTemplate(ctx, spec.Team, spec.Build, spec.BuildKey); err != nil {
			return nil, fmt.Errorf("template %.64q: %w", spec.Template, err)
		}
		from, size, err = m.namedSource(ctx, string(spec.Build))
	}
	if wrenn.CodeOf(err) == wrenn.NotFound {
		return nil, wrenn.Errorf(wrenn.NotFound, "template %.64q is not on this host (build %s)", spec.Template, spec.Build)
	}
	if err != nil {
		return nil, err
	}
	release := sync.OnceFunc(from.Release)
	from.Release = release
	defer release() // an existing sandbox does not need it
	if spec.Size != (wrenn.Size{}) && spec.OrDefault() != size {
		return nil, wrenn.Errorf(wrenn.Invalid, "the template or snapshot has %d vCPUs and %d MiB of memory, which cannot be changed: request that size, or leave the size out", size.VCPUs, size.MemoryMiB)
	}
	spec.Size = size
	if spec.DiskMiB, err = diskMiB(from.RootFS, spec.DiskMiB); err != nil {
		return nil, err
	}
	return m.ensure(ctx, request{id: id, SandboxSpec: spec}, fixed(from))
}

// DestroyAll destroys every sandbox but those in quarantine, at once.
func (m *Manager) DestroyAll(ctx context.Context) error {
	all := m.registry.all()
	errs := make([]error, len(all))
	var work sync.WaitGroup
	for i, s := range all {
		if s.Info().Status != StatusQuarantined {
			work.Go(func() { errs[i] = s.Destroy(ctx) })
		}
	}
	work.Wait()
	return errors.Join(errs...)
}

// PauseAll pauses every running sandbox but those in quarantine, at once. Guests that
// do not answer are saved as they stand.
func (m *Manager) PauseAll(ctx context.Context) error {
	all := m.registry.all()
	errs := make([]error, len(all))
	var work sync.WaitGroup
	for i, s := range all {
		if s.Info().Status != StatusRunning {
			continue
		}
		work.Go(func() {
			if err := s.PauseBy(ctx, wrenn.PauseOptions{Guest: wrenn.PauseIfAble}); err != nil {
				errs[i] = fmt.Errorf("pause %s: %w", s.id, err)
			}
		})
	}
	work.Wait()
	return errors.Join(errs...)
}

// Collect removes the snapshots that are not needed; Run does so by itself. None
// is removed while a sandbox is in quarantine: what it needs is not known.
func (m *Manager) Collect(ctx context.Context) error { return m.garbage.collect(ctx) }

// Inventory lists all sandboxes in the order of their ids, but the warm pool and
// those that templates are being made of. The host's id is not in it.
func (m *Manager) Inventory() wrenn.Inventory {
	inv := wrenn.Inventory{Instance: m.run, TakenAt: time.Now()}
	for _, info := range m.listed() {
		inv.Sandboxes = append(inv.Sandboxes, info.ObservedSandbox)
	}
	return inv
}

// Statuses returns how many sandboxes of the inventory have each status. Every
// status is in it.
func (m *Manager) Statuses() map[Status]int {
	count := map[Status]int{}
	for status := range observed {
		count[status] = 0
	}
	for _, info := range m.listed() {
		count[info.Status]++
	}
	return count
}

// listed returns the sandboxes that are in the inventory.
func (m *Manager) listed() []Info {
	var listed []Info
	for _, s := range m.registry.all() {
		if info := s.Info(); info.Status != statusRemoved && info.Template != journal.BuildTemplate && !info.isPooled() {
			listed = append(listed, info)
		}
	}
	return listed
}

// Instance names this run of the agent; it is new with each Open.
func (m *Manager) Instance() string { return m.run }

// Capacity returns the counts of this moment.
func (m *Manager) Capacity() (wrenn.Capacity, error) { return m.registry.capacity() }

// Pool returns the counts of the warm pool at this moment.
func (m *Manager) Pool() Pool { return m.pool.stats() }

// Quarantined returns how many sandboxes are in quarantine. What they need is not
// known.
func (m *Manager) Quarantined() int { return m.registry.quarantined() }

// Live returns how many sandboxes have a machine that the next agent could adopt.
func (m *Manager) Live() int {
	n := 0
	for _, s := range m.registry.all() {
		switch s.Info().Status {
		case StatusPaused, StatusStopped, StatusFailed, statusRemoved:
		default:
			n++
		}
	}
	return n
}

// Leftovers names everything in the manager's directories that belongs to a
// sandbox; empty when the host is clean.
func (m *Manager) Leftovers() ([]string, error) {
	var left []string
	for _, dir := range []string{m.sandboxesDir(), m.machinesDir()} {
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
