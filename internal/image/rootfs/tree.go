package rootfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"wrenn.dev"
)

// maxLinks bounds the symbolic links of a path, as the kernel does.
const maxLinks = 40

// Bounds of a path in a tree. mke2fs of e2fsprogs 1.47.0 writes behind a buffer for a
// path of 2,040 bytes; the longest of usual images have 300 bytes and 30 elements.
const (
	maxPath  = 1024
	maxDepth = 128
)

// checkPath returns Invalid for a path, without links, that is too long or too deep.
func checkPath(name string) error {
	if len(name) > maxPath || strings.Count(name, "/") >= maxDepth {
		return wrenn.Errorf(wrenn.Invalid, "the image has a path with more than %d bytes or %d directories: %.80q…", maxPath, maxDepth, name)
	}
	return nil
}

// maxSmallFile bounds a file that is read from a hostile tree.
const maxSmallFile = 1 << 20

// Tree is a directory that will be the root of a guest. Links in it, also absolute
// ones, are followed as in the guest, so that no path leads out of it, even if its
// content is hostile.
type Tree struct {
	root    *os.Root
	entries int   // of the archives that were unpacked into it
	read    int64 // bytes of these archives, also of entries that were skipped
	most    int64 // of read
}

// OpenTree opens the directory. The caller must Close the tree.
func OpenTree(dir string) (*Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Tree{root: root}, nil
}

// Close closes the tree. The directory stays.
func (t *Tree) Close() error { return t.root.Close() }

// resolve follows the links in an absolute path as a process with this root would,
// and returns a path without links, relative to the root. Missing elements at its
// end stay as they are.
func (t *Tree) resolve(name string) (string, error) {
	rest, done := strings.Split(name, "/"), "."
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		if part == "" || part == "." {
			continue
		}
		if part == ".." {
			done = path.Dir(done) // of "." that is "."
			continue
		}
		next := path.Join(done, part)
		target, err := t.root.Readlink(next)
		if err != nil { // not a link, or missing
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", &fs.PathError{Op: "resolve", Path: name, Err: syscall.ELOOP}
		}
		if path.IsAbs(target) {
			done = "."
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return done, checkPath(done)
}

// Stat returns the FileInfo of the file that an absolute path leads to.
func (t *Tree) Stat(name string) (fs.FileInfo, error) {
	at, err := t.resolve(name)
	if err != nil {
		return nil, err
	}
	return t.root.Lstat(at)
}

// Executable reports whether a path leads to an executable file.
func (t *Tree) Executable(name string) bool {
	info, err := t.Stat(name)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// Find returns the path of a program in the guest's PATH, "" without one.
func (t *Tree) Find(program string) string {
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		if file := path.Join(dir, program); t.Executable(file) {
			return file
		}
	}
	return ""
}

// ReadFile returns a small file; a missing one is an error that is fs.ErrNotExist.
func (t *Tree) ReadFile(name string) ([]byte, error) {
	info, err := t.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSmallFile {
		return nil, fmt.Errorf("%s is not a regular file, or is larger than %d MiB", name, maxSmallFile>>20)
	}
	at, err := t.resolve(name)
	if err != nil {
		return nil, err
	}
	f, err := t.root.Open(at)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSmallFile))
}

// WriteFile writes a file that is owned by root, and makes missing directories. It
// replaces any file, link or directory of that name.
func (t *Tree) WriteFile(name string, data []byte, mode fs.FileMode) error {
	at, err := t.parent(name)
	if err != nil {
		return err
	}
	if err := t.root.RemoveAll(at); err != nil {
		return err
	}
	f, err := t.root.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Chmod(mode), f.Close())
}

// parent makes the directories above an absolute path and returns the path
// with the links above it followed.
func (t *Tree) parent(name string) (string, error) {
	dir, base := path.Split(name)
	at, err := t.resolve(dir)
	if err != nil {
		return "", err
	}
	if err := t.root.MkdirAll(at, 0o755); err != nil {
		return "", err
	}
	name = path.Join(at, base)
	return name, checkPath(name)
}

// MakeDirectories makes the directories that a guest's first programs mount on or
// write to, and the links that other inits make. Existing ones stay, except that
// /tmp and /var/tmp become writable for all.
func (t *Tree) MakeDirectories() error {
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp"} {
		at, err := t.resolve(dir)
		if err != nil {
			return err
		}
		if err := t.root.MkdirAll(at, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	for _, dir := range []string{"/tmp", "/var/tmp"} {
		at, err := t.resolve(dir)
		if err != nil {
			return err
		}
		if err := t.root.Chmod(at, fs.ModeSticky|0o777); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	return t.linkMounts()
}

// linkMounts makes /etc/mtab a link to /proc/self/mounts, unless it exists.
func (t *Tree) linkMounts() error {
	at, err := t.parent("/etc/mtab")
	if err != nil {
		return err
	}
	if err := t.root.Symlink("../proc/self/mounts", at); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
