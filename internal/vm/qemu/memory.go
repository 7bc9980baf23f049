package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/cmutex"
)

const pageSize = 4096

// copyChunk is how much memory is copied between two checks of the context.
const copyChunk = 1 << 20

// newMemory makes a memfd of the given size.
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

// keepSize seals a memfd so that its VMM cannot change its size.
func keepSize(f *os.File) error {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		return fmt.Errorf("seal the memory: %w", err)
	}
	return nil
}

// sealAll seals a memfd so that it never changes. It fails while a process has mapped
// it for writing.
func sealAll(f *os.File) error {
	_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	return err
}

// copySparse makes dst, which is empty, a copy of the first size bytes of src: a
// reflink if the file system supports it, else a copy of the data in which holes stay
// holes. If src ends earlier the rest is a hole.
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

// copyRange copies n bytes through buf.
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

// images keeps the memory of snapshots as sealed memfds, which restored machines map
// privately and so share.
//
// QEMU before 8.2 opens its memory file for writing, also to map it privately. With a
// snapshot's file a VMM, which runs as another user, could rewrite the memory that
// others are restored from. A file that is sealed against writing can be opened for
// writing by every process, and changed by none.
//
// An image stays as long as a machine uses it, and the last one used stays until
// another is used: creating sandboxes from one template copies once. An image is filled
// while the VMM starts, which maps it before and reads it when it loads the state.
type images struct {
	filling cmutex.Mutex // held while an image is filled: one at a time

	mu     sync.Mutex // guards the following and some fields of each image
	byFile map[fileID]*image
	last   *image
}

type image struct {
	file *os.File
	key  fileID
	size int64
	stop context.CancelFunc // of the filling

	users   int  // guarded by images.mu
	dropped bool // guarded by images.mu: it is no longer in byFile

	filled chan struct{} // closed when it is complete and sealed, or err is set
	err    error
}

// lease is the use of an image by one machine.
type lease struct {
	release func() // twice is allowed
	img     *image
}

func newImages() *images {
	return &images{byFile: map[fileID]*image{}}
}

// acquire returns the image of a memory file, which may not be filled yet: see
// lease.wait. The caller releases it.
func (s *images) acquire(memory *os.File) (*lease, error) {
	info, err := memory.Stat()
	if err != nil {
		return nil, err
	}
	key, err := idOf(memory)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if img, ok := s.byFile[key]; ok {
		return s.lend(img), nil
	}
	from, err := dup(memory)
	if err != nil {
		return nil, err
	}
	file, err := newMemory("image", info.Size())
	if err != nil {
		from.Close()
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background()) // other callers may wait for it after the first has stopped
	img := &image{file: file, key: key, size: info.Size(), stop: stop, filled: make(chan struct{})}
	s.byFile[key] = img
	go s.fill(ctx, img, from)
	return s.lend(img), nil
}

// fill fills the image. One that fails is no longer in byFile.
func (s *images) fill(ctx context.Context, img *image, from *os.File) {
	defer img.stop()
	defer from.Close()
	img.err = s.copyAndSeal(ctx, img, from)
	s.mu.Lock()
	defer s.mu.Unlock()
	close(img.filled)
	switch {
	case img.dropped:
		img.file.Close()
	case img.err != nil:
		s.drop(img)
	}
}

func (s *images) copyAndSeal(ctx context.Context, img *image, from *os.File) error {
	if err := s.filling.Lock(ctx); err != nil {
		return err
	}
	defer s.filling.Unlock()
	err := copySparse(ctx, img.file, from, img.size)
	if err == nil {
		err = sealAll(img.file)
	}
	if err != nil {
		return fmt.Errorf("image of the snapshot's memory: %w", err)
	}
	return nil
}

// lend returns a lease of the image. The caller holds s.mu.
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

// dropIfUnused drops an image that no machine uses, unless it is the last one used.
// The caller holds s.mu.
func (s *images) dropIfUnused(img *image) {
	if img != nil && !img.dropped && img.users == 0 && img != s.last {
		s.drop(img)
	}
}

// drop removes an image. It closes one that is filled; for another it cancels fill,
// which closes it. The caller holds s.mu.
func (s *images) drop(img *image) {
	img.dropped = true
	delete(s.byFile, img.key)
	if s.last == img {
		s.last = nil
	}
	select {
	case <-img.filled:
		img.file.Close() // machines that have it mapped keep it
	default:
		img.stop()
	}
}

// wait returns when the image is complete and sealed against writing.
func (l *lease) wait(ctx context.Context) error {
	select {
	case <-l.img.filled:
		return l.img.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// dup returns another descriptor of the image. The caller closes it.
func (l *lease) dup() (*os.File, error) { return dup(l.img.file) }

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
