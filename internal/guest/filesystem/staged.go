package filesystem

import (
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"wrenn"
	"wrenn/internal/rollback"
)

const (
	// stagedPrefix begins the names of files that are not whole yet. Watchers
	// do not report them.
	stagedPrefix = ".wrenn-upload-"
	// maxComputed is the most that is written to a file under /proc or /sys:
	// the kernel takes no more than a page there.
	maxComputed = 4096
)

// stagedFile is a file that has come, in part or whole, under a name of its
// own beside its target. Rename is what makes it visible, so a reader finds
// the old content or the new. It is not synced: see docs/envd-files.md.
type stagedFile struct {
	path   string // as asked for
	target string // where the links at path lead
	user   caller
	temp   *os.File    // nil for a computed file
	mode   fs.FileMode // the target's, if it is there
	value  []byte      // of a computed file
}

// newStagedFile makes the target's parents and the temporary file; undo takes
// both away.
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
		f.mode = info.Mode().Perm()
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR): // makeDirs has words for that
		return nil, err
	}
	dir := filepath.Dir(target)
	if err := makeDirs(dir, user, undo); err != nil {
		return nil, err
	}
	temp, err := os.OpenFile(filepath.Join(dir, stagedPrefix+rand.Text()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	undo.AddFunc(func() { _ = os.Remove(temp.Name()) }) // not there once published
	f.temp = temp
	return f, nil
}

// fill reads content to its end and closes the file, ready to be published.
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

// publish gives the file its name.
func (f *stagedFile) publish() error {
	if f.temp == nil {
		return writeComputed(f.target, f.value)
	}
	if err := os.Rename(f.temp.Name(), f.target); err != nil {
		return err
	}
	// A rename shows to watchers as a new file alone. Setting the time of the
	// last change, and no other, shows as a write: notify_change in fs/attr.c.
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, f.target, times, unix.AT_SYMLINK_NOFOLLOW) // may be gone again
	return nil
}

// writeComputed writes in place, all at once: these files take each write for
// a whole value.
func writeComputed(path string, value []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(value)
	return errors.Join(err, f.Close())
}

// copyAll copies until src ends, in whole buffers: parsers hand out less. An
// error of src says that the upload is broken, one of dst is the kernel's.
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

// isStaged reports whether path is that of a file that is not whole yet.
func isStaged(path string) bool { return strings.HasPrefix(filepath.Base(path), stagedPrefix) }
