package nfs

import (
	"time"

	"golang.org/x/sys/unix"
)

// kinds are the types of files, ftype3, by the bits of their mode.
var kinds = map[uint32]uint32{
	unix.S_IFREG: 1, unix.S_IFDIR: 2, unix.S_IFBLK: 3, unix.S_IFCHR: 4, unix.S_IFLNK: 5, unix.S_IFSOCK: 6, unix.S_IFIFO: 7,
}

// attributes appends a fattr3.
func (e *encoder) attributes(st *unix.Stat_t) {
	e.uint32(kinds[st.Mode&unix.S_IFMT], st.Mode&0o7777, uint32(st.Nlink), st.Uid, st.Gid)
	e.uint64(uint64(st.Size), uint64(st.Blocks)*512)
	e.uint32(unix.Major(st.Rdev), unix.Minor(st.Rdev))
	e.uint64(st.Dev, st.Ino)
	for _, at := range []unix.Timespec{st.Atim, st.Mtim, st.Ctim} {
		e.uint32(uint32(at.Sec), uint32(at.Nsec))
	}
}

// optional appends the attributes of an object as a post_op_attr.
func (e *encoder) optional(o *object) {
	st, err := o.stat()
	e.bool(err == nil)
	if err == nil {
		e.attributes(&st)
	}
}

// changed appends the attributes of a changed object as wcc_data. Those from before
// the change are left out: they would have to be read in one step with it, and
// clients would otherwise miss changes of others.
func (e *encoder) changed(o *object) {
	e.bool(false)
	e.optional(o)
}

// handle appends the handle of an object.
func (e *encoder) handle(o *object) error {
	handle, err := o.handle()
	if err == nil {
		e.opaque(handle)
	}
	return err
}

// created appends the handle and the attributes of a new object.
func (e *encoder) created(o *object) error {
	e.bool(true)
	if err := e.handle(o); err != nil {
		return err
	}
	e.optional(o)
	return nil
}

// settings are the attributes that a caller sets, a sattr3. nil leaves one as it is.
type settings struct {
	mode, uid, gid *uint32
	size           *uint64
	times          [2]unix.Timespec // of access and change; UTIME_OMIT leaves one as it is
}

func (d *decoder) settings() settings {
	var s settings
	for _, field := range []**uint32{&s.mode, &s.uid, &s.gid} {
		if d.bool() {
			*field = new(d.uint32())
		}
	}
	if d.bool() {
		s.size = new(d.uint64())
	}
	for i := range s.times {
		s.times[i] = d.setTime()
	}
	return s
}

// setTime returns the time that a caller sets.
func (d *decoder) setTime() unix.Timespec {
	const serverTime, clientTime = 1, 2
	switch d.uint32() {
	case serverTime:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	case clientTime:
		sec, nsec := d.uint32(), d.uint32()
		if nsec >= uint32(time.Second) {
			d.err = errShort
		}
		return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
	default:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
}

// apply sets all attributes but the size. The caller must run it with the user's credentials.
func (s *settings) apply(o *object) error {
	if s.uid != nil || s.gid != nil {
		if err := unix.Fchownat(o.fd, "", id(s.uid), id(s.gid), unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if s.mode != nil { // after the owner, whose change takes away bits
		if err := o.chmod(*s.mode & 0o7777); err != nil {
			return err
		}
	}
	if s.times[0].Nsec == unix.UTIME_OMIT && s.times[1].Nsec == unix.UTIME_OMIT {
		return nil
	}
	return unix.UtimesNanoAt(o.fd, "", s.times[:], unix.AT_EMPTY_PATH)
}

// chmod sets the mode. Symbolic links have none that can be set.
func (o *object) chmod(mode uint32) error {
	if st, err := o.stat(); err != nil || st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return err
	}
	return unix.Chmod(o.path(), mode)
}

// id returns the argument of chown(2).
func id(n *uint32) int {
	if n == nil {
		return -1
	}
	return int(*n)
}
