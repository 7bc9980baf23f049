package layer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"wrenn.dev"
)

const (
	// BlockSize is the unit of change, in bytes. Of the memory of an idle guest 17 to 21
	// MiB are in blocks of this size that have changed, and 80 to 92 in blocks of 4 MiB.
	BlockSize = 64 << 10
	// frameBlocks is how many blocks a frame has, except for the last one.
	frameBlocks = 16
	// MaxFileSize bounds the size of a file, in bytes.
	MaxFileSize = 1 << 40
	// maxIndex bounds the index, in which a frame of 1 MiB takes 36 bytes and a run a few.
	maxIndex = 40 << 20
	// maxOwner bounds the name of an owner, in bytes.
	maxOwner = 255
)

// version changes when an older agent could not read the layers of a newer one.
const version = 1

// The ciphers of frames. Version 1 reserves AES-256-GCM with a key for each owner; no
// agent writes it yet.
const (
	plainFrames  = 0
	aes256Frames = 1
)

var magic = []byte("WRNLAYER")

// trailerSize is the length of what follows the index: its length and the magic.
const trailerSize = 4 + 8

// ID names a layer: the SHA-256 of its index, which has the SHA-256 of each frame and
// the id of the parent. So an id stands for the content of a file. The zero ID is none.
type ID [sha256.Size]byte

// String returns the id in hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(id)) {
		return wrenn.Errorf(wrenn.Invalid, "%.80q is not the id of a layer", text)
	}
	if _, err := hex.Decode(id[:], text); err != nil {
		return wrenn.Errorf(wrenn.Invalid, "%.80q is not the id of a layer", text)
	}
	return nil
}

// run is a range of blocks that differ from the parent.
type run struct {
	first, count int64
	zero         bool // they are zero; else their content is in frames
}

// frame is a part of the object: the blocks of one or several runs, compressed.
type frame struct {
	size int64 // compressed
	sum  [sha256.Size]byte
}

// index is what a layer has.
type index struct {
	fileSize int64
	parent   ID
	owner    string
	runs     []run
	frames   []frame
}

// blocks returns how many blocks are in frames.
func (x *index) blocks() (n int64) {
	for _, r := range x.runs {
		if !r.zero {
			n += r.count
		}
	}
	return n
}

// packed returns the length of all frames, in bytes.
func (x *index) packed() (n int64) {
	for _, f := range x.frames {
		n += f.size
	}
	return n
}

func (x *index) encode() []byte {
	b := append([]byte(nil), magic...)
	b = binary.BigEndian.AppendUint16(b, version)
	b = append(b, plainFrames)
	b = binary.BigEndian.AppendUint32(b, BlockSize)
	b = binary.BigEndian.AppendUint64(b, uint64(x.fileSize))
	b = append(b, x.parent[:]...)
	b = append(b, byte(len(x.owner)))
	b = append(b, x.owner...)
	b = binary.AppendUvarint(b, uint64(len(x.runs)))
	next := int64(0)
	for _, r := range x.runs {
		b = binary.AppendUvarint(b, uint64(r.first-next))
		kind := uint64(0)
		if r.zero {
			kind = 1
		}
		b = binary.AppendUvarint(b, uint64(r.count)<<1|kind)
		next = r.first + r.count
	}
	b = binary.AppendUvarint(b, uint64(len(x.frames)))
	for _, f := range x.frames {
		b = binary.AppendUvarint(b, uint64(f.size))
		b = append(b, f.sum[:]...)
	}
	return b
}

// damaged returns the error for a layer that is not what was written.
func damaged(why string, args ...any) error {
	return wrenn.Errorf(wrenn.FailedPrecondition, "the layer is damaged: %s", fmt.Sprintf(why, args...))
}

// parseIndex parses what encode has made. Nothing in it is larger than the index itself,
// and all positions are inside the file.
func parseIndex(data []byte) (x index, err error) {
	p := &parser{data: data}
	if !bytes.Equal(p.bytes(len(magic)), magic) {
		return x, damaged("it has no index")
	}
	if v := p.uint16(); v != version && !p.failed {
		return x, wrenn.Errorf(wrenn.FailedPrecondition, "the layer has format %d, and this version reads format %d: use a newer version", v, version)
	}
	switch cipher := p.byte(); {
	case p.failed, cipher == plainFrames:
	case cipher == aes256Frames:
		return x, wrenn.Errorf(wrenn.FailedPrecondition, "the layer is encrypted, which this version cannot read")
	default:
		return x, wrenn.Errorf(wrenn.FailedPrecondition, "the layer is encrypted by the unknown cipher %d: use a newer version", cipher)
	}
	if size := p.uint32(); size != BlockSize {
		return x, damaged("it has blocks of %d bytes", size)
	}
	x.fileSize = int64(min(p.uint64(), MaxFileSize+1))
	copy(x.parent[:], p.bytes(len(x.parent)))
	x.owner = string(p.bytes(int(p.byte())))
	p.runs(&x)
	p.frames(&x)
	if p.failed || len(p.data) != 0 || x.fileSize > MaxFileSize {
		return index{}, damaged("its index is malformed")
	}
	return x, nil
}

// parser reads an index; after a failure it returns zeros.
type parser struct {
	data   []byte
	failed bool
}

func (p *parser) bytes(n int) []byte {
	if n > len(p.data) {
		p.failed, p.data = true, nil
		return nil
	}
	b := p.data[:n]
	p.data = p.data[n:]
	return b
}

func (p *parser) byte() byte {
	if b := p.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (p *parser) uint16() uint16 { return uint16(p.fixed(2)) }
func (p *parser) uint32() uint32 { return uint32(p.fixed(4)) }
func (p *parser) uint64() uint64 { return p.fixed(8) }

func (p *parser) fixed(size int) (n uint64) {
	for _, b := range p.bytes(size) {
		n = n<<8 | uint64(b)
	}
	return n
}

// number reads a number that is at most limit.
func (p *parser) number(limit int64) int64 {
	n, size := binary.Uvarint(p.data)
	if size <= 0 || limit < 0 || n > uint64(limit) {
		p.failed, p.data = true, nil
		return 0
	}
	p.data = p.data[size:]
	return int64(n)
}

func (p *parser) runs(x *index) {
	blocks := (x.fileSize + BlockSize - 1) / BlockSize
	next := int64(0)
	for range p.number(int64(len(p.data))) {
		r := run{first: next + p.number(blocks-next)}
		n := p.number(2*(blocks-r.first) + 1)
		r.count, r.zero = n>>1, n&1 == 1
		if p.failed || r.count == 0 {
			p.failed = true
			return
		}
		next = r.first + r.count
		x.runs = append(x.runs, r)
	}
}

func (p *parser) frames(x *index) {
	count := p.number(int64(len(p.data)))
	if want := (x.blocks() + frameBlocks - 1) / frameBlocks; count != want {
		p.failed = true
		return
	}
	for range count {
		f := frame{size: p.number(maxFrame)}
		copy(f.sum[:], p.bytes(len(f.sum)))
		if p.failed || f.size == 0 {
			p.failed = true
			return
		}
		x.frames = append(x.frames, f)
	}
}
