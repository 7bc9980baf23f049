package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/loop"
)

// Space is the size of a store, in bytes.
type Space struct {
	Total int64
	Free  int64 // free in the store now, plus what it can still grow by
}

// Space returns the current space.
func (s *Store) Space() (Space, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(s.Dir, &stat); err != nil {
		return Space{}, fmt.Errorf("space in the store: %w", err)
	}
	space := Space{Total: int64(stat.Blocks) * stat.Bsize, Free: int64(stat.Bavail) * stat.Bsize}
	if s.image == "" {
		return space, nil
	}
	room, err := s.room()
	return Space{space.Total + room, space.Free + room}, err
}

// room returns how many bytes the image can grow by.
func (s *Store) room() (int64, error) {
	free, err := freeBytes(filepath.Dir(s.image))
	if err != nil {
		return 0, err
	}
	return max(0, free-s.sizes.reserve) / s.sizes.group * s.sizes.group, nil
}

func freeBytes(dir string) (int64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return 0, fmt.Errorf("space in %s: %w", dir, err)
	}
	return int64(stat.Bavail) * stat.Bsize, nil
}

// Ensure makes sure that the store has the given number of free bytes now, and
// grows it if necessary. It reserves nothing: other callers may use the bytes as
// well. Exhausted when the host's disk is too full; then nothing has changed.
func (s *Store) Ensure(ctx context.Context, bytes int64) error {
	missing, err := s.missing(bytes)
	if err != nil || missing == 0 {
		return err
	}
	if s.image == "" {
		return full(bytes, missing)
	}
	if err := s.growing.Lock(ctx); err != nil {
		return err
	}
	defer s.growing.Unlock()
	if missing, err = s.missing(bytes); err != nil || missing == 0 { // another caller has grown it
		return err
	}
	if err := s.grow(ctx, bytes, missing); err != nil {
		return err
	}
	if missing, err = s.missing(bytes); err != nil || missing == 0 {
		return err
	}
	return full(bytes, missing)
}

func full(want, missing int64) error {
	return wrenn.Errorf(wrenn.Exhausted, "this host's disk is full: %d MiB are needed and %d are missing; destroy sandboxes or snapshots, or free space on the disk", want>>20, (missing+1<<20-1)>>20)
}

// missing returns how many of the given bytes are not free.
func (s *Store) missing(bytes int64) (int64, error) {
	free, err := freeBytes(s.Dir)
	return max(0, bytes-free), err
}

// Tend keeps some space free in the store, for what guests write between two
// calls, and preallocates blocks that fstrim took from its image. Call it every
// few seconds; it costs little. Exhausted when the host's disk is too full.
func (s *Store) Tend(ctx context.Context) error {
	if s.image == "" {
		return nil
	}
	return errors.Join(s.Ensure(ctx, s.sizes.mark), s.refill(ctx))
}

// grow grows the image so that want bytes are free, of which some are missing:
// by a step if the host's disk has that much space, else by what is needed. The
// caller must hold growing.
func (s *Store) grow(ctx context.Context, want, missing int64) error {
	room, err := s.room()
	if err != nil {
		return err
	}
	least := roundUp(missing+missing/8, s.sizes.group) // XFS keeps some of it for itself
	if least > room {
		return full(want, missing)
	}
	by := min(room, max(least, s.sizes.step))
	image, err := os.OpenFile(s.image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer image.Close()
	info, err := image.Stat()
	if err != nil {
		return err
	}
	if err := allocate(ctx, image, info.Size(), by); err != nil {
		return fmt.Errorf("grow the store: %w", errors.Join(err, image.Truncate(info.Size())))
	}
	// The file must not be shorter than the file system in it, even after a power cut.
	if err := image.Sync(); err != nil {
		return fmt.Errorf("grow the store: %w", err)
	}
	if err := loop.Resize(image); err != nil {
		return fmt.Errorf("grow the store: %w", err)
	}
	// A crash before this line leaves a longer image, which the next growth uses.
	if out, err := exec.CommandContext(ctx, "xfs_growfs", "-d", s.Dir).CombinedOutput(); err != nil {
		return fmt.Errorf("grow the store: xfs_growfs: %w: %.300s", err, out)
	}
	return nil
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// refill preallocates all blocks of the image that are not allocated: a weekly
// fstrim of all file systems, as distributions run it, punches free blocks out of
// the image.
func (s *Store) refill(ctx context.Context) error {
	image, err := os.OpenFile(s.image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer image.Close()
	info, err := image.Stat()
	if err != nil {
		return err
	}
	if info.Sys().(*syscall.Stat_t).Blocks*512 >= info.Size() {
		return nil
	}
	err = allocate(ctx, image, 0, info.Size())
	if errors.Is(err, unix.ENOSPC) {
		return &wrenn.Error{Code: wrenn.Exhausted, Message: "this host's disk is full, and the store's image is no longer preallocated (fstrim does that): free some space", Err: err}
	}
	return err
}

// allocateChunk is small enough to be allocated between two signals.
const allocateChunk = 256 << 20

// allocate allocates the blocks of a range of the file, which it extends if necessary.
func allocate(ctx context.Context, f *os.File, from, size int64) error {
	for pos := from; pos < from+size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := min(allocateChunk, from+size-pos)
		err := unix.Fallocate(int(f.Fd()), 0, pos, n)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("allocate: %w", err)
		}
		pos += n
	}
	return nil
}
