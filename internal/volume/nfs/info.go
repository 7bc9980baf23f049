package nfs

import "golang.org/x/sys/unix"

func (s *Server) statfs(o *object) (unix.Statfs_t, error) {
	var st unix.Statfs_t
	return st, unix.Fstatfs(o.export.root, &st)
}

func (s *Server) fsstat(_ *call, d *decoder, e *encoder) error {
	return s.with(d, func(o *object) error {
		st, err := s.statfs(o)
		if err != nil {
			return err
		}
		size := uint64(st.Bsize)
		e.optional(o)
		e.uint64(st.Blocks*size, st.Bfree*size, st.Bavail*size, st.Files, st.Ffree, st.Ffree)
		e.uint32(0) // for how many seconds this stays so
		return nil
	})
}

func (s *Server) fsinfo(_ *call, d *decoder, e *encoder) error {
	// Hard links, symbolic links, all files alike, times can be set.
	const properties = 1 | 2 | 8 | 16
	return s.with(d, func(o *object) error {
		e.optional(o)
		e.uint32(transferSize, transferSize, 4096, transferSize, transferSize, 4096, 32<<10)
		e.uint64(1<<63 - 1)
		e.uint32(0, 1, properties) // times have nanoseconds
		return nil
	})
}

func (s *Server) pathconf(_ *call, d *decoder, e *encoder) error {
	return s.with(d, func(o *object) error {
		const maxLinks = 65000 // of ext4
		e.optional(o)
		e.uint32(maxLinks, maxName)
		for _, yes := range []bool{true, true, false, true} { // long names fail, chown is restricted, case counts and is kept
			e.bool(yes)
		}
		return nil
	})
}

// mount answers with the handle of an export's root (RFC 1813, section 5.2.1).
func (s *Server) mount(_ *call, d *decoder, e *encoder) error {
	path := d.string(unix.PathMax)
	if d.err != nil {
		return d.err
	}
	o, err := s.top(path)
	if err != nil {
		return err
	}
	defer o.close()
	if err := e.handle(o); err != nil {
		return err
	}
	e.uint32(1, authSys)
	return nil
}
