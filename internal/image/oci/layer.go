package oci

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

	"wrenn.dev"
	"wrenn.dev/internal/image/rootfs"
)

// maxWindow bounds how far back in its output a zstd layer may refer, which is memory
// of this process: RFC 8878 wants 8 MiB supported, and `zstd --long` makes 128.
const maxWindow = 32 << 20

// unpackLayer writes a layer's files into the tree. Its content must have the diff ID
// that the image's configuration names, so that a build is what its digest says.
func (i *Image) unpackLayer(ctx context.Context, tree *rootfs.Tree, n int, limit int64) (size int64, err error) {
	content, err := i.content(i.layers[n])
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, content.Close()) }()
	sum := sha256.New()
	size, err = tree.ExtractLayer(ctx, io.TeeReader(content, sum), limit)
	if err != nil {
		return 0, err
	}
	return size, i.checkDiffID(n, sum)
}

// checkDiffID compares the digest of a layer's content with the configuration's.
func (i *Image) checkDiffID(n int, sum hash.Hash) error {
	got := hex.EncodeToString(sum.Sum(nil))
	if want := i.diffIDs[n]; want.Algorithm != "sha256" || want.Hex != got {
		return wrenn.Errorf(wrenn.Invalid, "layer %d of the image does not match its configuration: its content has the digest sha256:%s, not %.80s", n+1, got, want)
	}
	return nil
}

// content returns a layer's uncompressed content. That of a registry's image is
// decompressed here: the library's decoder of zstd has no bound that suits a tenant's.
func (i *Image) content(layer v1.Layer) (io.ReadCloser, error) {
	if !i.remote {
		return layer.Uncompressed()
	}
	compressed, err := layer.Compressed()
	if err != nil {
		return nil, err
	}
	content, err := decompress(compressed)
	if err != nil {
		return nil, errors.Join(err, compressed.Close())
	}
	return content, nil
}

// decompressed is the content of a compressed stream.
type decompressed struct {
	io.Reader
	end    func()
	stream io.Closer
}

func (d *decompressed) Close() error {
	if d.end != nil {
		d.end()
	}
	return d.stream.Close()
}

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// decompress returns the content of a stream that is compressed by gzip or zstd, or not
// at all. Its reader owns the stream, unless decompress fails.
func decompress(stream io.ReadCloser) (io.ReadCloser, error) {
	in := bufio.NewReader(stream)
	magic, err := in.Peek(len(zstdMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		r, err := gzip.NewReader(in)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		return &decompressed{Reader: r, stream: stream}, nil
	case bytes.Equal(magic, zstdMagic):
		r, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return &decompressed{Reader: r, end: r.Close, stream: stream}, nil
	default:
		return &decompressed{Reader: in, stream: stream}, nil
	}
}
