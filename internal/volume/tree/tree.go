// Package tree works on the files of a volume for its team, which reaches them without
// a sandbox. The volume's files are hostile: sandboxes change them at the same time,
// and links in it may name anything. All paths are resolved below the root (os.Root),
// so that none leads out, and what a call reads, lists and removes is bounded.
package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev"
)

const (
	maxPathBytes = 4095 // PATH_MAX of the kernel
	// maxLevels bounds what is listed and removed: a program in a sandbox can make
	// directories that are deeper than any path.
	maxLevels = 128
	// MaxEntries bounds a list.
	MaxEntries = 10_000
	// maxListBytes bounds the paths and targets of a list.
	maxListBytes = 4 << 20
	// batch is how many names of a directory are in memory at once.
	batch = 256

	defaultID     = 1000 // of user, in images of Wrenn
	defaultMode   = 0o644
	defaultDir    = 0o755
	maxMode       = 0o7777
	maxID         = 1<<32 - 2 // -1 means unchanged to the kernel
	permissions   = 0o777
	modeStickyBit = 0o1000
	modeSetGID    = 0o2000
	modeSetUID    = 0o4000
)

// Tree is the files of a volume. It is safe for concurrent use.
type Tree struct{ root *os.Root }

// Open returns the files below a directory, which the caller closes after the Tree.
func Open(dir *os.File) (*Tree, error) {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open the volume's root: %w", err)
	}
	return &Tree{root}, nil
}

// Close ends the use of the files; twice is allowed. Open files of it stay open.
func (t *Tree) Close() error { return t.root.Close() }

// clean returns a path as os.Root takes it: relative, "." for the root. Dots are
// resolved by name, before links are.
func clean(name string) (string, error) {
	if len(name) > maxPathBytes || strings.ContainsRune(name, 0) {
		return "", wrenn.Errorf(wrenn.Invalid, "a path has at most %d bytes, and no zero byte", maxPathBytes)
	}
	if name = strings.TrimPrefix(path.Clean("/"+name), "/"); name == "" {
		name = "."
	}
	return name, nil
}

// failure returns the error of a system call as the user gets it.
func failure(name string, err error) error {
	if err == nil {
		return nil
	}
	if _, told := errors.AsType[*wrenn.Error](err); told {
		return err
	}
	code, text := wrenn.Internal, "the volume's file system failed"
	errno, _ := errors.AsType[unix.Errno](err)
	switch errno {
	case unix.ENOENT:
		code, text = wrenn.NotFound, "there is no such file or directory in the volume"
	case unix.EEXIST:
		code, text = wrenn.AlreadyExists, "it exists already"
	case unix.ENOTEMPTY:
		code, text = wrenn.FailedPrecondition, "the directory is not empty"
	case unix.ENOTDIR:
		code, text = wrenn.Invalid, "a part of the path is not a directory"
	case unix.EISDIR:
		code, text = wrenn.Invalid, "it is a directory"
	case unix.ENOSPC, unix.EDQUOT:
		code, text = wrenn.NoSpace, "the volume is full: remove files first"
	case unix.ENAMETOOLONG:
		code, text = wrenn.Invalid, "a name has at most 255 bytes"
	case unix.ELOOP:
		code, text = wrenn.Invalid, "too many links"
	case unix.EMLINK:
		code, text = wrenn.Exhausted, "the directory has too many directories"
	case unix.EINVAL:
		code, text = wrenn.Invalid, "this cannot be done with it"
	default:
		if strings.Contains(err.Error(), "path escapes from parent") { // of os.Root, which has no variable for it
			code, text = wrenn.Invalid, "a link in the path leads out of the volume, or is absolute"
		}
	}
	return &wrenn.Error{Code: code, Message: fmt.Sprintf("%.200q: %s", "/"+strings.TrimPrefix(name, "."), text), Err: err}
}

// Stat describes a file, directory or link.
func (t *Tree) Stat(name string) (*wrenn.VolumeEntry, error) {
	name, err := clean(name)
	if err != nil {
		return nil, err
	}
	return t.stat(name)
}

func (t *Tree) stat(name string) (*wrenn.VolumeEntry, error) {
	info, err := t.root.Lstat(name)
	if err != nil {
		return nil, failure(name, err)
	}
	e := entry(name, info)
	if e.Type == wrenn.Symlink {
		if e.Target, err = t.root.Readlink(name); err != nil { // it may have been replaced since
			return nil, failure(name, err)
		}
	}
	return e, nil
}

// entry describes a file, but for the target of a link. Names that are no UTF-8 are
// shown with replacement characters.
func entry(name string, info fs.FileInfo) *wrenn.VolumeEntry {
	e := &wrenn.VolumeEntry{Path: shown(name), Type: wrenn.OtherFile, Size: info.Size(), ModifiedAt: info.ModTime().UTC()}
	switch info.Mode().Type() {
	case 0:
		e.Type = wrenn.RegularFile
	case fs.ModeDir:
		e.Type = wrenn.Directory
	case fs.ModeSymlink:
		e.Type = wrenn.Symlink
	}
	if stat, ok := info.Sys().(*unixStat); ok {
		e.Mode, e.UID, e.GID = stat.Mode&maxMode, stat.Uid, stat.Gid
		e.AccessedAt, e.ChangedAt = time.Unix(stat.Atim.Unix()).UTC(), time.Unix(stat.Ctim.Unix()).UTC()
	}
	return e
}

func shown(name string) string {
	if name == "." {
		return "/"
	}
	return "/" + strings.ToValidUTF8(name, "\uFFFD")
}

// List returns the entries of a directory, of as many levels, in the order of their
// paths. Links are not followed. Exhausted when there are more than MaxEntries.
func (t *Tree) List(ctx context.Context, name string, levels int) ([]wrenn.VolumeEntry, error) {
	name, err := clean(name)
	if err != nil {
		return nil, err
	}
	if levels > maxLevels {
		return nil, wrenn.Errorf(wrenn.Invalid, "a list has at most %d levels of directories", maxLevels)
	}
	l := list{tree: t}
	if err := l.add(ctx, name, max(levels, 1)); err != nil {
		return nil, failure(name, err)
	}
	slices.SortFunc(l.entries, func(a, b wrenn.VolumeEntry) int { return strings.Compare(a.Path, b.Path) })
	return l.entries, nil
}

// list collects the entries of a List.
type list struct {
	tree    *Tree
	entries []wrenn.VolumeEntry
	bytes   int
}

func (l *list) add(ctx context.Context, dir string, levels int) error {
	return l.tree.each(ctx, dir, func(name string) error {
		e, err := l.tree.stat(name)
		if wrenn.CodeOf(err) == wrenn.NotFound { // it was removed since
			return nil
		}
		if err != nil {
			return err
		}
		l.entries = append(l.entries, *e)
		if l.bytes += len(e.Path) + len(e.Target); len(l.entries) > MaxEntries || l.bytes > maxListBytes {
			return wrenn.Errorf(wrenn.Exhausted, "the directory has more than %d entries, or their paths more than %d MiB: list fewer levels, or a directory in it", MaxEntries, maxListBytes>>20)
		}
		if e.Type == wrenn.Directory && levels > 1 {
			if err := l.add(ctx, name, levels-1); wrenn.CodeOf(err) != wrenn.NotFound {
				return err
			}
		}
		return nil
	})
}

// each calls f for the path of each entry of a directory, in no order.
func (t *Tree) each(ctx context.Context, dir string, f func(name string) error) error {
	d, err := t.root.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return failure(dir, err)
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(batch)
		for _, name := range names {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			full := path.Join(dir, name)
			if len(full) > maxPathBytes {
				return wrenn.Errorf(wrenn.Invalid, "the directory has a path of more than %d bytes: rename directories above it first", maxPathBytes)
			}
			if err := f(full); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return failure(dir, err)
		}
	}
}

// MakeDir makes a directory, with parents those above it as well. AlreadyExists if it
// exists; with parents an existing directory is left as it is.
func (t *Tree) MakeDir(name string, attributes wrenn.VolumeAttributes, parents bool) (*wrenn.VolumeEntry, error) {
	name, err := clean(name)
	if err == nil {
		err = check(attributes)
	}
	if err != nil {
		return nil, err
	}
	if parents {
		if err := t.makeParents(path.Dir(name)); err != nil {
			return nil, err
		}
	}
	err = t.makeDir(name, attributes)
	if parents && wrenn.CodeOf(err) == wrenn.AlreadyExists {
		if found, statErr := t.root.Stat(name); statErr == nil && found.IsDir() {
			err = nil
		}
	}
	if err != nil {
		return nil, err
	}
	return t.stat(name)
}

func (t *Tree) makeDir(name string, attributes wrenn.VolumeAttributes) error {
	if name == "." {
		return failure(name, unix.EEXIST)
	}
	if err := t.root.Mkdir(name, 0o700); err != nil {
		return failure(name, err)
	}
	return t.set(name, withDefaults(attributes, defaultDir))
}

// makeParents makes the directories of a path that do not exist.
func (t *Tree) makeParents(name string) error {
	for i := range len(name) + 1 {
		if i < len(name) && name[i] != '/' {
			continue
		}
		at := name[:i]
		found, err := t.root.Stat(at)
		switch {
		case err == nil && !found.IsDir():
			return failure(at, unix.ENOTDIR)
		case errors.Is(err, fs.ErrNotExist):
			if err = t.makeDir(at, wrenn.VolumeAttributes{}); wrenn.CodeOf(err) == wrenn.AlreadyExists { // it was made since, or is a broken link
				err = nil
			}
		}
		if err != nil {
			return failure(at, err)
		}
	}
	return nil
}

// check returns an Invalid error for attributes that no file has.
func check(a wrenn.VolumeAttributes) error {
	if a.Mode != nil && *a.Mode > maxMode {
		return wrenn.Errorf(wrenn.Invalid, "a mode is at most %#o, which is %d", maxMode, maxMode)
	}
	for _, id := range []*uint32{a.UID, a.GID} {
		if id != nil && *id > maxID {
			return wrenn.Errorf(wrenn.Invalid, "the id of a user or group is at most %d", uint32(maxID))
		}
	}
	return nil
}

// withDefaults returns the attributes of a new file.
func withDefaults(a wrenn.VolumeAttributes, mode uint32) wrenn.VolumeAttributes {
	for _, v := range []struct {
		value   **uint32
		initial uint32
	}{{&a.Mode, mode}, {&a.UID, defaultID}, {&a.GID, defaultID}} {
		if *v.value == nil {
			*v.value = new(v.initial)
		}
	}
	return a
}

// Set changes attributes of a file or directory. A link's owner is its own, its mode
// that of what it names.
func (t *Tree) Set(name string, a wrenn.VolumeAttributes) (*wrenn.VolumeEntry, error) {
	name, err := clean(name)
	if err == nil {
		err = check(a)
	}
	if err == nil {
		err = t.set(name, a)
	}
	if err != nil {
		return nil, err
	}
	return t.stat(name)
}

func (t *Tree) set(name string, a wrenn.VolumeAttributes) error {
	if a.UID != nil || a.GID != nil {
		if err := t.root.Lchown(name, id(a.UID), id(a.GID)); err != nil {
			return failure(name, err)
		}
	}
	if a.Mode == nil { // a change of the owner has cleared the bits for other ids, as it must
		return nil
	}
	return failure(name, t.root.Chmod(name, fileMode(*a.Mode)))
}

// id returns an id as the kernel takes it.
func id(n *uint32) int {
	if n == nil {
		return -1
	}
	return int(*n)
}

func fileMode(mode uint32) fs.FileMode {
	out := fs.FileMode(mode & permissions)
	for bit, flag := range map[uint32]fs.FileMode{modeStickyBit: fs.ModeSticky, modeSetGID: fs.ModeSetgid, modeSetUID: fs.ModeSetuid} {
		if mode&bit != 0 {
			out |= flag
		}
	}
	return out
}

// Rename gives a file or directory another path. What the new path names is replaced,
// unless it is a directory with entries.
func (t *Tree) Rename(from, to string) (*wrenn.VolumeEntry, error) {
	from, err := clean(from)
	if err != nil {
		return nil, err
	}
	if to, err = clean(to); err != nil {
		return nil, err
	}
	if from == "." || to == "." {
		return nil, wrenn.Errorf(wrenn.Invalid, "the root of the volume cannot be renamed or replaced")
	}
	if err := t.root.Rename(from, to); err != nil {
		return nil, failure(from, err)
	}
	return t.stat(to)
}

// Remove removes a file, a link, or a directory with all that is in it. When ctx ends
// first a part of it is removed.
func (t *Tree) Remove(ctx context.Context, name string) error {
	name, err := clean(name)
	if err != nil {
		return err
	}
	if name == "." {
		return wrenn.Errorf(wrenn.Invalid, "the root of the volume cannot be removed: delete the volume, or what is in it")
	}
	return failure(name, t.remove(ctx, name, maxLevels))
}

func (t *Tree) remove(ctx context.Context, name string, levels int) error {
	err := t.root.Remove(name)
	if !errors.Is(err, unix.ENOTEMPTY) {
		return failure(name, err)
	}
	if levels == 0 {
		return wrenn.Errorf(wrenn.FailedPrecondition, "the directory has more than %d levels: remove it by a sandbox that mounts the volume", maxLevels)
	}
	err = t.each(ctx, name, func(inner string) error {
		err := t.remove(ctx, inner, levels-1)
		if wrenn.CodeOf(err) == wrenn.NotFound { // it was removed since
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	return failure(name, t.root.Remove(name)) // not empty when a sandbox fills it at the same time
}

// Read opens a regular file. The caller closes it.
func (t *Tree) Read(name string) (*os.File, error) {
	name, err := clean(name)
	if err != nil {
		return nil, err
	}
	f, err := t.root.OpenFile(name, unix.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe would wait for its writer
	if errors.Is(err, unix.ENXIO) {
		err = unix.EINVAL
	}
	if err != nil {
		return nil, failure(name, err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.IsDir():
		err = unix.EISDIR
	case !info.Mode().IsRegular():
		err = unix.EINVAL
	default:
		return f, nil
	}
	f.Close()
	return nil, failure(name, err)
}
