package kernel

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
)

// maxDict bounds the memory of the xz reader. The kernel's build uses 32 MiB
// (scripts/xz_wrap.sh).
const maxDict = 128 << 20

// appended is the length of the unpacked size, which the kernel's build appends
// to every format but gzip. Readers would take it for the start of another
// frame.
const appended = 4

// unpacker returns a reader of the kernel that packed holds.
func unpacker(packed []byte) (io.Reader, error) {
	frame := bytes.NewReader(packed[:max(0, len(packed)-appended)])
	switch {
	case bytes.HasPrefix(packed, []byte{0x02, 0x21, 0x4c, 0x18}): // the legacy frame of lz4 -l
		return lz4.NewReader(frame), nil
	case bytes.HasPrefix(packed, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return xz.NewReader(frame, maxDict)
	case bytes.HasPrefix(packed, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return newZstdReader(frame)
	case bytes.HasPrefix(packed, []byte{0x1f, 0x8b}):
		return newGzipReader(bytes.NewReader(packed))
	}
	return nil, fmt.Errorf("unknown compression (starts with % x); lz4, xz, gzip and zstd are known", packed[:min(6, len(packed))])
}

func newGzipReader(packed io.Reader) (io.Reader, error) {
	r, err := gzip.NewReader(packed)
	if err != nil {
		return nil, err
	}
	r.Multistream(false) // the image may have padding after it
	return r, nil
}

func newZstdReader(packed io.Reader) (io.Reader, error) {
	r, err := zstd.NewReader(packed,
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxELF), zstd.WithDecoderMaxWindow(maxELF))
	if err != nil {
		return nil, err
	}
	return r.IOReadCloser(), nil
}
