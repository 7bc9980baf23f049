package tree

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"syscall"

	"golang.org/x/sys/unix"

	"wrenn.dev"
)

// unixStat is what os.FileInfo has of a file.
type unixStat = syscall.Stat_t

// Write writes content to a file, which changes as a whole at the end and is on the
// disk then. A link of that name is replaced, not followed. An error of content is
// returned, wrapped; the file stays as it was.
func (t *Tree) Write(name string, w wrenn.VolumeWrite, content io.Reader) (*wrenn.VolumeEntry, error) {
	name, err := clean(name)
	if err == nil {
		err = check(w.VolumeAttributes)
	}
	if err == nil && name == "." {
		err = failure(name, unix.EISDIR)
	}
	if err == nil && w.Parents {
		err = t.makeParents(path.Dir(name))
	}
	if err != nil {
		return nil, err
	}
	dir, err := t.root.OpenFile(path.Dir(name), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, failure(name, err)
	}
	defer dir.Close()
	attributes, err := t.attributesOf(name, w)
	if err != nil {
		return nil, err
	}
	f, err := stage(dir)
	if err != nil {
		return nil, failure(name, err)
	}
	defer f.Close() // what was not published is gone then
	if _, err := io.Copy(f, content); err != nil {
		return nil, failure(name, err)
	}
	if err := finish(f, attributes); err != nil {
		return nil, failure(name, err)
	}
	if err := publish(dir, f, path.Base(name), w.NoReplace); err != nil {
		return nil, failure(name, err)
	}
	return t.stat(name)
}

// attributesOf returns the attributes of a file that is written: those of the file
// that it replaces, where no others are asked for.
func (t *Tree) attributesOf(name string, w wrenn.VolumeWrite) (wrenn.VolumeAttributes, error) {
	a := w.VolumeAttributes
	before, err := t.stat(name)
	switch {
	case wrenn.CodeOf(err) == wrenn.NotFound, err == nil && before.Type == wrenn.Symlink:
	case err != nil:
		return a, err
	case w.NoReplace:
		return a, failure(name, unix.EEXIST)
	case before.Type == wrenn.Directory:
		return a, failure(name, unix.EISDIR)
	default:
		if a.UID == nil {
			a.UID = &before.UID
		}
		if a.GID == nil {
			a.GID = &before.GID
		}
		if a.Mode == nil {
			a.Mode = new(before.Mode & permissions)
		}
	}
	return withDefaults(a, defaultMode), nil
}

// stage opens a new file without a name, which no sandbox sees and no crash leaves.
func stage(dir *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "new file"), nil
}

func finish(f *os.File, a wrenn.VolumeAttributes) error {
	if err := f.Chown(id(a.UID), id(a.GID)); err != nil {
		return err
	}
	if err := f.Chmod(fileMode(*a.Mode)); err != nil {
		return err
	}
	return f.Sync()
}

// publish gives a staged file its name in a directory.
func publish(dir, f *os.File, name string, noReplace bool) error {
	from, at := fmt.Sprintf("/proc/self/fd/%d", f.Fd()), int(dir.Fd())
	err := unix.Linkat(unix.AT_FDCWD, from, at, name, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, unix.EEXIST) && !noReplace {
		between := ".wrenn-" + rand.Text() // until the rename below
		if err = unix.Linkat(unix.AT_FDCWD, from, at, between, unix.AT_SYMLINK_FOLLOW); err == nil {
			if err = unix.Renameat(at, between, at, name); err != nil {
				err = errors.Join(err, ignoreNotFound(unix.Unlinkat(at, between, 0)))
			}
		}
	}
	if err != nil {
		return err
	}
	return dir.Sync()
}

func ignoreNotFound(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
