// Package buildcache keeps files that builds of templates use again: the disks
// after their steps, and the archives of files that steps copy. Entries belong to
// a team and are named by a key. The least recently used ones are removed when
// there are too many.
package buildcache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
)

// Limits bound a cache. All fields are needed.
type Limits struct {
	Entries     int   // of all teams together
	Bytes       int64 // of all teams together
	TeamEntries int
	TeamBytes   int64
}

// Cache is a directory of entries. It is safe for concurrent use by one process.
type Cache struct {
	dir    string
	limits Limits

	mu      sync.Mutex // guards entries and what is in them
	entries map[name]*entry
}

// name names an entry.
type name struct{ team, key string }

// entry is what is known of an entry in memory.
type entry struct {
	record
	used   time.Time
	leases int // Collect leaves the entry while there are any
}

// record is what is stored of an entry beside its file.
type record struct {
	// Bytes is what the entry adds to the disk; it may share blocks with others.
	Bytes int64           `json:"bytes"`
	Meta  json.RawMessage `json:"meta,omitempty"`
}

const (
	dataExt   = ".data"
	recordExt = ".json"
	stagedExt = ".new"
)

// nameForm is what teams and keys look like: they become names of files.
var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,79}$`)

// Open returns the cache in dir, which it creates if necessary, and removes what
// an interrupted Put has left. One process at a time may have it open.
func Open(dir string, limits Limits) (*Cache, error) {
	c := &Cache{dir: dir, limits: limits, entries: map[name]*entry{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cache of builds: %w", err)
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasSuffix(path, stagedExt):
			return removeStaged(path)
		case d.IsDir():
			return nil
		}
		return c.load(path)
	})
	if err != nil {
		return nil, fmt.Errorf("cache of builds: %w", err)
	}
	return c, nil
}

func removeStaged(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return fs.SkipDir
}

// load enters the entry of a record's file, and removes files of no entry.
func (c *Cache) load(path string) error {
	rest, isRecord := strings.CutSuffix(path, recordExt)
	if !isRecord {
		stem, isData := strings.CutSuffix(path, dataExt)
		if _, err := os.Stat(stem + recordExt); isData && err == nil {
			return nil
		}
		return os.Remove(path)
	}
	n := name{filepath.Base(filepath.Dir(rest)), filepath.Base(rest)}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	e := &entry{used: info.ModTime()}
	_, missing := os.Stat(rest + dataExt)
	if json.Unmarshal(text, &e.record) != nil || missing != nil {
		return os.Remove(path)
	}
	c.entries[n] = e
	return nil
}

// Entry is a leased entry. The caller must Release it.
type Entry struct {
	Path string          // of its file, which must not be changed
	Meta json.RawMessage // that it was put with

	cache *Cache
	entry *entry
	once  sync.Once
}

// Release ends the lease. Twice is allowed.
func (e *Entry) Release() {
	e.once.Do(func() {
		e.cache.mu.Lock()
		defer e.cache.mu.Unlock()
		e.entry.leases--
	})
}

// Get returns an entry of the team, nil if there is none. It counts as a use.
func (c *Cache) Get(team, key string) *Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := name{team, key}
	e := c.entries[n]
	if e == nil {
		return nil
	}
	return c.lease(n, e)
}

// lease leases an entry. The caller must hold mu.
func (c *Cache) lease(n name, e *entry) *Entry {
	e.leases++
	e.used = time.Now()
	_ = os.Chtimes(c.path(n)+recordExt, e.used, e.used) // at worst it is removed too early
	return &Entry{Path: c.path(n) + dataExt, Meta: e.Meta, cache: c, entry: e}
}

func (c *Cache) path(n name) string { return filepath.Join(c.dir, n.team, n.key) }

// WriteFunc writes a file, which does not exist yet, and returns how many of its
// bytes on the disk are shared with other files. It may be called again after it
// failed because the disk is full.
type WriteFunc func(path string) (shared int64, err error)

// Put makes an entry of the file that write writes at the path that it is given,
// in place of one with the same name, and returns it leased. The entry is whole or
// does not exist, also after a power cut. Others are removed if the cache is over its
// limits then, or while the disk is full. Exhausted when the entry alone is too large.
func (c *Cache) Put(ctx context.Context, team, key string, meta any, write WriteFunc) (*Entry, error) {
	n := name{team, key}
	if !nameForm.MatchString(team) || !nameForm.MatchString(key) {
		return nil, wrenn.Errorf(wrenn.Invalid, "%.80q of %.80q cannot name an entry of the cache", key, team)
	}
	e, err := c.put(ctx, n, meta, write)
	for errors.Is(err, unix.ENOSPC) && c.RemoveOldest() {
		e, err = c.put(ctx, n, meta, write)
	}
	if err != nil {
		return nil, fmt.Errorf("cache of builds: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries[n] = e
	leased := c.lease(n, e)
	c.shrink(team)
	return leased, nil
}

func (c *Cache) put(ctx context.Context, n name, meta any, write WriteFunc) (*entry, error) {
	text, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(c.path(n)), 0o700); err != nil {
		return nil, err
	}
	staged, err := os.MkdirTemp(filepath.Dir(c.path(n)), "*"+stagedExt)
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(staged) }() // else the next Open removes it
	file := filepath.Join(staged, "file")
	shared, err := write(file)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	e := &entry{record: record{Bytes: max(0, info.Sys().(*syscall.Stat_t).Blocks*512-shared), Meta: text}}
	if e.Bytes > c.limits.TeamBytes {
		return nil, wrenn.Errorf(wrenn.Exhausted, "it has %d MiB, more than the %d MiB that a team may keep", e.Bytes>>20, c.limits.TeamBytes>>20)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return e, c.publish(n, file, e.record)
}

// publish gives a file and its record their names. Without its record a file is
// no entry.
func (c *Cache) publish(n name, file string, r record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := durable.Sync(file); err != nil {
		return err
	}
	if err := os.Rename(file, c.path(n)+dataExt); err != nil {
		return err
	}
	return durable.WriteFile(c.path(n)+recordExt, text, 0o600)
}

// shrink removes the least recently used entries that are too many. The caller
// must hold mu.
func (c *Cache) shrink(team string) {
	ofTeam := func(n name) bool { return n.team == team }
	all := func(name) bool { return true }
	for c.over(ofTeam, c.limits.TeamEntries, c.limits.TeamBytes) && c.removeOldest(ofTeam) {
	}
	for c.over(all, c.limits.Entries, c.limits.Bytes) && c.removeOldest(all) {
	}
}

// over reports whether the entries of some names are more than a limit.
func (c *Cache) over(which func(name) bool, entries int, bytes int64) bool {
	var n int
	var sum int64
	for name, e := range c.entries {
		if which(name) {
			n, sum = n+1, sum+e.Bytes
		}
	}
	return n > entries || sum > bytes
}

// removeOldest removes one entry that is not leased, and reports whether it did.
func (c *Cache) removeOldest(which func(name) bool) bool {
	var oldest name
	for n, e := range c.entries {
		if which(n) && e.leases == 0 && (oldest == name{} || e.used.Before(c.entries[oldest].used)) {
			oldest = n
		}
	}
	if oldest == (name{}) {
		return false
	}
	delete(c.entries, oldest)
	// Without its record the file is removed by the next Open.
	_ = errors.Join(os.Remove(c.path(oldest)+recordExt), os.Remove(c.path(oldest)+dataExt))
	return true
}

// RemoveOldest removes the least recently used entry that is not leased, to make
// room on the disk, and reports whether there was one.
func (c *Cache) RemoveOldest() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.removeOldest(func(name) bool { return true })
}

// Use is what a cache has.
type Use struct {
	Entries int
	Bytes   int64
}

// Use returns what the cache has now.
func (c *Cache) Use() Use {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := Use{Entries: len(c.entries)}
	for _, e := range c.entries {
		u.Bytes += e.Bytes
	}
	return u
}
