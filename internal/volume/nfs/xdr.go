package nfs

import (
	"encoding/binary"
	"errors"
)

// errShort is the error of a message that ends too early or has a field that is
// too long.
var errShort = errors.New("message is malformed")

// decoder reads XDR values (RFC 4506) from a message. After the first error it
// returns zero values, and err is set.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) next(n int) []byte {
	if d.err != nil || n > len(d.rest) {
		d.err = errShort
		return nil
	}
	p := d.rest[:n]
	d.rest = d.rest[n:]
	return p
}

func (d *decoder) uint32() uint32 {
	if p := d.next(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (d *decoder) uint64() uint64 {
	if p := d.next(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

func (d *decoder) bool() bool { return d.uint32() != 0 }

// opaque returns bytes of variable length, at most limit of them. They are part
// of the message.
func (d *decoder) opaque(limit int) []byte {
	n := d.uint32()
	if d.err == nil && n > uint32(limit) {
		d.err = errShort
	}
	if d.err != nil {
		return nil
	}
	p := d.next(int(n))
	d.next(padding(int(n)))
	return p
}

func (d *decoder) string(limit int) string { return string(d.opaque(limit)) }

// encoder appends XDR values to a message.
type encoder []byte

func (e *encoder) uint32(values ...uint32) {
	for _, v := range values {
		*e = binary.BigEndian.AppendUint32(*e, v)
	}
}

func (e *encoder) uint64(values ...uint64) {
	for _, v := range values {
		*e = binary.BigEndian.AppendUint64(*e, v)
	}
}

func (e *encoder) bool(v bool) {
	if v {
		e.uint32(1)
	} else {
		e.uint32(0)
	}
}

func (e *encoder) opaque(p []byte) {
	e.uint32(uint32(len(p)))
	*e = append(*e, p...)
	e.pad(len(p))
}

func (e *encoder) pad(n int) { *e = append(*e, make([]byte, padding(n))...) }

// padding returns how many bytes follow n bytes of data to fill a word.
func padding(n int) int { return -n & 3 }
