package nfs

import (
	"encoding/binary"
	"io"

	"golang.org/x/sys/unix"
)

// object reads a handle and opens its object. The caller must close it.
func (s *Server) object(d *decoder) (*object, error) {
	handle := d.opaque(maxHandle)
	if d.err != nil {
		return nil, d.err
	}
	return s.find(handle)
}

// with calls f with the object of the handle that comes next.
func (s *Server) with(d *decoder, f func(*object) error) error {
	o, err := s.object(d)
	if err != nil {
		return err
	}
	defer o.close()
	return f(o)
}

func (s *Server) getattr(_ *call, d *decoder, e *encoder) error {
	return s.with(d, func(o *object) error {
		st, err := o.stat()
		if err == nil {
			e.attributes(&st)
		}
		return err
	})
}

func (s *Server) lookup(c *call, d *decoder, e *encoder) error {
	return s.with(d, func(dir *object) error {
		name := d.string(maxName)
		if d.err != nil {
			return d.err
		}
		var o *object
		err := c.user.Do(func() (err error) {
			o, err = dir.child(name)
			return err
		})
		if err != nil {
			return err
		}
		defer o.close()
		if err := e.handle(o); err != nil {
			return err
		}
		e.optional(o)
		e.optional(dir)
		return nil
	})
}

// The bits of ACCESS.
const (
	accessRead, accessLookup, accessModify = 1, 2, 4
	accessExtend, accessDelete, accessRun  = 8, 16, 32
)

func (s *Server) access(c *call, d *decoder, e *encoder) error {
	return s.with(d, func(o *object) error {
		want := d.uint32()
		st, err := o.stat()
		if err != nil {
			return err
		}
		bits := map[uint32]uint32{unix.R_OK: accessRead, unix.W_OK: accessModify | accessExtend, unix.X_OK: accessRun}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			bits = map[uint32]uint32{unix.R_OK: accessRead, unix.W_OK: accessModify | accessExtend | accessDelete, unix.X_OK: accessLookup}
		}
		granted := uint32(0)
		for mode, bit := range bits {
			if want&bit != 0 && o.access(c, mode) == nil {
				granted |= bit
			}
		}
		e.optional(o)
		e.uint32(granted & want)
		return nil
	})
}

func (s *Server) readlink(_ *call, d *decoder, e *encoder) error {
	return s.with(d, func(o *object) error {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(o.fd, "", buf)
		if err != nil {
			return err
		}
		e.optional(o)
		e.opaque(buf[:n])
		return nil
	})
}

func (s *Server) read(c *call, d *decoder, e *encoder) error {
	return s.with(d, func(o *object) error {
		offset, count := d.uint64(), min(d.uint32(), transferSize)
		if d.err != nil {
			return d.err
		}
		fd, err := o.reopen(c, unix.O_RDONLY)
		if err != nil {
			return err
		}
		defer closeFD(fd)
		data := make([]byte, count)
		n, err := readFull(fd, data, int64(offset))
		if err != nil {
			return err
		}
		st, err := o.stat()
		if err != nil {
			return err
		}
		e.bool(true)
		e.attributes(&st)
		e.uint32(uint32(n))
		e.bool(offset+uint64(n) >= uint64(st.Size))
		e.opaque(data[:n])
		return nil
	})
}

// readFull reads until p is full or the file ends.
func readFull(fd int, p []byte, offset int64) (n int, err error) {
	for n < len(p) {
		m, err := unix.Pread(fd, p[n:], offset+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil || m == 0 {
			return n, err
		}
		n += m
	}
	return n, nil
}

func (s *Server) readdir(c *call, d *decoder, e *encoder) error {
	return s.with(d, func(dir *object) error {
		cookie, _, size := d.uint64(), d.uint64(), d.uint32()
		return s.list(c, d, e, dir, cookie, size, func(string) {})
	})
}

func (s *Server) readdirplus(c *call, d *decoder, e *encoder) error {
	return s.with(d, func(dir *object) error {
		cookie, _, _, size := d.uint64(), d.uint64(), d.uint32(), d.uint32()
		return s.list(c, d, e, dir, cookie, size, func(name string) { e.details(dir, name) })
	})
}

// details appends the attributes and the handle of an entry, or none if it was removed.
func (e *encoder) details(dir *object, name string) {
	o, err := dir.child(name)
	if err != nil {
		e.bool(false)
		e.bool(false)
		return
	}
	defer o.close()
	e.optional(o)
	handle, err := o.handle()
	e.bool(err == nil)
	if err == nil {
		e.opaque(handle)
	}
}

// dirent is an entry of a directory.
type dirent struct {
	inode, next uint64 // next is the cookie of what follows
	name        string
}

// list appends the attributes of a directory and its entries after a cookie, until
// the entries have size bytes. details appends what follows an entry.
func (s *Server) list(c *call, d *decoder, e *encoder, dir *object, cookie uint64, size uint32, details func(name string)) error {
	if d.err != nil {
		return d.err
	}
	e.optional(dir)
	e.uint64(0) // the verifier: cookies stay valid
	var fd int
	err := c.user.Do(func() (err error) {
		fd, err = unix.Open(dir.path(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return err
	}
	defer closeFD(fd)
	if _, err := unix.Seek(fd, int64(cookie), io.SeekStart); err != nil {
		return statusBadCookie
	}
	end, err := e.entries(fd, int(min(size, transferSize)), details)
	if err != nil {
		return err
	}
	e.bool(false)
	e.bool(end)
	return nil
}

// entries appends what an open directory has after its position, up to size bytes with
// the end of the list. It reports whether that is all.
func (e *encoder) entries(fd, size int, details func(name string)) (end bool, err error) {
	const listEnd = 12 // bytes, counted with the header
	start, added := len(*e), 0
	for entry, err := range entries(fd) {
		if err != nil {
			return false, err
		}
		before := len(*e)
		e.bool(true)
		e.uint64(entry.inode)
		e.opaque([]byte(entry.name))
		e.uint64(entry.next)
		details(entry.name)
		if len(*e)-start+listEnd > size {
			*e = (*e)[:before]
			if added == 0 {
				return false, statusTooSmall
			}
			return false, nil
		}
		added++
	}
	return true, nil
}

// entries yields what an open directory has after its position. The number of ".."
// in the root of an export is the host's, and nothing can be reached by it.
func entries(fd int) func(yield func(dirent, error) bool) {
	return func(yield func(dirent, error) bool) {
		buf := make([]byte, 16<<10)
		for {
			n, err := unix.Getdents(fd, buf)
			if err != nil {
				yield(dirent{}, err)
				return
			}
			if n == 0 {
				return
			}
			for rest := buf[:n]; len(rest) > 0; {
				entry, size := parseEntry(rest)
				rest = rest[size:]
				if !yield(entry, nil) {
					return
				}
			}
		}
	}
}

// parseEntry parses a struct linux_dirent64 (getdents64(2)) and returns its size.
func parseEntry(p []byte) (dirent, int) {
	const header = 19 // the inode, the next position, the size, the type
	size := int(binary.NativeEndian.Uint16(p[16:]))
	name := p[header:size]
	for i, b := range name {
		if b == 0 {
			name = name[:i]
			break
		}
	}
	return dirent{inode: binary.NativeEndian.Uint64(p), next: binary.NativeEndian.Uint64(p[8:]), name: string(name)}, size
}
