package launch

import (
	"bytes"
	"io"
	"slices"
	"time"
)

// Piece is a part of a VMM's output.
type Piece struct {
	// Until is when all of it had been written, to about a second; zero for the newest
	// piece. What was written before this agent ran counts as written when it began.
	Until time.Time
	Text  []byte
}

// maxMarks bounds the index of a ring. When it is full every second mark is dropped, so
// that the times of older output get coarser.
const maxMarks = 512

// marks is when a ring's output was written: the index beside the buffer.
type marks struct {
	written int64 // bytes since the ring was opened, and those that it had then
	offset  int64 // of the file at the last note
	list    []mark
}

// mark says that by then so many bytes had been written.
type mark struct {
	at      time.Time
	written int64
}

// note records that the file's offset, which only grows between two rewinds, is pos now.
func (m *marks) note(pos int64, now time.Time) {
	if pos == m.offset {
		return
	}
	if pos < m.offset { // rewound since, or the VMM has set it
		m.offset = 0
	}
	m.written += min(pos-m.offset, ConsoleSize) // the VMM can set the offset to anything
	m.offset = pos
	if len(m.list) == maxMarks {
		n := 0
		m.list = slices.DeleteFunc(m.list, func(mark) bool { n++; return n%2 == 1 }) // never the newest
	}
	m.list = append(m.list, mark{now, m.written})
}

// split cuts the end of the output where the marks are, at the ends of lines.
func (m *marks) split(tail []byte, written int64) (pieces []Piece) {
	begin := 0
	for _, at := range m.list {
		end := max(0, len(tail)-int(min(written-at.written, int64(len(tail)))))
		if end = bytes.LastIndexByte(tail[:end], '\n') + 1; end > begin {
			pieces = append(pieces, Piece{at.at, tail[begin:end]})
			begin = end
		}
	}
	return append(pieces, Piece{Text: tail[begin:]})
}

// pieces returns what the file holds, oldest first, with when it was written.
func (r *ring) pieces() []Piece {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	pos, err := r.file.Seek(0, io.SeekCurrent)
	if err != nil {
		pos = r.marks.offset
	}
	return r.marks.split(r.tail(), r.marks.written+min(max(0, pos-r.marks.offset), ConsoleSize))
}

// look records how much was written until now, and rewinds the file if necessary.
func (r *ring) look() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if pos, err := r.file.Seek(0, io.SeekCurrent); err == nil {
		r.marks.note(pos, time.Now())
	}
	r.rewind()
	if pos, err := r.file.Seek(0, io.SeekCurrent); err == nil && pos < r.marks.offset {
		r.marks.offset = 0 // what was written since the rewind counts next time
	}
}
