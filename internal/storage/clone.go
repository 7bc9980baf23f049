// Package storage keeps the disks of sandboxes.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Method is how Clone made a copy.
type Method string

// The methods, best first.
const (
	Reflink    Method = "reflink"     // shares blocks until one side writes; needs XFS, btrfs or the like
	SparseCopy Method = "sparse copy" // copies the data and leaves the holes
)

// copyChunk is how much is copied between two checks of the context.
const copyChunk = 64 << 20

// Clone creates dst, which must not exist, as a copy of the file src with the
// permissions perm, and returns how it did. If it fails it leaves no dst. The
// content is in the page cache, not yet safe from a power cut.
func Clone(ctx context.Context, dst, src string, perm os.FileMode) (Method, error) {
	in, err := os.Open(src)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_RDWR, perm)
	if err != nil {
		return "", err
	}
	method, err := fill(ctx, out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		_ = os.Remove(dst) // the first error matters
		return "", fmt.Errorf("clone %s: %w", src, err)
	}
	return method, nil
}

func fill(ctx context.Context, out, in *os.File) (Method, error) {
	err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd()))
	if err == nil {
		return Reflink, nil
	}
	// The errno for "unsupported" differs by file system: see ioctl_ficlone(2).
	for _, unsupported := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.EXDEV, unix.EINVAL, unix.ENOSYS} {
		if errors.Is(err, unsupported) {
			return SparseCopy, copyData(ctx, out, in)
		}
	}
	return "", err
}

// copyData copies the data segments of in and gives out the same size.
func copyData(ctx context.Context, out, in *os.File) error {
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	for pos := int64(0); ; {
		start, err := unix.Seek(int(in.Fd()), pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // no data after pos
		}
		if err != nil {
			return fmt.Errorf("seek data: %w", err)
		}
		end, err := unix.Seek(int(in.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("seek hole: %w", err)
		}
		if err := copyRange(ctx, out, in, start, end); err != nil {
			return err
		}
		pos = end
	}
}

func copyRange(ctx context.Context, out, in *os.File, from, to int64) error {
	for pos := from; pos < to; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		inPos, outPos := pos, pos
		n, err := unix.CopyFileRange(int(in.Fd()), &inPos, int(out.Fd()), &outPos, int(min(to-pos, copyChunk)), 0)
		if errors.Is(err, unix.EXDEV) {
			// Since Linux 5.19 the kernel copies only within one kind of file
			// system, see copy_file_range(2).
			n, err = readAndWrite(out, in, pos, min(to-pos, copyChunk))
		}
		if err != nil {
			return fmt.Errorf("copy: %w", err)
		}
		if n == 0 {
			return io.ErrUnexpectedEOF // the source was truncated
		}
		pos += int64(n)
	}
	return nil
}

func readAndWrite(out, in *os.File, pos, size int64) (int, error) {
	n, err := io.Copy(io.NewOffsetWriter(out, pos), io.NewSectionReader(in, pos, size))
	return int(n), err
}
