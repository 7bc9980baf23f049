// Package snapshot keeps the snapshots of a host: for each a directory with the
// disk and the machine of a sandbox at one moment, and a manifest. A snapshot is
// whole or not there, never changes, and stays as long as somebody needs it.
//
//	<dir>/<id>/snapshot.json  what it is; written last
//	<dir>/<id>/root.ext4      the disk
//	<dir>/<id>/machine/       what the driver wrote, with a manifest of its own
//	<dir>/<id>/hashes.json    of large files; made some time later
//
// A Store's mu guards its entries; nothing is waited for under it.
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

	"wrenn"
	"wrenn/internal/cmutex"
	"wrenn/internal/durable"
	"wrenn/internal/wake"
)

// The parts of a snapshot's directory.
const (
	machineName  = "machine"
	diskName     = "root.ext4"
	manifestName = "snapshot.json"
	hashesName   = "hashes.json"
)

// stagedPrefix begins the names of directories in which snapshots are made and
// unmade. No snapshot's name begins so.
const stagedPrefix = ".staged-"

var idForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// Store is the snapshots of one directory. It is safe for concurrent use.
type Store struct {
	dir     string
	reserve *durable.Reserve // for what gives space back
	log     *slog.Logger
	settle  time.Duration // see settle
	work    wake.Chan     // Run has something to hash
	sweep   cmutex.Mutex  // held while Collect runs

	mu      sync.Mutex // guards what follows
	entries map[string]*entry
}

// entry is what is remembered of a snapshot.
type entry struct {
	kept   bool      // stays although nobody refers to it
	held   int       // by somebody at work
	used   bool      // held since the last Collect began
	hashed bool      // or not to be hashed, or not yet
	due    time.Time // not to be hashed before
}

// Open returns the store in dir, which it makes, and removes what a dead agent
// had not published, or was removing. One process at a time may have it open.
// The reserve, which the caller fills, lets Unkeep work on a full disk.
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
				return nil, fmt.Errorf("remove half a snapshot: %w", err)
			}
			continue
		}
		s.entries[f.Name()] = s.remember(f.Name())
	}
	s.work.Notify()
	return s, nil
}

// remember reads what must be known of a snapshot. One that cannot be read is
// kept: nobody knows whose it is.
func (s *Store) remember(id string) *entry {
	man, err := readManifest(s.path(id))
	if err != nil {
		s.log.LogAttrs(context.Background(), slog.LevelWarn, "a snapshot cannot be read", slog.String("snapshot", id), slog.Any("err", err))
		return &entry{kept: true, hashed: true}
	}
	_, err = os.Stat(filepath.Join(s.path(id), hashesName))
	return &entry{kept: man.Kept, hashed: man.Transient || err == nil}
}

func (s *Store) path(id string) string { return filepath.Join(s.dir, id) }

// CheckID says whether the id can name a snapshot: Invalid when not.
func CheckID(id string) error {
	if !idForm.MatchString(id) {
		return wrenn.Errorf(wrenn.Invalid, "%.80q cannot name a snapshot: use a-z, 0-9 and -, up to 63", id)
	}
	return nil
}

// Has says whether a snapshot of this id is there.
func (s *Store) Has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries[id] != nil
}

// IDs lists the snapshots in the order of their ids.
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

// Kept lists those that stay although nobody refers to them, in the order of their ids.
func (s *Store) Kept() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for id, e := range s.entries {
		if e.kept {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Staged is a snapshot that is being made. Publish or Discard it.
type Staged struct {
	store *Store
	dir   string // "" when it is published or discarded
}

// Stage begins a snapshot.
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

// Disk is where the clone of the disk goes. It is made by the caller.
func (st *Staged) Disk() string { return filepath.Join(st.dir, diskName) }

// Machine is the empty directory for what the driver writes.
func (st *Staged) Machine() string { return filepath.Join(st.dir, machineName) }

// Discard removes what is not published. Twice is allowed, and after Publish.
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

// Publish makes the snapshot appear under its id, which it is not collected
// under before release is called. Of man the caller fills in what the fields
// say. AlreadyExists when the id is taken. Unless man is Transient a published
// snapshot survives a power cut.
func (st *Staged) Publish(ctx context.Context, man Manifest) (_ *Snapshot, release func(), err error) {
	if err := CheckID(man.ID); err != nil {
		return nil, nil, err
	}
	if len(man.Note) > maxNote {
		return nil, nil, wrenn.Errorf(wrenn.Invalid, "the note of a snapshot is longer than %d bytes", maxNote)
	}
	if man.Files, err = listFiles(ctx, st.dir); err != nil {
		return nil, nil, fmt.Errorf("snapshot %s: %w", man.ID, err)
	}
	s, taken := st.store, wrenn.Errorf(wrenn.AlreadyExists, "snapshot %s is there already", man.ID)
	if !s.enter(man) {
		return nil, nil, taken
	}
	if err := st.publish(man); err != nil {
		s.forget(man.ID)
		if errors.Is(err, os.ErrExist) { // a directory that nobody knew
			return nil, nil, taken
		}
		return nil, nil, fmt.Errorf("publish snapshot %s: %w", man.ID, err)
	}
	st.dir = ""
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
	if man.Transient { // who could use it is gone after a power cut
		return os.Rename(st.dir, st.store.path(man.ID))
	}
	return durable.Publish(st.dir, st.store.path(man.ID))
}

// enter notes a snapshot that is about to appear, held once.
func (s *Store) enter(man Manifest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[man.ID] != nil {
		return false
	}
	s.entries[man.ID] = &entry{kept: man.Kept, held: 1, used: true, hashed: true}
	return true
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
		e.held--
	}
}

// Snapshot is one that was found whole.
type Snapshot struct {
	Manifest
	dir string
}

// Disk is the disk at the moment of the snapshot, to be cloned.
func (s *Snapshot) Disk() string { return filepath.Join(s.dir, diskName) }

// Machine is what the driver wrote.
func (s *Snapshot) Machine() string { return filepath.Join(s.dir, machineName) }

// Load checks a snapshot and keeps it from being collected until release is
// called. NotFound when there is none; FailedPrecondition, which names the file
// and says what is wrong, when it is not what was published.
func (s *Store) Load(ctx context.Context, id string) (_ *Snapshot, release func(), err error) {
	if !s.hold(id) {
		return nil, nil, wrenn.Errorf(wrenn.NotFound, "there is no snapshot %.80q", id)
	}
	release = sync.OnceFunc(func() { s.release(id) })
	snap := &Snapshot{dir: s.path(id)}
	if snap.Manifest, err = readManifest(snap.dir); err == nil {
		err = s.check(ctx, snap, knownFiles)
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	return snap, release, nil
}

// Verify reads the snapshot whole and compares it with what was hashed; errors
// are those of Load.
func (s *Store) Verify(ctx context.Context, id string) error {
	snap, release, err := s.Load(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	return s.check(ctx, snap, allFiles)
}

func (s *Store) hold(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[id]
	if e == nil {
		return false
	}
	e.held++
	e.used = true
	return true
}

// Unkeep lets a kept snapshot go when nobody refers to it. NotFound when there is none.
func (s *Store) Unkeep(id string) error { return s.setKept(id, false, s.reserve.WriteFile) }

// Keep takes back an Unkeep. NotFound when the snapshot is gone.
func (s *Store) Keep(id string) error { return s.setKept(id, true, durable.WriteFile) }

func (s *Store) setKept(id string, kept bool, write durable.WriteFunc) error {
	if !s.hold(id) {
		return wrenn.Errorf(wrenn.NotFound, "there is no snapshot %.80q", id)
	}
	defer s.release(id)
	man, err := readManifest(s.path(id))
	if err == nil && man.Kept != kept { // one that cannot be read is of no use in any case
		man.Kept = kept
		if err := writeManifest(s.path(id), man, write); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[id].kept = kept
	return nil
}

// Collect removes the snapshots that are neither kept, nor held, nor among
// those that referenced returns. Who makes a
// new reference to a snapshot must hold it until referenced would say so.
// A crash in the middle leaves the rest to the next Open.
func (s *Store) Collect(ctx context.Context, referenced func() map[string]bool) error {
	if err := s.sweep.Lock(ctx); err != nil {
		return err
	}
	defer s.sweep.Unlock()
	idle := s.idle()
	if len(idle) == 0 {
		return nil
	}
	refs := referenced() // after idle: what was let go before is in it
	var errs []error
	for _, id := range idle {
		if !refs[id] && s.condemn(id) {
			errs = append(errs, s.remove(id))
		}
	}
	return errors.Join(errs...)
}

// idle lists what nobody keeps or holds, and begins to watch who uses it.
func (s *Store) idle() (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, e := range s.entries {
		e.used = e.held > 0
		if !e.kept && !e.used {
			ids = append(ids, id)
		}
	}
	return ids
}

// condemn makes the snapshot nobody's, unless somebody used it since idle.
func (s *Store) condemn(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[id]; e == nil || e.used || e.kept {
		return false
	}
	delete(s.entries, id)
	return true
}

// remove deletes a condemned snapshot, which is whole or gone.
func (s *Store) remove(id string) error {
	aside := filepath.Join(s.dir, stagedPrefix+id)
	err := os.RemoveAll(aside) // the rest of one that could not be removed
	if err == nil {
		err = os.Rename(s.path(id), aside)
	}
	if err != nil { // it is still there: try again at the next Collect
		s.mu.Lock()
		defer s.mu.Unlock()
		s.entries[id] = cmp.Or(s.entries[id], &entry{hashed: true})
		return fmt.Errorf("remove snapshot %s: %w", id, err)
	}
	return os.RemoveAll(aside)
}
