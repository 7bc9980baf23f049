package filesystem

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/rollback"
)

// move renames source to destination and makes the destination's missing parents.
// After an error both are as before, unless the source could not be removed after it
// was copied to another file system.
func move(ctx context.Context, source, destination string, user caller) error {
	if _, err := os.Lstat(source); err != nil {
		return failure("move", source, err)
	}
	var undo rollback.Stack
	defer undo.Run(ctx)
	if err := makeDirs(filepath.Dir(destination), user, &undo); err != nil {
		return failure("make the directory of", destination, err)
	}
	err := os.Rename(source, destination)
	if errors.Is(err, syscall.EXDEV) {
		err = moveAcross(ctx, source, destination, &undo)
	}
	if errors.Is(err, syscall.ENOTDIR) {
		return wrenn.Errorf(wrenn.Invalid, "'%s' is a file: a directory cannot take its place", printable(destination))
	}
	if err != nil {
		return failure("move to", destination, err)
	}
	undo.Keep()
	return nil
}

// moveAcross moves to another file system: it copies to a temporary name beside the
// destination, renames that over the destination, and then removes the source.
func moveAcross(ctx context.Context, source, destination string, undo *rollback.Stack) error {
	staged := filepath.Join(filepath.Dir(destination), stagedPrefix+rand.Text())
	undo.AddFunc(func() { _ = os.RemoveAll(staged) }) // not there once renamed
	if err := copyTree(ctx, source, staged); err != nil {
		return err
	}
	if err := os.Rename(staged, destination); err != nil {
		return err
	}
	undo.Keep()
	if err := os.RemoveAll(source); err != nil {
		return wrenn.Errorf(wrenn.Internal, "'%s' was copied to its new place, but could not be removed at the old one: %s", printable(source), reason(err))
	}
	return nil
}

// copyTree copies a file, a link or a whole directory with its attributes. Hard
// links become separate files.
func copyTree(ctx context.Context, from, to string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	switch info.Mode().Type() {
	case 0:
		err = copyFile(from, to)
	case fs.ModeSymlink:
		err = copyLink(from, to)
	case fs.ModeDir:
		err = copyDir(ctx, from, to)
	default:
		err = wrenn.Errorf(wrenn.Invalid, "'%s' is a pipe, socket or device and cannot go to another file system", printable(from))
	}
	if err != nil {
		return err
	}
	return copyAttributes(info, from, to)
}

func copyFile(from, to string) error {
	src, _, err := openForReading(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

func copyLink(from, to string) error {
	target, err := os.Readlink(from)
	if err != nil {
		return err
	}
	return os.Symlink(target, to)
}

func copyDir(ctx context.Context, from, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	f, err := openDir(from)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		children, err := f.ReadDir(scanned)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, child := range children {
			if err := copyTree(ctx, filepath.Join(from, child.Name()), filepath.Join(to, child.Name())); err != nil {
				return err
			}
		}
	}
}

// copyAttributes gives a copy the owner, extended attributes, mode and times of the
// original, in this order: changing the owner clears some of the others.
func copyAttributes(info fs.FileInfo, from, to string) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.ErrUnsupported
	}
	mode := info.Mode()
	err := os.Lchown(to, int(stat.Uid), int(stat.Gid))
	if errors.Is(err, fs.ErrPermission) { // only root gives files away: as mv(1) does, the copy is the user's
		mode &^= fs.ModeSetuid | fs.ModeSetgid
	} else if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSymlink {
		copyXattrs(from, to)
		if err := os.Chmod(to, mode); err != nil {
			return err
		}
	}
	times := []unix.Timespec{unix.Timespec(stat.Atim), unix.Timespec(stat.Mtim)}
	return unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW)
}

// copyXattrs copies the attributes that the other file system accepts, as mv(1)
// does: tmpfs accepts user attributes since Linux 6.6.
func copyXattrs(from, to string) {
	value := make([]byte, maxXattr)
	for name := range strings.SplitSeq(xattrNames(from), "\x00") {
		if name == "" {
			continue
		}
		if n, err := unix.Getxattr(from, name, value); err == nil {
			_ = unix.Setxattr(to, name, value[:n], 0)
		}
	}
}
