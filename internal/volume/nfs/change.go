package nfs

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// Linux's client asks for changes of names to be on the disk when it has the answer,
// because fsync of a directory sends it nothing. The server does that for what
// programs rely on to replace a file as a whole: rename and link. Other changes of
// names survive a crash of the host as on a local disk: when the file was synced,
// and otherwise after five seconds, when the journal is committed.

func (s *Server) setattr(c *call, d *decoder, e *encoder) error {
	return s.with(d, func(o *object) error {
		set := d.settings()
		guarded := d.bool()
		var sec, nsec uint32
		if guarded {
			sec, nsec = d.uint32(), d.uint32()
		}
		if d.err != nil {
			return d.err
		}
		st, err := o.stat()
		if err != nil {
			return err
		}
		if guarded && (uint32(st.Ctim.Sec) != sec || uint32(st.Ctim.Nsec) != nsec) {
			return statusNotSync
		}
		if err := set.by(c, o); err != nil {
			return err
		}
		e.changed(o)
		return nil
	})
}

// by applies the settings as a user. The owner may change the size whatever the
// mode is, as in reopen.
func (s *settings) by(c *call, o *object) error {
	if s.size != nil {
		fd, err := o.reopen(c, unix.O_WRONLY)
		if err != nil {
			return err
		}
		defer closeFD(fd)
		if err := c.user.Do(func() error { return unix.Ftruncate(fd, int64(*s.size)) }); err != nil {
			return err
		}
	}
	return c.user.Do(func() error { return s.apply(o) })
}

// How a write is to be stored.
const (
	unstable = 0
	fileSync = 2
)

func (s *Server) write(c *call, d *decoder, e *encoder) error {
	return s.with(d, func(o *object) error {
		offset, _, stable := d.uint64(), d.uint32(), d.uint32()
		data := d.opaque(transferSize)
		if d.err != nil {
			return d.err
		}
		fd, err := o.reopen(c, unix.O_WRONLY)
		if err != nil {
			return err
		}
		defer closeFD(fd)
		n, err := writeFull(c, fd, data, int64(offset))
		if err != nil && n == 0 {
			return err
		}
		if stable != unstable {
			if err := unix.Fsync(fd); err != nil {
				return err
			}
			stable = fileSync
		}
		e.changed(o)
		e.uint32(uint32(n), stable)
		*e = append(*e, s.verifier[:]...)
		return nil
	})
}

// writeFull writes p as the user, so that the kernel takes setuid bits away. It
// returns how much it wrote before an error.
func writeFull(c *call, fd int, p []byte, offset int64) (n int, err error) {
	err = c.user.Do(func() error {
		for n < len(p) {
			m, err := unix.Pwrite(fd, p[n:], offset+int64(n))
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			n += m
		}
		return nil
	})
	return n, err
}

func (s *Server) commit(c *call, d *decoder, e *encoder) error {
	return s.with(d, func(o *object) error {
		// A client commits what it wrote; another of its users may do it.
		fd, err := unix.Open(o.path(), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer closeFD(fd)
		if err := unix.Fsync(fd); err != nil {
			return err
		}
		e.changed(o)
		*e = append(*e, s.verifier[:]...)
		return nil
	})
}

// named calls f with the directory and the name that come next.
func (s *Server) named(d *decoder, f func(dir *object, name string) error) error {
	return s.with(d, func(dir *object) error {
		name := d.string(maxName)
		if d.err != nil {
			return d.err
		}
		if err := checkName(name); err != nil {
			return err
		}
		return f(dir, name)
	})
}

// How a file is created.
const (
	createUnchecked = 0
	createGuarded   = 1
	createExclusive = 2
)

func (s *Server) create(c *call, d *decoder, e *encoder) error {
	return s.named(d, func(dir *object, name string) error {
		how := d.uint32()
		var set settings
		switch how {
		case createUnchecked, createGuarded:
			set = d.settings()
		case createExclusive:
			set = exclusive(d.next(8))
		default:
			return statusInval
		}
		if d.err != nil {
			return d.err
		}
		var o *object
		if err := c.user.Do(func() (err error) {
			o, err = dir.makeFile(name, how, &set)
			return err
		}); err != nil {
			return err
		}
		defer o.close()
		if err := e.created(o); err != nil {
			return err
		}
		e.changed(dir)
		return nil
	})
}

// exclusive returns settings that mark a new file with a client's verifier, as its
// times. The client sets them to others next.
func exclusive(verifier []byte) settings {
	var s settings
	if len(verifier) == 8 {
		s.times[0].Sec = int64(binary.BigEndian.Uint32(verifier) &^ (1 << 31))
		s.times[1].Sec = int64(binary.BigEndian.Uint32(verifier[4:]) &^ (1 << 31))
	}
	return s
}

// makeFile creates a file, or opens one that exists if how allows that.
func (o *object) makeFile(name string, how uint32, set *settings) (*object, error) {
	mode := uint32(0o600)
	if set.mode != nil {
		mode = *set.mode & 0o7777
	}
	fd, err := unix.Openat(o.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	exists := errors.Is(err, unix.EEXIST)
	if err != nil && (!exists || how == createGuarded) {
		return nil, err
	}
	if err == nil {
		closeFD(fd)
	}
	made, err := o.child(name)
	if err != nil {
		return nil, err
	}
	if err := made.finish(exists, how, set); err != nil {
		made.close()
		return nil, err
	}
	return made, nil
}

// finish sets the attributes of a new file, or checks one that exists.
func (o *object) finish(exists bool, how uint32, set *settings) error {
	if !exists {
		return set.apply(o)
	}
	st, err := o.stat()
	switch {
	case err != nil:
		return err
	case how == createExclusive && (st.Atim.Sec != set.times[0].Sec || st.Mtim.Sec != set.times[1].Sec || st.Mtim.Nsec != 0):
		return statusExist
	case how == createExclusive:
		return nil // the answer to the first call was lost
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return statusExist
	case set.size == nil:
		return nil
	}
	return unix.Truncate(o.path(), int64(*set.size))
}

func (s *Server) mkdir(c *call, d *decoder, e *encoder) error {
	return s.named(d, func(dir *object, name string) error {
		set := d.settings()
		return s.makeEntry(c, d, e, dir, name, &set, func() error { return unix.Mkdirat(dir.fd, name, modeOf(&set, 0o755)) })
	})
}

func (s *Server) symlink(c *call, d *decoder, e *encoder) error {
	return s.named(d, func(dir *object, name string) error {
		set := d.settings()
		target := d.string(unix.PathMax - 1)
		return s.makeEntry(c, d, e, dir, name, &set, func() error { return unix.Symlinkat(target, dir.fd, name) })
	})
}

// mknod makes sockets and pipes. A device would be one of the host's.
func (s *Server) mknod(c *call, d *decoder, e *encoder) error {
	return s.named(d, func(dir *object, name string) error {
		kind := d.uint32()
		mode := uint32(unix.S_IFSOCK)
		switch kind {
		case kinds[unix.S_IFSOCK]:
		case kinds[unix.S_IFIFO]:
			mode = unix.S_IFIFO
		default:
			return statusPerm
		}
		set := d.settings()
		return s.makeEntry(c, d, e, dir, name, &set, func() error { return unix.Mknodat(dir.fd, name, mode|modeOf(&set, 0o644), 0) })
	})
}

// modeOf returns the mode for a new object.
func modeOf(set *settings, standard uint32) uint32 {
	if set.mode == nil {
		return standard
	}
	return *set.mode & 0o7777
}

// makeEntry makes something with a name in a directory as the user, and answers with it.
func (s *Server) makeEntry(c *call, d *decoder, e *encoder, dir *object, name string, set *settings, do func() error) error {
	if d.err != nil {
		return d.err
	}
	var o *object
	err := c.user.Do(func() (err error) {
		if err := do(); err != nil {
			return err
		}
		if o, err = dir.child(name); err != nil {
			return err
		}
		return set.apply(o)
	})
	if o != nil {
		defer o.close()
	}
	if err != nil {
		return err
	}
	if err := e.created(o); err != nil {
		return err
	}
	e.changed(dir)
	return nil
}

func (s *Server) remove(c *call, d *decoder, e *encoder) error { return s.unlink(c, d, e, 0) }

func (s *Server) rmdir(c *call, d *decoder, e *encoder) error {
	return s.unlink(c, d, e, unix.AT_REMOVEDIR)
}

func (s *Server) unlink(c *call, d *decoder, e *encoder, flags int) error {
	return s.named(d, func(dir *object, name string) error {
		if err := c.user.Do(func() error { return unix.Unlinkat(dir.fd, name, flags) }); err != nil {
			return err
		}
		e.changed(dir)
		return nil
	})
}

func (s *Server) rename(c *call, d *decoder, e *encoder) error {
	return s.named(d, func(from *object, name string) error {
		return s.named(d, func(to *object, target string) error {
			err := c.user.Do(func() error { return unix.Renameat(from.fd, name, to.fd, target) })
			if err != nil {
				return err
			}
			if err := to.sync(); err != nil {
				return err
			}
			e.changed(from)
			e.changed(to)
			return nil
		})
	})
}

func (s *Server) link(c *call, d *decoder, e *encoder) error {
	return s.with(d, func(o *object) error {
		return s.named(d, func(dir *object, name string) error {
			err := c.user.Do(func() error { return unix.Linkat(unix.AT_FDCWD, o.path(), dir.fd, name, unix.AT_SYMLINK_FOLLOW) })
			if err != nil {
				return err
			}
			if err := dir.sync(); err != nil {
				return err
			}
			e.optional(o)
			e.changed(dir)
			return nil
		})
	})
}

// sync writes a directory to the disk.
func (o *object) sync() error {
	fd, err := unix.Open(o.path(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fsync(fd), unix.Close(fd))
}
