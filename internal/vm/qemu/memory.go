package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

// copyChunk is how much memory is copied between two looks at the context.
const copyChunk = 1 << 20

// newMemory makes memory of the given size that has no name in any file system.
func newMemory(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// copySparse makes dst, which is empty, a copy of the first size bytes of src:
// a clone if both are on one file system that can do that, else data is copied
// and holes stay holes. If src ends earlier the rest is a hole.
func copySparse(ctx context.Context, dst, src *os.File, size int64) error {
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return dst.Truncate(size)
	}
	if err := dst.Truncate(size); err != nil {
		return err
	}
	buf := make([]byte, copyChunk)
	for pos := int64(0); pos < size; {
		start, err := unix.Seek(int(src.Fd()), pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // no data after pos
		}
		if err != nil {
			return fmt.Errorf("seek data: %w", err)
		}
		end, err := unix.Seek(int(src.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("seek hole: %w", err)
		}
		end = min(end, size)
		if err := copyRange(ctx, buf, dst, start, src, start, end-start); err != nil {
			return err
		}
		pos = max(end, start+1)
	}
	return nil
}

// copyRange copies n bytes by way of buf.
func copyRange(ctx context.Context, buf []byte, dst io.WriterAt, to int64, src io.ReaderAt, from, n int64) error {
	for n > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		part := buf[:min(n, int64(len(buf)))]
		if _, err := src.ReadAt(part, from); err != nil {
			return err
		}
		if _, err := dst.WriteAt(part, to); err != nil {
			return err
		}
		from, to, n = from+int64(len(part)), to+int64(len(part)), n-int64(len(part))
	}
	return nil
}

// images keeps the memory of snapshots as sealed memfds, which restored
// machines map privately and so share.
//
// QEMU before 8.2 opens its memory file for writing, also to map it privately.
// Giving a VMM that runs as another user a snapshot's file would let it rewrite
// the memory that others are restored from. A file that is sealed against
// writing can be opened so by everybody and changed by nobody.
//
// An image stays as long as a machine uses it, and the last one used stays
// until another is: creating sandboxes from one template copies once.
type images struct {
	filling chan struct{} // holds one token: who has it may add to byFile

	mu     sync.Mutex // guards the following and image.users
	byFile map[fileKey]*image
	last   *image
}

// fileKey tells a file's content from others, and from its own earlier.
type fileKey struct {
	dev, ino uint64
	size     int64
	mtime    syscall.Timespec
}

type image struct {
	file  *os.File
	key   fileKey
	users int
}

// lease is the use of an image by one machine.
type lease struct {
	release func() // twice is allowed
	img     *image
}

func newImages() *images {
	return &images{filling: make(chan struct{}, 1), byFile: map[fileKey]*image{}}
}

// take returns the image of a memory file. The caller releases it.
func (s *images) take(ctx context.Context, memory *os.File) (*lease, error) {
	info, err := memory.Stat()
	if err != nil {
		return nil, err
	}
	st := info.Sys().(*syscall.Stat_t)
	key := fileKey{st.Dev, st.Ino, st.Size, st.Mtim}
	select {
	case s.filling <- struct{}{}:
		defer func() { <-s.filling }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if l := s.find(key); l != nil {
		return l, nil
	}
	file, err := seal(ctx, memory, st.Size)
	if err != nil {
		return nil, fmt.Errorf("image of the snapshot's memory: %w", err)
	}
	return s.add(&image{file: file, key: key}), nil
}

func seal(ctx context.Context, memory *os.File, size int64) (*os.File, error) {
	f, err := newMemory("image", size)
	if err != nil {
		return nil, err
	}
	err = copySparse(ctx, f, memory, size)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (s *images) find(key fileKey) *lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	img, ok := s.byFile[key]
	if !ok {
		return nil
	}
	return s.lend(img)
}

func (s *images) add(img *image) *lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byFile[img.key] = img
	return s.lend(img)
}

// lend needs s.mu.
func (s *images) lend(img *image) *lease {
	img.users++
	previous := s.last
	s.last = img
	s.dropIfUnused(previous)
	return &lease{img: img, release: sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		img.users--
		s.dropIfUnused(img)
	})}
}

// dropIfUnused needs s.mu.
func (s *images) dropIfUnused(img *image) {
	if img == nil || img.users > 0 || img == s.last {
		return
	}
	delete(s.byFile, img.key)
	img.file.Close() // machines that have it mapped keep it
}

// dup returns another descriptor of the image; the caller closes it.
func (l *lease) dup() (*os.File, error) {
	fd, err := unix.FcntlInt(l.img.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "image"), nil
}
