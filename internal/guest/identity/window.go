package identity

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// window is an open file that is changed in place, because it is mounted over
// another one. The zero value is closed.
//
// It uses system calls and not package os: after a restore an emulated CPU runs
// all code for the first time, so the amount of code matters, not how often it runs.
type window struct {
	fd       int // 0 is none: it is the standard input
	dev, ino uint64
	size     int64
}

// open closes the window and opens the file at path.
func (w *window) open(path string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	var stat unix.Stat_t
	err = unix.Fstat(fd, &stat)
	if err == nil && stat.Mode&unix.S_IFMT != unix.S_IFREG {
		err = unix.EINVAL
	}
	if err != nil {
		_ = unix.Close(fd) // nothing was written
		return fmt.Errorf("%s is no file to write to: %w", path, err)
	}
	w.close()
	*w = window{fd: fd, dev: stat.Dev, ino: stat.Ino, size: stat.Size}
	return nil
}

// close closes the window. Twice is allowed.
func (w *window) close() {
	if w.fd != 0 {
		_ = unix.Close(w.fd) // writing has told all errors there are
	}
	*w = window{}
}

// isIn reports whether the file with that name in the directory is this one.
func (w *window) isIn(dir place, name string) bool {
	var stat unix.Stat_t
	return w.fd != 0 && unix.Fstatat(dir.fd, name, &stat, 0) == nil && stat.Dev == w.dev && stat.Ino == w.ino
}

// isLinked reports whether the file has a name.
func (w *window) isLinked() bool {
	var stat unix.Stat_t
	return w.fd != 0 && unix.Fstat(w.fd, &stat) == nil && stat.Nlink > 0
}

// set replaces the content by text.
func (w *window) set(text string) error {
	if _, err := unix.Pwrite(w.fd, []byte(text), 0); err != nil {
		return err
	}
	if n := int64(len(text)); n < w.size {
		if err := unix.Ftruncate(w.fd, n); err != nil {
			return err
		}
	}
	w.size = int64(len(text))
	return nil
}

// place is an open directory, so that its files are found without resolving its
// path again. The zero value is closed.
type place struct{ fd int }

// open closes the place and opens the directory at path.
func (p *place) open(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	if p.fd != 0 {
		_ = unix.Close(p.fd) // nothing was written
	}
	p.fd = fd
	return nil
}

// isEmpty reports whether the directory is empty. It is false when that is
// unknown, as for a removed directory.
func (p *place) isEmpty() bool {
	if p.fd == 0 {
		return false
	}
	if _, err := unix.Seek(p.fd, 0, unix.SEEK_SET); err != nil {
		return false
	}
	var buf [256]byte // the first entries are . and .., wherever there are such
	n, err := unix.Getdents(p.fd, buf[:])
	if err != nil || n < 0 {
		return false
	}
	_, count, _ := unix.ParseDirent(buf[:n], -1, nil)
	return count == 0
}
