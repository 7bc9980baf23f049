package filesystem

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/guest/account"
	pb "wrenn.dev/proto/gen/envd/filesystem"
)

const (
	// maxWatchedDirs bounds a recursive watch: the smallest total that the kernel
	// allows a user, see max_user_watches in inotify(7).
	maxWatchedDirs = 8192
	// maxAnnounced bounds the memory for entries that were reported before
	// the kernel did. Beyond it a creation may be reported twice.
	maxAnnounced = 1024
	// maxPending bounds the events that one new directory can cause.
	maxPending = 4096
	// scanned is how many entries of a directory are read at a time.
	scanned = 256
)

// networked are the magic numbers (statfs(2)) of file systems that other machines
// can change, which this kernel does not see.
var networked = []int64{
	unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC,
	unix.V9FS_MAGIC, unix.CEPH_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC, unix.CODA_SUPER_MAGIC, unix.NCP_SUPER_MAGIC,
}

// errLost means that the kernel or a buffer had no room for an event.
var errLost = wrenn.Errorf(wrenn.Exhausted, "events were lost because they were read too slowly: list the directory to see its state")

// watchSpec describes a watch.
type watchSpec struct {
	user      caller // only what this user may see is watched
	root      string // absolute
	recursive bool
	entries   bool // events have entries
	networks  bool // network mounts are watched, too
	accounts  account.DB
}

// watch reports the changes in a directory. One goroutine calls next; any may call
// Close, and one must.
type watch struct {
	watchSpec
	inotify   *fsnotify.Watcher
	dirs      map[string]fileID     // that inotify watches
	announced map[string]fileID     // reported ahead of the kernel's event
	replaced  string                // begins the name of what the next creation replaces; see replacing
	last      *pb.FilesystemEvent   // to detect repetitions
	pending   []*pb.FilesystemEvent // to be returned by next
	lost      bool                  // events after the pending ones were
	failed    error                 // ends the watch after that
}

// fileID distinguishes a file from another one with the same name.
type fileID struct{ dev, inode uint64 }

// newWatch starts to watch. The kernel keeps the events from now on until next
// reads them. The caller has the user's credentials.
func newWatch(spec watchSpec) (*watch, error) {
	if err := mustBeDir(spec.root); err != nil {
		return nil, err
	}
	if !spec.networks && isNetworked(spec.root) {
		return nil, wrenn.Errorf(wrenn.Invalid, "'%s' is on a network file system, whose changes are not all seen here; allow network mounts to watch it", printable(spec.root))
	}
	inotify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, &wrenn.Error{Code: wrenn.Exhausted, Message: "the kernel has no more watchers: remove some", Err: err}
	}
	w := &watch{watchSpec: spec, inotify: inotify, dirs: map[string]fileID{}, announced: map[string]fileID{}}
	if err := w.add(spec.root, false); err != nil {
		w.Close()
		return nil, failure("watch", spec.root, err)
	}
	return w, nil
}

// Close ends the watch, and next with it. Twice is allowed.
func (w *watch) Close() { _ = w.inotify.Close() } // closing its only descriptor does not fail

// next waits for events and returns one or more, which the caller owns. Its errors
// are errLost, after which the watch continues; io.EOF when the directory is gone;
// fs.ErrClosed after Close; the cause when ctx is done; a *wrenn.Error when the watch
// cannot continue.
func (w *watch) next(ctx context.Context) ([]*pb.FilesystemEvent, error) {
	for {
		switch {
		case len(w.pending) > 0:
			events := w.pending
			w.pending = nil
			return events, nil
		case w.lost:
			w.lost = false
			return nil, errLost
		case w.failed != nil:
			return nil, w.failed
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case event, ok := <-w.inotify.Events:
			if !ok {
				return nil, fs.ErrClosed
			}
			w.asUser(func() { w.take(event) })
		case err, ok := <-w.inotify.Errors:
			if !ok {
				return nil, fs.ErrClosed
			}
			w.asUser(func() { w.overflow(err) })
		}
	}
}

// asUser calls f with the user's credentials. When it cannot the watch ends.
func (w *watch) asUser(f func()) {
	if err := w.user.Do(func() error { f(); return nil }); err != nil {
		w.fail(w.root, err)
	}
}

// overflow handles an error of inotify. When the kernel's queue was full,
// directories may have been made, renamed or removed unseen: it starts again.
func (w *watch) overflow(err error) {
	if !errors.Is(err, fsnotify.ErrEventOverflow) {
		w.fail(w.root, err)
		return
	}
	w.lost = true
	w.forget(w.root)
	w.fail(w.root, w.add(w.root, false))
	w.endWithRoot()
}

// endWithRoot ends a watch that watches no directory any more.
func (w *watch) endWithRoot() {
	if len(w.dirs) == 0 && w.failed == nil {
		w.failed = io.EOF
	}
}

// fail ends the watch unless err is nil or says that path was removed, which an
// event reports.
func (w *watch) fail(path string, err error) {
	if err != nil && !gone(err) {
		w.failed = failure("watch", path, err)
	}
}

// take turns an event of inotify into events for the caller.
func (w *watch) take(event fsnotify.Event) {
	if isStaged(event.Name) {
		if event.Has(fsnotify.Rename) { // its new name comes next
			w.replaced = filepath.Base(event.Name)
		}
		return
	}
	if event.Has(fsnotify.Remove) || event.Has(fsnotify.Rename) {
		w.forget(event.Name)
	}
	if event.Has(fsnotify.Create) {
		w.created(event.Name)
	}
	for _, kind := range []struct {
		op   fsnotify.Op
		name pb.EventType
	}{
		{fsnotify.Write, pb.EventType_EVENT_TYPE_WRITE},
		{fsnotify.Remove, pb.EventType_EVENT_TYPE_REMOVE},
		{fsnotify.Rename, pb.EventType_EVENT_TYPE_RENAME},
		{fsnotify.Chmod, pb.EventType_EVENT_TYPE_CHMOD},
	} {
		if event.Has(kind.op) {
			w.report(event.Name, kind.name)
		}
	}
	w.endWithRoot()
}

// created reports a new entry, unless it was announced, and watches it if it is a
// directory.
func (w *watch) created(path string) {
	if strings.HasPrefix(w.replaced, replacing(path)) { // an upload; the kernel reports the write of the new content
		w.replaced = ""
		w.report(path, pb.EventType_EVENT_TYPE_CHMOD)
		w.report(path, pb.EventType_EVENT_TYPE_WRITE)
		return
	}
	info, err := os.Lstat(path)
	if err != nil { // it was removed again
		w.report(path, pb.EventType_EVENT_TYPE_CREATE)
		return
	}
	id, announced := w.announced[path]
	delete(w.announced, path)
	if announced && id == idOf(info) {
		return
	}
	w.report(path, pb.EventType_EVENT_TYPE_CREATE)
	if !info.IsDir() || !w.recursive {
		return
	}
	if old, ok := w.dirs[path]; ok && old != idOf(info) {
		w.forget(path) // a rename replaced it
	}
	w.fail(path, w.add(path, true))
}

// add watches dir and, when the watch is recursive, the directories below it.
// With announce it reports the entries that it finds: they may have been made
// before inotify watched.
func (w *watch) add(dir string, announce bool) error {
	if _, ok := w.dirs[dir]; !ok {
		if len(w.dirs) == maxWatchedDirs {
			return wrenn.Errorf(wrenn.Exhausted, "more than %d directories: watch one further down", maxWatchedDirs)
		}
		if err := w.inotify.Add(dir); err != nil {
			return watchLimit(err)
		}
		info, err := os.Stat(dir)
		if err != nil {
			_ = w.inotify.Remove(dir) // it was removed, too
			return err
		}
		w.dirs[dir] = idOf(info)
	}
	if !w.recursive {
		return nil
	}
	subdirs, err := w.scan(dir, announce)
	if err != nil {
		return err
	}
	for _, sub := range subdirs {
		if err := w.add(sub, announce); err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

// scan returns the directories in dir that are to be watched, and announces
// all entries if asked to. It stops when there are too many to watch.
func (w *watch) scan(dir string, announce bool) (subdirs []string, err error) {
	f, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for len(subdirs) <= maxWatchedDirs {
		children, err := f.ReadDir(scanned)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		for _, child := range children {
			path := filepath.Join(dir, child.Name())
			if isStaged(path) {
				continue
			}
			if announce {
				w.announce(path)
			}
			if child.IsDir() && (w.networks || !isNetworked(path)) {
				subdirs = append(subdirs, path)
			}
		}
	}
	return subdirs, nil
}

// watchLimit explains ENOSPC of inotify_add_watch(2).
func watchLimit(err error) error {
	if errors.Is(err, unix.ENOSPC) {
		return &wrenn.Error{Code: wrenn.Exhausted, Message: "the kernel watches no more directories: raise fs.inotify.max_user_watches, or watch fewer", Err: err}
	}
	return err
}

// announce reports an entry whose own event may still come.
func (w *watch) announce(path string) {
	info, err := os.Lstat(path)
	if err != nil {
		return
	}
	if len(w.announced) == maxAnnounced {
		clear(w.announced)
	}
	w.announced[path] = idOf(info)
	w.report(path, pb.EventType_EVENT_TYPE_CREATE)
}

// forget ends the watches of a path that was removed or renamed, and those below
// it: inotify would report events with the old names.
func (w *watch) forget(path string) {
	delete(w.announced, path)
	if _, ok := w.dirs[path]; !ok {
		return
	}
	for dir := range w.dirs {
		if within(dir, path) {
			delete(w.dirs, dir)
			_ = w.inotify.Remove(dir) // fails when the kernel has removed it
		}
	}
	for entry := range w.announced {
		if within(entry, path) {
			delete(w.announced, entry)
		}
	}
}

func within(path, dir string) bool {
	return path == dir || len(path) > len(dir) && path[:len(dir)] == dir && (path[len(dir)] == '/' || dir == "/")
}

// report queues an event for the caller. A change of a watched directory's
// attributes comes twice, from itself and from its parent.
func (w *watch) report(path string, kind pb.EventType) {
	if w.lost || len(w.pending) == maxPending {
		w.lost = true
		return
	}
	name, err := filepath.Rel(w.root, path)
	if err != nil {
		name = path // never happens: both are absolute
	}
	event := &pb.FilesystemEvent{Name: printable(name), Type: kind}
	if _, ok := w.dirs[path]; ok && kind == pb.EventType_EVENT_TYPE_CHMOD && w.last.GetType() == kind && w.last.GetName() == event.GetName() {
		return
	}
	w.last = event
	if w.entries && kind != pb.EventType_EVENT_TYPE_REMOVE && kind != pb.EventType_EVENT_TYPE_RENAME {
		event.Entry, _ = entry(path, w.accounts.Names()) // none when it was removed again
	}
	w.pending = append(w.pending, event)
}

func idOf(info fs.FileInfo) fileID {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return fileID{dev: stat.Dev, inode: stat.Ino}
	}
	return fileID{}
}

// isNetworked reports whether path is on a file system of the networked kind.
func isNetworked(path string) bool { return onFileSystem(path, networked) }
