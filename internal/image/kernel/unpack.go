package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// unpacker returns a reader of what packed holds. The kernel's build appends
// the unpacked size, four bytes, to every format but gzip; what follows the
// compressed stream is therefore not looked at.
func unpacker(packed []byte) (io.Reader, error) {
	switch {
	case bytes.HasPrefix(packed, lz4Magic):
		return &lz4Reader{in: packed[len(lz4Magic):]}, nil
	case bytes.HasPrefix(packed, xzMagic):
		return newXZReader(packed)
	case bytes.HasPrefix(packed, []byte{0x1f, 0x8b}):
		return newGzipReader(packed)
	case bytes.HasPrefix(packed, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return newZstdReader(packed)
	}
	return nil, fmt.Errorf("unknown compression (starts with % x); lz4, xz, gzip and zstd are known", packed[:min(6, len(packed))])
}

func newGzipReader(packed []byte) (io.Reader, error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	r.Multistream(false)
	return r, nil
}

func newZstdReader(packed []byte) (io.Reader, error) {
	// The four bytes of size after the frame would be taken for another one.
	r, err := zstd.NewReader(bytes.NewReader(packed[:max(0, len(packed)-4)]),
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxELF), zstd.WithDecoderMaxWindow(maxELF))
	if err != nil {
		return nil, err
	}
	return r.IOReadCloser(), nil
}

// lz4Magic starts the legacy frame that `lz4 -l` writes.
var lz4Magic = []byte{0x02, 0x21, 0x4c, 0x18}

// lz4Block is what each block of a legacy frame but the last unpacks to.
const lz4Block = 8 << 20

// lz4Reader reads a legacy frame: blocks, each with its packed size before it.
type lz4Reader struct {
	in, out []byte
	block   []byte
}

func (r *lz4Reader) Read(p []byte) (int, error) {
	for len(r.out) == 0 {
		if len(r.in) <= 4 { // the end, or the appended size
			return 0, io.EOF
		}
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}

func (r *lz4Reader) next() error {
	size := binary.LittleEndian.Uint32(r.in)
	r.in = r.in[4:]
	if size == 0 || uint64(size) > uint64(len(r.in)) {
		return errors.New("lz4: a block is cut off")
	}
	if r.block == nil {
		r.block = make([]byte, lz4Block)
	}
	n, err := lz4.UncompressBlock(r.in[:size], r.block)
	if err != nil {
		return fmt.Errorf("lz4: %w", err)
	}
	r.in, r.out = r.in[size:], r.block[:n]
	return nil
}
