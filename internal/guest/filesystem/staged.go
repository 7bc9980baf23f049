package filesystem

import (
	"crypto/rand"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/rollback"
)

const (
	// stagedPrefix begins the names of files that are not complete yet. Watches do
	// not report them.
	stagedPrefix = ".wrenn-upload-"
	// replacingPrefix begins the names of those that will replace a file.
	replacingPrefix = stagedPrefix + "over-"
	// maxComputed is the most that is written to a file under /proc or /sys, for
	// which the kernel takes no more than a page.
	maxComputed = 4096
)

// stagedFile is an upload in a temporary file beside its target. A rename makes it
// visible, so a reader finds the old content or the new. It is not synced: see
// docs/envd-files.md.
type stagedFile struct {
	path   string // of the request
	target string // where the links at path lead
	user   caller
	temp   *os.File    // nil for a computed file
	mode   fs.FileMode // the target's, if it exists
	exists bool        // the target does, and the user may write to it
	value  []byte      // of a computed file
}

// newStagedFile makes the target's parents and the temporary file; undo removes
// both. The caller has the user's credentials, for undo and publish too.
func newStagedFile(path, target string, user caller, undo *rollback.Stack) (*stagedFile, error) {
	f := &stagedFile{path: path, target: target, user: user, mode: 0o644}
	switch info, err := os.Stat(target); {
	case err == nil:
		if err := mustBeFile(path, info); err != nil {
			return nil, err
		}
		if isComputed(target) {
			return f, nil
		}
		// To replace it would need no right to write to it: the directory's is enough.
		if err := unix.Faccessat(unix.AT_FDCWD, target, unix.W_OK, unix.AT_EACCESS); err != nil {
			return nil, err
		}
		f.mode, f.exists = info.Mode().Perm(), true
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR): // makeDirs has words for that
		return nil, err
	}
	dir := filepath.Dir(target)
	if err := makeDirs(dir, user, undo); err != nil {
		return nil, err
	}
	prefix := stagedPrefix
	if f.exists {
		prefix = replacing(target)
	}
	temp, err := makeTemp(dir, prefix)
	if f.exists && errors.Is(err, fs.ErrPermission) { // the user may write to the file, not beside it
		temp, err = makeTemp(os.TempDir(), prefix)
	}
	if err != nil {
		return nil, err
	}
	undo.AddFunc(func() { _ = os.Remove(temp.Name()) }) // not there once published
	f.temp = temp
	return f, nil
}

// replacing begins the name of a temporary file that will replace target. From the
// name of a file that is renamed watches know whether, and which.
func replacing(target string) string {
	name := fnv.New64a()
	_, _ = io.WriteString(name, filepath.Base(target)) // a hash takes everything
	return fmt.Sprintf("%s%016x-", replacingPrefix, name.Sum64())
}

func makeTemp(dir, prefix string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, prefix+rand.Text()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

// fill reads content to its end and closes the file, which can be published then.
func (f *stagedFile) fill(content io.Reader, buffer []byte, metadata map[string]string) error {
	if f.temp == nil {
		return f.fillComputed(content, metadata)
	}
	err := copyAll(f.temp, content, buffer)
	if err == nil {
		err = writeMetadata(f.temp, metadata)
	}
	if err == nil {
		err = f.temp.Chown(int(f.user.UID), int(f.user.GID))
	}
	if err == nil {
		err = f.temp.Chmod(f.mode) // last: chown takes bits away
	}
	return errors.Join(err, f.temp.Close())
}

func (f *stagedFile) fillComputed(content io.Reader, metadata map[string]string) error {
	if len(metadata) > 0 {
		return errNoMetadata
	}
	value, err := io.ReadAll(io.LimitReader(content, maxComputed+1))
	if err != nil {
		return broken(err)
	}
	if len(value) > maxComputed {
		return wrenn.Errorf(wrenn.Invalid, "path '%s' takes no more than %d bytes", printable(f.path), maxComputed)
	}
	f.value = value
	return nil
}

// publish puts the file in its target's place. Watches see what they would see of
// a file that is written in place: of a new one that it is created, its mode and its
// content; of an existing one its mode, that its old content goes, and the new one.
func (f *stagedFile) publish() error {
	if f.temp == nil {
		return writeComputed(f.target, f.value)
	}
	err := os.Rename(f.temp.Name(), f.target)
	if f.exists && (errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EXDEV)) {
		return f.overwrite()
	}
	if err != nil {
		return err
	}
	// For inotify a rename is only a new file. Setting the mode that it has is a
	// chmod, and setting the time of the last change, and no other, is a write:
	// notify_change in fs/attr.c. The file may be removed already.
	if !f.exists {
		_ = f.chmodTarget()
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, f.target, times, unix.AT_SYMLINK_NOFOLLOW)
	return nil
}

// chmodTarget sets the mode of the published file, unless there is a link by now.
func (f *stagedFile) chmodTarget() error {
	file, err := os.OpenFile(f.target, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return errors.Join(file.Chmod(f.mode), file.Close())
}

// overwrite copies the temporary file into the target, in a directory where the
// user may write to the target and not replace it. A reader may see half of it.
func (f *stagedFile) overwrite() error {
	if err := os.Chmod(f.temp.Name(), 0o600); err != nil {
		return err
	}
	from, err := os.Open(f.temp.Name())
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(f.target, os.O_WRONLY|os.O_TRUNC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	copyXattrs(from.Name(), f.target)
	return errors.Join(err, to.Close(), os.Remove(from.Name()))
}

// writeComputed writes in place with one write(2): for these files each write is a
// whole value.
func writeComputed(path string, value []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(value)
	return errors.Join(err, f.Close())
}

// copyAll copies until src ends. It writes whole buffers, though parsers return
// less at a time. An error of src means that the upload is broken, one of dst is the
// kernel's.
func copyAll(dst io.Writer, src io.Reader, buffer []byte) error {
	var readErr error
	for readErr == nil {
		filled := 0
		for filled < len(buffer) && readErr == nil {
			var n int
			n, readErr = src.Read(buffer[filled:])
			filled += n
		}
		if _, err := dst.Write(buffer[:filled]); err != nil {
			return err
		}
	}
	if errors.Is(readErr, io.EOF) {
		return nil
	}
	return broken(readErr)
}

// isStaged reports whether path is that of a file that is not complete yet.
func isStaged(path string) bool { return strings.HasPrefix(filepath.Base(path), stagedPrefix) }
