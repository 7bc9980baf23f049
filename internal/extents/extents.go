// Package extents reads where the data of files is on the disk, and which of it
// they share with other files (ioctl_fiemap(2)).
package extents

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrTooMany is returned for files in more pieces than the caller allows.
var ErrTooMany = errors.New("the files are in too many pieces")

// Set is the data of some files of one file system. The zero value is no data.
type Set struct {
	own    int64  // bytes that no other file shares
	placed []span // data with a known place
	loose  int64  // bytes without one: they are in a block of the file system's own
}

// span is from which byte of the disk to which one, that one excluded.
type span struct{ from, to uint64 }

// Own returns how many bytes the files share with no other file: what removing them
// would free.
func (s *Set) Own() int64 { return s.own }

// Len returns in how many pieces the files are.
func (s *Set) Len() int { return len(s.placed) }

// Add adds the data of the file. ErrTooMany when the set would have more than limit
// pieces; the set must not be used after an error. An error that is
// errors.ErrUnsupported says that the file system does not tell.
func (s *Set) Add(ctx context.Context, path string, limit int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for next := uint64(0); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		batch, err := read(f, next)
		if err != nil {
			return fmt.Errorf("extents of %s: %w", path, err)
		}
		for _, e := range batch {
			s.add(e)
		}
		if s.Len() > limit {
			return ErrTooMany
		}
		if len(batch) == 0 || batch[len(batch)-1].flags&flagLast != 0 {
			return nil
		}
		next = batch[len(batch)-1].logical + batch[len(batch)-1].length
	}
}

func (s *Set) add(e extent) {
	if e.flags&flagShared == 0 {
		s.own += int64(e.length)
	}
	if e.flags&(flagUnknown|flagInline) != 0 {
		s.loose += int64(e.length)
		return
	}
	s.placed = append(s.placed, span{e.physical, e.physical + e.length})
}

// Total returns how many bytes of the disk the sets take together. What several of
// them share counts once.
func Total(sets ...*Set) (n int64) {
	var all []span
	for _, s := range sets {
		n += s.loose
		all = append(all, s.placed...)
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	end := uint64(0)
	for _, s := range all {
		if s.to > end {
			n += int64(s.to - max(s.from, end))
			end = s.to
		}
	}
	return n
}

// What follows is linux/fiemap.h, which golang.org/x/sys does not have.

const (
	fsIocFiemap = 0xc020660b

	flagLast    = 0x1
	flagUnknown = 0x2 // also of data that has no place yet
	flagInline  = 0x200
	flagShared  = 0x2000

	batchSize = 256
)

// extent is struct fiemap_extent.
type extent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

// request is struct fiemap.
type request struct {
	start, length uint64
	flags         uint32
	mapped        uint32
	count         uint32
	_             uint32
	extents       [batchSize]extent
}

// read returns extents of f in the order of the file, from that byte on, and none at its end.
func read(f *os.File, from uint64) ([]extent, error) {
	req := &request{start: from, length: ^uint64(0) - from, count: batchSize}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(req)))
	runtime.KeepAlive(f)
	if errno == unix.ENOTTY {
		errno = unix.EOPNOTSUPP
	}
	if errno != 0 {
		return nil, errno
	}
	return req.extents[:min(req.mapped, batchSize)], nil
}
