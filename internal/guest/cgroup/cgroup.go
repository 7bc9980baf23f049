// Package cgroup gives each command of the guest its own cgroup, by which
// everything that the command started can be killed, and reserves memory, processes
// and CPU time for the agent.
//
//	/sys/fs/cgroup        init, chronyd: neither the agent nor users' programs
//	├── agent             the agent, protected
//	└── user              all commands together, with the limits for all
//	    ├── 1             a command and everything that it started
//	    └── 2
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

const (
	agentName = "agent"
	userName  = "user"

	// maxIdle is how many empty groups are kept for the next commands. A new
	// group costs system calls, and a removed one stays in the kernel's memory
	// for as long as its commands' page cache does.
	maxIdle = 8
)

// Tree makes the groups of commands. It is safe for concurrent use; Close it.
type Tree struct {
	dir    string // of the group of all commands
	limits limits // of each command; zero values are none
	log    *slog.Logger

	mu       sync.Mutex // guards the following
	last     uint64     // the number of the newest directory
	idle     []*dir
	busy     map[*Group]bool   // acquired, and not empty again; true: released
	watched  map[string]*Group // released ones, by path
	watcher  *fsnotify.Watcher // nil until a group is watched
	watching sync.WaitGroup
	closed   bool
}

// Open prepares the groups below root, where cgroup2 is mounted. With protect
// it moves the caller's process to a protected group and limits the commands;
// what of that is not possible is logged and left out. The error says why there
// can be no groups at all.
func Open(root string, protect bool, log *slog.Logger) (*Tree, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(root, &stat); err != nil {
		return nil, fmt.Errorf("cgroup root %s: %w", root, err)
	}
	if stat.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, fmt.Errorf("%s is not a cgroup2 file system", root)
	}
	t := &Tree{
		dir: filepath.Join(root, userName), log: log,
		busy: make(map[*Group]bool), watched: make(map[string]*Group),
	}
	if err := os.Mkdir(t.dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if protect {
		t.limits = protectAgent(root, log)
	}
	first, err := t.Acquire() // shows whether there can be groups, and saves the first command the time
	if err != nil {
		return nil, err
	}
	t.Release(first)
	return t, nil
}

// Acquire returns an empty group for one command. Release it when the command has ended.
func (t *Tree) Acquire() (*Group, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, fs.ErrClosed
	}
	d := t.reuse()
	if d == nil {
		var err error
		if d, err = t.create(); err != nil {
			return nil, err
		}
	}
	g := &Group{dir: d, fd: d.fd(), empty: make(chan struct{}), oomKills: d.oomKills}
	t.busy[g] = false
	return g, nil
}

// reuse returns an idle directory, or nil; t.mu is held.
func (t *Tree) reuse() *dir {
	for len(t.idle) > 0 {
		d := t.idle[len(t.idle)-1]
		t.idle = t.idle[:len(t.idle)-1]
		if d.exists() { // the guest's root may have removed it
			return d
		}
		d.close()
	}
	return nil
}

// create makes a directory; t.mu is held.
func (t *Tree) create() (*dir, error) {
	for {
		t.last++
		path := filepath.Join(t.dir, strconv.FormatUint(t.last, 10))
		err := os.Mkdir(path, 0o755)
		if errors.Is(err, fs.ErrExist) { // of an agent before this one
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("make a cgroup: %w", err)
		}
		d, err := openDir(path)
		if err != nil {
			return nil, errors.Join(err, unix.Rmdir(path))
		}
		t.limits.apply(d, t.log)
		return d, nil
	}
}

// Release gives back the group of a command that has ended. Processes that the
// command left run on: the directory is reused or removed when they have ended. Twice
// is allowed.
func (t *Tree) Release(g *Group) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if released, ok := t.busy[g]; !ok || released || t.closed {
		return
	}
	t.busy[g] = true
	if !g.dir.populated() {
		t.retire(g)
		return
	}
	if err := t.watch(g); err != nil {
		t.log.Warn("cannot watch a cgroup; it stays until the agent ends", slog.String("cgroup", g.dir.path), slog.Any("err", err))
		return
	}
	if !g.dir.populated() { // since it was asked first
		t.retire(g)
	}
}

// retire takes the directory of an empty group back; t.mu is held.
func (t *Tree) retire(g *Group) {
	d := g.retire()
	delete(t.busy, g)
	if t.watched[d.path] != nil {
		delete(t.watched, d.path)
		_ = t.watcher.Remove(d.eventsPath()) // the kernel may have been faster
	}
	if len(t.idle) < maxIdle && d.reset(t.limits) {
		t.idle = append(t.idle, d)
		return
	}
	d.close()
	if err := removeAll(d.path); err != nil {
		t.log.Warn("cannot remove a cgroup", slog.String("cgroup", d.path), slog.Any("err", err))
	}
}

// watch has g retired when it is empty; t.mu is held. The kernel reports a
// change of cgroup.events as a write to it.
func (t *Tree) watch(g *Group) error {
	if t.watcher == nil {
		watcher, err := fsnotify.NewWatcher()
		if err != nil {
			return err
		}
		t.watcher = watcher
		t.watching.Go(func() { t.follow(watcher) })
	}
	if err := t.watcher.Add(g.dir.eventsPath()); err != nil {
		return err
	}
	t.watched[g.dir.path] = g
	return nil
}

// follow retires watched groups as they become empty.
func (t *Tree) follow(watcher *fsnotify.Watcher) {
	for {
		select {
		case event, ok := <-watcher.Events:
			if !ok {
				return
			}
			t.retireEmpty(filepath.Dir(event.Name))
		case err, ok := <-watcher.Errors:
			if !ok {
				return
			}
			t.log.Warn("events of cgroups were lost", slog.Any("err", err))
			t.retireEmpty("")
		}
	}
}

// retireEmpty retires the watched group at path if it is empty; "" is all of them.
func (t *Tree) retireEmpty(path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	for at, g := range t.watched {
		if (path == "" || path == at) && !g.dir.populated() {
			t.retire(g)
		}
	}
}

// Close kills what is in the groups and removes them. Twice is allowed.
func (t *Tree) Close() {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return
	}
	t.closed = true
	watcher, dirs := t.watcher, t.idle
	for g := range t.busy {
		dirs = append(dirs, g.retire())
	}
	t.mu.Unlock()
	if watcher != nil {
		_ = watcher.Close() // only its descriptor
	}
	t.watching.Wait()
	for _, d := range dirs {
		if err := d.destroy(); err != nil {
			t.log.Warn("cannot remove a cgroup", slog.String("cgroup", d.path), slog.Any("err", err))
		}
	}
}

// removeAll removes a group and those below it, all without processes.
func removeAll(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return ignoreGone(err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeAll(filepath.Join(path, entry.Name())); err != nil {
				return err
			}
		}
	}
	return ignoreGone(unix.Rmdir(path))
}

// ignoreGone is err, unless it says that a group was removed.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
