// Package snapshot stores the snapshots of a host: for each a directory with the
// disk and the machine of a sandbox at one moment, and a manifest. A snapshot
// appears complete and never changes. It stays while it is pinned, leased or
// referenced; Collect removes the others.
//
//	<dir>/<id>/snapshot.json  the manifest; written last
//	<dir>/<id>/root.ext4      the disk
//	<dir>/<id>/machine/       the driver's files, with the driver's manifest; empty without memory
//	<dir>/<id>/settings.json  what the guest's agent kept in memory, for a boot from the disk; may be missing
//	<dir>/<id>/hashes.json    hashes of large files; written some time later
//	<dir>/<id>/stored.json    what is known of copies elsewhere; may be missing
package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/cmutex"
	"wrenn.dev/internal/durable"
	"wrenn.dev/internal/wake"
)

// The parts of a snapshot's directory.
const (
	machineName  = "machine"
	diskName     = "root.ext4"
	settingsName = "settings.json"
	manifestName = "snapshot.json"
	hashesName   = "hashes.json"
	storedName   = "stored.json"
)

// stagedPrefix is the prefix of directories in which snapshots are made or
// removed. No snapshot's id has it.
const stagedPrefix = ".staged-"

var idForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// Store is the snapshots of one directory. It is safe for concurrent use.
type Store struct {
	dir     string
	reserve *durable.Reserve // lets Unpin, which frees space, work on a full disk
	log     *slog.Logger
	settle  time.Duration // see settle
	work    wake.Chan     // wakes Run: there is a snapshot to hash

	collecting cmutex.Mutex // one Collect at a time
	manifests  sync.Mutex   // held while a manifest is changed; comes before mu

	mu       sync.Mutex // guards what follows; never held while waiting
	entries  map[string]*entry
	revision uint64 // see Revision
}

// entry is the state of a snapshot.
type entry struct {
	staged bool         // it is being published: its directory may not be there yet
	pinned bool         // stays without a reference
	leases int          // Load and Publish without release
	used   bool         // leased since the last Collect began
	hashed bool         // hashed, or not to be hashed
	base   string       // see Manifest
	owner  string       // see Manifest
	copied wrenn.Stored // see Manifest
	due    time.Time    // when to hash it, at the earliest

	fetched bool      // see Manifest
	last    time.Time // when a lease began or ended, or the store was opened
}

// Open returns the store in dir, which it creates if necessary, and removes
// snapshots that an earlier process had not finished to publish or to remove. One
// process at a time may have the store open. The reserve, which the caller fills,
// lets Unpin work on a full disk.
func Open(dir string, reserve *durable.Reserve, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("snapshots: %w", err)
	}
	s := &Store{
		dir: dir, reserve: reserve, log: log, work: wake.New(), settle: settle,
		entries: map[string]*entry{},
	}
	found, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("snapshots: %w", err)
	}
	for _, f := range found {
		if strings.HasPrefix(f.Name(), stagedPrefix) {
			if err := os.RemoveAll(filepath.Join(dir, f.Name())); err != nil {
				return nil, fmt.Errorf("remove an incomplete snapshot: %w", err)
			}
			continue
		}
		s.entries[f.Name()] = s.readEntry(f.Name())
	}
	s.work.Notify()
	return s, nil
}

// readEntry reads the state of a snapshot. An unreadable one is pinned, because
// its owner is unknown.
func (s *Store) readEntry(id string) *entry {
	man, err := readManifest(s.path(id))
	if err != nil {
		s.log.LogAttrs(context.Background(), slog.LevelWarn, "cannot read snapshot", slog.String("snapshot", id), slog.Any("err", err))
		return &entry{pinned: true, hashed: true}
	}
	_, err = os.Stat(filepath.Join(s.path(id), hashesName))
	e := newEntry(man)
	e.hashed = man.Transient || err == nil
	return e
}

func newEntry(man Manifest) *entry {
	return &entry{pinned: man.Pinned, hashed: true, base: man.Base, owner: man.Owner, copied: man.Copy, fetched: man.Fetched, last: time.Now()}
}

func (s *Store) path(id string) string { return filepath.Join(s.dir, id) }

// CheckID returns an Invalid error if the id cannot name a snapshot.
func CheckID(id string) error {
	if !idForm.MatchString(id) {
		return wrenn.Errorf(wrenn.Invalid, "%.80q cannot name a snapshot: use a-z, 0-9 and -, up to 63", id)
	}
	return nil
}

// Has reports whether a snapshot of this id exists.
func (s *Store) Has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries[id] != nil
}

// IDs returns the ids of all snapshots, sorted.
func (s *Store) IDs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.entries))
	for id := range s.entries {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Pinned returns the ids of the snapshots that stay without a reference, sorted.
func (s *Store) Pinned() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for id, e := range s.entries {
		if e.pinned && !e.staged {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Staged is a snapshot that is being made. The caller must Publish or Discard it.
type Staged struct {
	store *Store
	dir   string // "" when it is published or discarded
}

// Stage begins a new snapshot.
func (s *Store) Stage() (*Staged, error) {
	dir, err := os.MkdirTemp(s.dir, stagedPrefix)
	if err != nil {
		return nil, fmt.Errorf("stage a snapshot: %w", err)
	}
	staged := &Staged{store: s, dir: dir}
	if err := os.Mkdir(staged.Machine(), 0o711); err != nil {
		return nil, errors.Join(err, staged.Discard(context.Background()))
	}
	return staged, nil
}

// Disk is the path at which the caller must make a clone of the disk.
func (st *Staged) Disk() string { return filepath.Join(st.dir, diskName) }

// Machine is the empty directory for the driver's files.
func (st *Staged) Machine() string { return filepath.Join(st.dir, machineName) }

// Path returns the path at which the caller may write the file of that path in the
// snapshot, with slashes. FailedPrecondition for one that leads elsewhere.
func (st *Staged) Path(name string) (string, error) {
	local, err := filepath.Localize(name)
	if err != nil || slices.Contains([]string{manifestName, hashesName, storedName}, name) {
		return "", wrenn.Errorf(wrenn.FailedPrecondition, "%.80q cannot be a file of a snapshot", name)
	}
	return filepath.Join(st.dir, local), nil
}

// Settings is the path at which the caller may write the settings of the guest.
func (st *Staged) Settings() string { return filepath.Join(st.dir, settingsName) }

// Discard removes the snapshot unless it is published. Twice is allowed.
func (st *Staged) Discard(context.Context) error {
	if st.dir == "" {
		return nil
	}
	if err := os.RemoveAll(st.dir); err != nil {
		return fmt.Errorf("discard a snapshot: %w", err)
	}
	st.dir = ""
	return nil
}

// Publish makes the snapshot appear under its id and leases it: it is not
// collected before release is called. Twice is allowed for release. AlreadyExists
// when the id is taken. Unless man is Transient, a published snapshot survives a
// power cut.
func (st *Staged) Publish(ctx context.Context, man Manifest) (_ *Snapshot, release func(), err error) {
	if err := CheckID(man.ID); err != nil {
		return nil, nil, err
	}
	if len(man.Metadata) > maxMetadata {
		return nil, nil, wrenn.Errorf(wrenn.Invalid, "the metadata of a snapshot has more than %d bytes", maxMetadata)
	}
	if man.Files, err = listFiles(ctx, st.dir); err != nil {
		return nil, nil, fmt.Errorf("snapshot %s: %w", man.ID, err)
	}
	s, taken := st.store, wrenn.Errorf(wrenn.AlreadyExists, "snapshot %s already exists", man.ID)
	if !s.add(man) {
		return nil, nil, taken
	}
	if err := st.publish(man); err != nil {
		s.forget(man.ID)
		if errors.Is(err, os.ErrExist) { // a directory without an entry
			return nil, nil, taken
		}
		return nil, nil, fmt.Errorf("publish snapshot %s: %w", man.ID, err)
	}
	st.dir = ""
	s.published(man.ID)
	if !man.Transient {
		s.hashLater(man.ID)
		s.work.Notify()
	}
	return &Snapshot{man, s.path(man.ID)}, sync.OnceFunc(func() { s.release(man.ID) }), nil
}

func (st *Staged) publish(man Manifest) error {
	if err := writeManifest(st.dir, man, durable.WriteFile); err != nil {
		return err
	}
	if man.Transient { // the machines that could use it do not survive a power cut
		return os.Rename(st.dir, st.store.path(man.ID))
	}
	return durable.Publish(st.dir, st.store.path(man.ID))
}

// add adds the entry of a snapshot that is about to appear, with one lease. It
// reports false if there is one already.
func (s *Store) add(man Manifest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[man.ID] != nil {
		return false
	}
	e := newEntry(man)
	e.leases, e.used, e.staged = 1, true, true
	s.entries[man.ID] = e
	return true
}

// published lets Load find a snapshot that add has added.
func (s *Store) published(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[id].staged = false
	s.revision++
}

func (s *Store) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.entries, id)
}

func (s *Store) release(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[id]; e != nil {
		e.leases--
		e.last = time.Now()
	}
}

// Snapshot is a snapshot that was checked.
type Snapshot struct {
	Manifest
	dir string
}

// Disk is the path of the disk at the moment of the snapshot. The caller must
// clone it, and not change it.
func (s *Snapshot) Disk() string { return filepath.Join(s.dir, diskName) }

// Path returns the path of a file in Files.
func (s *Snapshot) Path(f File) string { return filepath.Join(s.dir, filepath.FromSlash(f.Path)) }

// Machine is the directory with the driver's files.
func (s *Snapshot) Machine() string { return filepath.Join(s.dir, machineName) }

// Settings returns the settings of the guest, nil when there are none.
func (s *Snapshot) Settings() ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, settingsName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return text, err
}

// Load checks a snapshot and leases it: it is not collected before release is
// called. Twice is allowed for release. NotFound when there is no such snapshot;
// FailedPrecondition, which names the file and the problem, when it is not what
// was published.
func (s *Store) Load(ctx context.Context, id string) (_ *Snapshot, release func(), err error) {
	if !s.lease(id) {
		return nil, nil, wrenn.Errorf(wrenn.NotFound, "there is no snapshot %.80q", id)
	}
	release = sync.OnceFunc(func() { s.release(id) })
	snap := &Snapshot{dir: s.path(id)}
	if snap.Manifest, err = readManifest(snap.dir); err == nil {
		err = s.check(ctx, snap, changedFiles)
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	return snap, release, nil
}

// Verify reads the whole snapshot and compares it with its hashes. The errors are
// those of Load.
func (s *Store) Verify(ctx context.Context, id string) error {
	snap, release, err := s.Load(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	return s.check(ctx, snap, allFiles)
}

func (s *Store) lease(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[id]
	if e == nil || e.staged {
		return false
	}
	e.leases++
	e.used, e.last = true, time.Now()
	return true
}

// Unpin lets Collect remove a pinned snapshot that has no reference. NotFound when
// there is no such snapshot.
func (s *Store) Unpin(id string) error { return s.setPinned(id, false, s.reserve.WriteFile) }

// Pin reverts Unpin. NotFound when the snapshot was collected.
func (s *Store) Pin(id string) error { return s.setPinned(id, true, durable.WriteFile) }

func (s *Store) setPinned(id string, pinned bool, write durable.WriteFunc) error {
	return s.change(id, write, func(man *Manifest) { man.Pinned = pinned }, func(e *entry) { e.pinned = pinned })
}

// SetCopy records that a snapshot has been copied elsewhere. NotFound when there is no
// such snapshot.
func (s *Store) SetCopy(id string, c wrenn.Stored) error {
	return s.change(id, durable.WriteFile, func(man *Manifest) { man.Copy = c }, func(e *entry) { e.copied = c })
}

// change changes the manifest and the entry of a snapshot.
func (s *Store) change(id string, write durable.WriteFunc, set func(*Manifest), enter func(*entry)) error {
	if !s.lease(id) {
		return wrenn.Errorf(wrenn.NotFound, "there is no snapshot %.80q", id)
	}
	defer s.release(id)
	s.manifests.Lock()
	defer s.manifests.Unlock()
	man, err := readManifest(s.path(id))
	if err == nil { // an unreadable one cannot be used anyway
		pinned, copied := man.Pinned, man.Copy
		if set(&man); man.Pinned != pinned || man.Copy != copied {
			if err := writeManifest(s.path(id), man, write); err != nil {
				return err
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	enter(s.entries[id])
	s.revision++
	return nil
}

// Owner returns the owner of a pinned snapshot. NotFound when there is no such snapshot.
func (s *Store) Owner(id string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[id]; e != nil && e.pinned {
		return e.owner, nil
	}
	return "", wrenn.Errorf(wrenn.NotFound, "there is no snapshot %.80q", id)
}

// Revision changes whenever Pinned or Copies do, and at other times; it is never 0.
func (s *Store) Revision() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revision + 1
}

// Copies returns where the pinned snapshots that have an owner are copied, by their ids:
// zero for those that are not.
func (s *Store) Copies() map[string]wrenn.Stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]wrenn.Stored{}
	for id, e := range s.entries {
		if e.pinned && e.owner != "" && !e.staged {
			out[id] = e.copied
		}
	}
	return out
}

// Unused returns the pinned snapshots that were fetched and have had no lease since that
// time, with where they can be fetched again. The time before Open does not count.
func (s *Store) Unused(since time.Time) map[string]wrenn.Stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]wrenn.Stored{}
	for id, e := range s.entries {
		if e.pinned && e.fetched && !e.staged && e.leases == 0 && e.last.Before(since) {
			out[id] = e.copied
		}
	}
	return out
}

// Collect removes the snapshots that are neither pinned, nor leased, nor among
// those that referenced returns, nor the base of one that stays. A caller that makes a new reference to a snapshot
// must have a lease on it until referenced returns it. After a crash in the middle
// the next Open removes incomplete snapshots, and the next Collect the others.
func (s *Store) Collect(ctx context.Context, referenced func() map[string]bool) error {
	if err := s.collecting.Lock(ctx); err != nil {
		return err
	}
	defer s.collecting.Unlock()
	idle := s.idle()
	if len(idle) == 0 {
		return nil
	}
	refs := referenced() // after idle: it has the references of leases that ended before
	idle = slices.DeleteFunc(idle, func(id string) bool { return refs[id] })
	bases := s.basesWithout(idle)
	var errs []error
	for _, id := range idle {
		if !bases[id] && s.drop(id) {
			errs = append(errs, s.remove(id))
		}
	}
	return errors.Join(errs...)
}

// basesWithout returns the bases of all snapshots but those of the ids.
func (s *Store) basesWithout(ids []string) map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	bases := map[string]bool{}
	for id, e := range s.entries {
		if !slices.Contains(ids, id) {
			bases[e.base] = true
		}
	}
	return bases
}

// BaseOf returns the base for a new snapshot of a machine that was restored from the
// snapshot id: the base of that one or, without such, that one itself. "" is none.
func (s *Store) BaseOf(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[id]; e != nil {
		return cmp.Or(e.base, id)
	}
	return ""
}

// Stored returns what SetStored was called with, nil if it was not.
func (s *Store) Stored(id string) ([]byte, error) {
	data, err := readBounded(filepath.Join(s.path(id), storedName), maxManifest)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// SetStored writes what is known of copies of a snapshot elsewhere; at most 1 MiB. The
// caller must have a lease on the snapshot.
func (s *Store) SetStored(id string, data []byte) error {
	return durable.WriteFile(filepath.Join(s.path(id), storedName), data, 0o600)
}

// idle returns the ids of snapshots that are neither pinned nor leased, and resets
// used, which shows leases from then on.
func (s *Store) idle() (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, e := range s.entries {
		e.used = e.leases > 0
		if !e.pinned && !e.used {
			ids = append(ids, id)
		}
	}
	return ids
}

// drop deletes the entry of a snapshot, and reports whether it did: not if the
// snapshot was used since idle.
func (s *Store) drop(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[id]; e == nil || e.used || e.pinned {
		return false
	}
	delete(s.entries, id)
	return true
}

// remove deletes a dropped snapshot. It renames it first, so that no part of a
// snapshot ever has its name.
func (s *Store) remove(id string) error {
	staged := filepath.Join(s.dir, stagedPrefix+id)
	err := os.RemoveAll(staged) // the rest of an earlier remove that failed
	if err == nil {
		err = os.Rename(s.path(id), staged)
	}
	if err != nil { // the snapshot still exists: the next Collect tries again
		s.mu.Lock()
		defer s.mu.Unlock()
		s.entries[id] = cmp.Or(s.entries[id], &entry{hashed: true})
		return fmt.Errorf("remove snapshot %s: %w", id, err)
	}
	return os.RemoveAll(staged)
}
