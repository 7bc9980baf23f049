// Package layer packs what differs between a large file and its parent, in blocks of 64
// KiB, into one object, and makes the file from its parent and that object. Blocks that
// are zero or as in the parent take nothing.
//
// An object is frames of compressed blocks, an index and a trailer. Its id is the hash
// of the index, and the index has the hash of each frame, so every byte is verified
// before it is used:
//
//	frames   zstd, each of up to 16 blocks
//	index    magic, version, cipher, size of blocks and file, parent's id, owner, runs of blocks, frames with their SHA-256
//	trailer  the length of the index, and the magic again
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

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"wrenn.dev"
)

// maxFrame bounds a compressed frame: zstd adds little to what does not compress.
const maxFrame = frameBlocks*BlockSize + 64<<10

// Info describes a layer that was written.
type Info struct {
	ID     ID
	Bytes  int64 // of the object
	Blocks int64 // whose content is in it
}

// Parent is what a layer is written on top of.
type Parent struct {
	ID   ID
	File *os.File // with the content that ID stands for
}

// Write writes the layer of file on top of parent, nil for none, to w. The files may
// not change while it runs. The owner, up to 255 bytes, is who may read the layer; see Open.
func Write(ctx context.Context, w io.Writer, file *os.File, parent *Parent, owner string) (Info, error) {
	info, err := file.Stat()
	if err != nil {
		return Info{}, err
	}
	if info.Size() > MaxFileSize || len(owner) > maxOwner {
		return Info{}, wrenn.Errorf(wrenn.Invalid, "a file of %d bytes is too large for a layer", info.Size())
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return Info{}, err
	}
	p := &packer{w: w, enc: enc, index: index{fileSize: info.Size(), owner: owner}}
	d := differ{child: &blockFile{f: file, size: info.Size()}, parent: &blockFile{}, out: p}
	if parent != nil {
		p.index.parent = parent.ID
		if d.parent, err = openBlocks(parent.File); err != nil {
			return Info{}, err
		}
	}
	if err := d.run(ctx); err != nil {
		return Info{}, err
	}
	return p.finish()
}

// packer makes the object of a layer from blocks that come in order.
type packer struct {
	w       io.Writer
	enc     *zstd.Encoder
	index   index
	pending []byte // blocks of the next frame
	buf     []byte
}

func (p *packer) add(block int64, content []byte) error {
	p.extend(block, false)
	p.pending = append(p.pending, content...)
	if len(p.pending) >= frameBlocks*BlockSize {
		return p.flush()
	}
	return nil
}

// extend enters a block into the runs.
func (p *packer) extend(block int64, zero bool) {
	runs := p.index.runs
	if n := len(runs); n > 0 && runs[n-1].zero == zero && runs[n-1].first+runs[n-1].count == block {
		runs[n-1].count++
		return
	}
	p.index.runs = append(runs, run{block, 1, zero})
}

func (p *packer) flush() error {
	if len(p.pending) == 0 {
		return nil
	}
	p.buf = p.enc.EncodeAll(p.pending, p.buf[:0])
	p.pending = p.pending[:0]
	p.index.frames = append(p.index.frames, frame{int64(len(p.buf)), sha256.Sum256(p.buf)})
	_, err := p.w.Write(p.buf)
	return err
}

func (p *packer) finish() (Info, error) {
	if err := p.flush(); err != nil {
		return Info{}, err
	}
	text := p.index.encode()
	if len(text) > maxIndex {
		return Info{}, wrenn.Errorf(wrenn.Exhausted, "the index of a layer has %d bytes, more than %d", len(text), maxIndex)
	}
	tail := append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), magic...)
	for _, part := range [][]byte{text, tail} {
		if _, err := p.w.Write(part); err != nil {
			return Info{}, err
		}
	}
	return Info{ID: sha256.Sum256(text), Bytes: p.index.packed() + int64(len(text)) + trailerSize, Blocks: p.index.blocks()}, nil
}

// differ finds the blocks of a file that differ from those of its parent.
type differ struct {
	child, parent *blockFile
	out           *packer
}

func (d *differ) run(ctx context.Context) error {
	var a, b [BlockSize]byte
	for pos := int64(0); ; pos += BlockSize {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		next, err := d.next(pos)
		if err != nil || next >= d.child.size {
			return err
		}
		pos = next
		if err := d.compare(pos/BlockSize, a[:], b[:]); err != nil {
			return err
		}
	}
}

// next returns the position of the first block at or after pos that has data in one of
// the files.
func (d *differ) next(pos int64) (int64, error) {
	a, err := d.child.nextData(pos)
	if err != nil {
		return 0, err
	}
	b, err := d.parent.nextData(pos)
	return min(a, b), err
}

func (d *differ) compare(block int64, a, b []byte) error {
	n := min(BlockSize, d.child.size-block*BlockSize)
	a, b = a[:n], b[:n]
	if err := errors.Join(d.child.read(a, block*BlockSize), d.parent.read(b, block*BlockSize)); err != nil {
		return err
	}
	switch {
	case bytes.Equal(a, b):
		return nil
	case isZero(a):
		d.out.extend(block, true)
		return nil
	default:
		return d.out.add(block, a)
	}
}

var zeros [BlockSize]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

// blockFile is a file whose holes are skipped; without f it has no data.
type blockFile struct {
	f         *os.File
	size      int64
	from, end int64 // known data
}

func openBlocks(f *os.File) (*blockFile, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &blockFile{f: f, size: info.Size()}, nil
}

// noData is the position after the last data.
const noData = 1 << 62

// nextData returns the position of the block in which the next data at or after pos
// begins, noData without such.
func (b *blockFile) nextData(pos int64) (int64, error) {
	if b.f == nil || pos >= b.size || b.from == noData {
		return noData, nil
	}
	if pos >= b.end {
		if err := b.seek(pos); err != nil {
			return 0, err
		}
	}
	if b.from == noData {
		return noData, nil
	}
	return max(pos, b.from/BlockSize*BlockSize), nil
}

func (b *blockFile) seek(pos int64) error {
	from, err := unix.Seek(int(b.f.Fd()), pos, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		b.from = noData
		return nil
	}
	if err == nil {
		b.from = from
		b.end, err = unix.Seek(int(b.f.Fd()), from, unix.SEEK_HOLE)
	}
	if err != nil {
		return fmt.Errorf("seek in %s: %w", b.f.Name(), err)
	}
	return nil
}

// read reads a block. What is beyond the end is zero.
func (b *blockFile) read(p []byte, pos int64) error {
	n := 0
	if b.f != nil && pos < b.size && b.from != noData {
		var err error
		if n, err = b.f.ReadAt(p, pos); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	clear(p[n:])
	return nil
}
