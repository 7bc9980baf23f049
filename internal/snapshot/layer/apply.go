package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"wrenn.dev"
)

// Source reads length bytes of an object, from offset on; its reader returns all of them
// or an error.
type Source func(ctx context.Context, offset, length int64) (io.ReadCloser, error)

// Layer is a layer whose index was verified.
type Layer struct {
	index  index
	source Source
}

// Open reads the index of the object in source, which has size bytes.
// FailedPrecondition unless it is the layer with that id, whole, and of the owner; also
// for a newer format. What is wrong is in the message.
func Open(ctx context.Context, source Source, size int64, id ID, owner string) (*Layer, error) {
	if size < trailerSize {
		return nil, damaged("it has %d bytes", size)
	}
	tail, err := readRange(ctx, source, size-trailerSize, trailerSize)
	if err != nil {
		return nil, err
	}
	length := int64(binary.BigEndian.Uint32(tail))
	if !bytes.Equal(tail[4:], magic) || length > min(maxIndex, size-trailerSize) {
		return nil, damaged("its end is missing")
	}
	text, err := readRange(ctx, source, size-trailerSize-length, length)
	if err != nil {
		return nil, err
	}
	x, err := parseIndex(text)
	switch {
	case err != nil:
		return nil, err
	case x.owner != owner:
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "the layer belongs to another team")
	case sha256.Sum256(text) != id:
		return nil, damaged("it is not the layer %s, but another one or a changed one", id)
	case x.packed()+length+trailerSize != size:
		return nil, damaged("it has %d bytes and must have %d", size, x.packed()+length+trailerSize)
	}
	return &Layer{x, source}, nil
}

func readRange(ctx context.Context, source Source, offset, length int64) ([]byte, error) {
	if length == 0 {
		return nil, nil
	}
	r, err := source(ctx, offset, length)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data := make([]byte, length)
	_, err = io.ReadFull(r, data)
	return data, err
}

// Parent returns the id of the layer that this one is on top of, zero for none.
func (l *Layer) Parent() ID { return l.index.parent }

// FileSize returns the size of the file, in bytes.
func (l *Layer) FileSize() int64 { return l.index.fileSize }

// Apply makes f, which has the content of the parent or is empty, the file of the
// layer. After an error the content of f is undefined. FailedPrecondition when the
// object is not what was written.
func (l *Layer) Apply(ctx context.Context, f *os.File) error {
	if err := f.Truncate(l.index.fileSize); err != nil {
		return err
	}
	body := io.NopCloser(bytes.NewReader(nil))
	if n := l.index.packed(); n > 0 {
		var err error
		if body, err = l.source(ctx, 0, n); err != nil {
			return err
		}
	}
	defer body.Close()
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*frameBlocks*BlockSize))
	if err != nil {
		return err
	}
	defer dec.Close()
	u := &unpacker{layer: l, body: body, dec: dec, file: f}
	for _, r := range l.index.runs {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := u.apply(r); err != nil {
			return err
		}
	}
	return nil
}

// unpacker writes the blocks of a layer into a file.
type unpacker struct {
	layer *Layer
	body  io.Reader
	dec   *zstd.Decoder
	file  *os.File

	frame  int    // the next one
	packed []byte // of a frame
	blocks []byte // what is left of the last frame
	buffer []byte
}

func (u *unpacker) apply(r run) error {
	if r.zero {
		return punch(u.file, r.first*BlockSize, u.length(r.first, r.count))
	}
	for r.count > 0 {
		if len(u.blocks) == 0 {
			if err := u.next(r); err != nil {
				return err
			}
		}
		have := int64(len(u.blocks)+BlockSize-1) / BlockSize
		n := u.length(r.first, min(r.count, have))
		if n > int64(len(u.blocks)) {
			return damaged("frame %d is too short", u.frame-1)
		}
		if _, err := u.file.WriteAt(u.blocks[:n], r.first*BlockSize); err != nil {
			return err
		}
		u.blocks = u.blocks[n:]
		r.first, r.count = r.first+min(r.count, have), r.count-min(r.count, have)
	}
	return nil
}

// length returns how many bytes the blocks have: the file may end in the last one.
func (u *unpacker) length(first, count int64) int64 {
	return min(count*BlockSize, u.layer.index.fileSize-first*BlockSize)
}

// next reads the next frame, which begins with the blocks of r.
func (u *unpacker) next(r run) error {
	if u.frame == len(u.layer.index.frames) {
		return damaged("frame %d is missing", u.frame)
	}
	f := u.layer.index.frames[u.frame]
	u.frame++
	u.packed = slices.Grow(u.packed[:0], int(f.size))[:f.size]
	if _, err := io.ReadFull(u.body, u.packed); err != nil {
		return err
	}
	if sha256.Sum256(u.packed) != f.sum {
		return damaged("the content of frame %d has changed", u.frame-1)
	}
	var err error
	if u.buffer, err = u.dec.DecodeAll(u.packed, u.buffer[:0]); err != nil {
		return damaged("frame %d cannot be decompressed", u.frame-1)
	}
	if u.blocks = u.buffer; len(u.blocks) == 0 || len(u.blocks) > frameBlocks*BlockSize {
		return damaged("frame %d of block %d has %d bytes", u.frame-1, r.first, len(u.blocks))
	}
	return nil
}

// punch makes a range of a file zero, without blocks where the file system can.
func punch(f *os.File, offset, length int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("zero a range of %s: %w", f.Name(), err)
	}
	for end := offset + length; offset < end; {
		n, err := f.WriteAt(zeros[:min(BlockSize, end-offset)], offset)
		if err != nil {
			return err
		}
		offset += int64(n)
	}
	return nil
}
