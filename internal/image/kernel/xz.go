package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"

	"github.com/ulikunitz/xz/lzma"
)

// The kernel's build packs with `xz --check=crc32 --x86 --lzma2=…`
// (scripts/xz_wrap.sh), and the xz library does not know the x86 filter. So the
// container is read here, as https://tukaani.org/xz/xz-file-format.txt has it,
// and the library unpacks the LZMA2 stream in it.

var xzMagic = []byte{0xfd, '7', 'z', 'X', 'Z', 0}

// Filter ids, and the only check that is verified (the kernel's own loader
// knows no other either).
const (
	xzStreamHeader = 12
	xzFilterX86    = 0x04
	xzFilterLZMA2  = 0x21
	xzCheckCRC32   = 1
	xzMaxDict      = 128 << 20
)

// xzCheckSize is the length of the check after a block, by its id.
var xzCheckSize = [16]int64{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}

// xzReader reads the blocks of one xz stream, one after the other.
type xzReader struct {
	in    *bytes.Reader
	check byte
	block *bytes.Reader // what the last block unpacked to
	total int64
}

func newXZReader(packed []byte) (io.Reader, error) {
	if len(packed) < xzStreamHeader {
		return nil, io.ErrUnexpectedEOF
	}
	in := bytes.NewReader(packed)
	_, _ = in.Seek(xzStreamHeader, io.SeekStart) // cannot fail
	return &xzReader{in: in, check: packed[7] & 0xf, block: bytes.NewReader(nil)}, nil
}

func (r *xzReader) Read(p []byte) (int, error) {
	for r.block.Len() == 0 {
		data, err := r.next()
		if err != nil {
			return 0, err
		}
		r.block.Reset(data)
	}
	return r.block.Read(p)
}

// next unpacks one block; io.EOF at the index that follows the last.
func (r *xzReader) next() ([]byte, error) {
	filters, dict, err := r.header()
	if err != nil {
		return nil, err
	}
	// From here on only Len tells where we are: the LZMA2 reader takes single bytes.
	body := r.in.Size() - int64(r.in.Len())
	z, err := lzma.Reader2Config{DictCap: dict}.NewReader2(r.in)
	if err != nil {
		return nil, fmt.Errorf("xz: %w", err)
	}
	var out bytes.Buffer
	if _, err := io.Copy(&out, io.LimitReader(z, maxELF-r.total+1)); err != nil {
		return nil, fmt.Errorf("xz: %w", err)
	}
	r.total += int64(out.Len())
	if r.total > maxELF {
		return nil, fmt.Errorf("xz: more than %d MiB", maxELF>>20)
	}
	if filters == 2 {
		unfilterX86(out.Bytes())
	}
	return out.Bytes(), r.trailer(body, out.Bytes())
}

// header reads a block header and says how many filters there are and how large
// a dictionary LZMA2 needs.
func (r *xzReader) header() (filters, dict int, err error) {
	size, err := r.in.ReadByte()
	if err != nil {
		return 0, 0, io.ErrUnexpectedEOF
	}
	if size == 0 {
		return 0, 0, io.EOF // the index
	}
	head := make([]byte, (int(size)+1)*4)
	head[0] = size
	if _, err := io.ReadFull(r.in, head[1:]); err != nil {
		return 0, 0, io.ErrUnexpectedEOF
	}
	sum := len(head) - 4
	if crc32.ChecksumIEEE(head[:sum]) != binary.LittleEndian.Uint32(head[sum:]) {
		return 0, 0, errors.New("xz: the checksum of a block header is wrong")
	}
	return parseXZFilters(head[1:sum])
}

// parseXZFilters reads the flags and what follows them in a block header.
func parseXZFilters(head []byte) (filters, dict int, err error) {
	flags, in := head[0], bytes.NewReader(head[1:])
	for _, present := range []byte{0x40, 0x80} { // packed and unpacked size; not needed
		if flags&present != 0 {
			if _, err := binary.ReadUvarint(in); err != nil {
				return 0, 0, fmt.Errorf("xz: %w", err)
			}
		}
	}
	filters = int(flags&3) + 1
	for i := range filters {
		id, err1 := binary.ReadUvarint(in)
		size, err2 := binary.ReadUvarint(in)
		if err := errors.Join(err1, err2); err != nil {
			return 0, 0, fmt.Errorf("xz: %w", err)
		}
		switch {
		case id == xzFilterX86 && size == 0 && i == 0 && filters == 2:
		case id == xzFilterLZMA2 && size == 1 && i == filters-1:
			bits, err := in.ReadByte()
			if err != nil {
				return 0, 0, fmt.Errorf("xz: %w", err)
			}
			return filters, dictSize(bits), nil
		default:
			return 0, 0, fmt.Errorf("xz: filter %#x is not known", id)
		}
	}
	return 0, 0, errors.New("xz: no LZMA2 filter")
}

// dictSize decodes the LZMA2 property byte; what is too large is cut to a bound,
// which makes a stream that needs more fail to unpack.
func dictSize(bits byte) int {
	if bits > 34 {
		return xzMaxDict
	}
	return max(lzma.MinDictCap, min(xzMaxDict, (2|int(bits&1))<<(bits/2+11)))
}

// trailer skips the padding of the block that began at body and verifies its
// check.
func (r *xzReader) trailer(body int64, data []byte) error {
	read := r.in.Size() - int64(r.in.Len()) - body
	if _, err := r.in.Seek((4-read%4)%4, io.SeekCurrent); err != nil {
		return fmt.Errorf("xz: %w", err)
	}
	sum := make([]byte, xzCheckSize[r.check])
	if _, err := io.ReadFull(r.in, sum); err != nil {
		return io.ErrUnexpectedEOF
	}
	if r.check == xzCheckCRC32 && binary.LittleEndian.Uint32(sum) != crc32.ChecksumIEEE(data) {
		return errors.New("xz: the checksum is wrong")
	}
	return nil
}

// unfilterX86 undoes the x86 filter in place. The filter replaced the relative
// targets of call and jump (e8, e9) by absolute ones where a target looked like
// one within 16 MiB: its top byte is 00 or ff. Opcodes seen in the three bytes
// before, kept in mask, make it likely that this one is operand and not opcode.
func unfilterX86(data []byte) {
	const operand = 4
	mask, last := uint32(0), -1
	for i := 0; i+operand < len(data); i++ {
		if data[i]&0xfe != 0xe8 {
			continue
		}
		if gap := i - last; gap > 3 {
			mask = 0
		} else {
			mask = mask << (gap - 1) & 7
		}
		last = i
		doubtful := bits.OnesCount32(mask) > 1 || mask != 0 && isSign(data[i+operand-bits.Len32(mask)])
		if doubtful || !isSign(data[i+operand]) {
			mask = mask<<1 | 1
			continue
		}
		target := data[i+1 : i+1+operand]
		binary.LittleEndian.PutUint32(target, relative(binary.LittleEndian.Uint32(target), uint32(i+1+operand), mask))
		i += operand
	}
}

// relative turns an absolute target back into one relative to next, the address
// after the instruction.
func relative(target, next, mask uint32) uint32 {
	rel := target - next
	if n := bits.Len32(mask); n > 0 {
		for isSign(byte(rel >> (24 - 8*n))) { // the filter avoided what its inverse would misread
			rel = (rel ^ (1<<(32-8*n) - 1)) - next
		}
	}
	rel &= 1<<25 - 1
	return rel | -(rel & (1 << 24)) // sign-extended from bit 24
}

func isSign(b byte) bool { return b == 0 || b == 0xff }
