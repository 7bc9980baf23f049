package framing

import (
	"bytes"
	"errors"
	"strconv"
)

// errAmbiguous is the error of a head that says its length in two ways.
var errAmbiguous = errors.New("a request has both Content-Length and Transfer-Encoding")

// errLength is the error of a Content-Length that the scanner cannot follow.
var errLength = errors.New("a request has a Content-Length that is not a number on one line")

// state is what the next byte of a client belongs to.
type state int

const (
	inHead state = iota
	inBody
	inChunkSize
	inChunk
	afterChunk
	inTrailer
	free // not followed: HTTP/2, or something that net/http refuses
)

const (
	keptOfLine = 128 // bytes: enough for the headers that count
	keptOfEnd  = 16  // bytes: enough for the version in a request line
)

// scanner follows the bytes of an HTTP/1 client, to find where heads begin.
// It reads as net/http does; what net/http refuses, it need not understand.
type scanner struct {
	state state
	left  uint64 // bytes of the body or chunk
	line  []byte // the first keptOfLine bytes of the line
	end   []byte // the last keptOfEnd bytes of the line

	begun, old            bool // the head has a request line, of HTTP/1.0
	hasLength, hasCodings bool
	length                uint64
}

// scan follows the bytes in p. When it fails, the first n bytes do not complete the
// refused head, and no other one after it.
func (s *scanner) scan(p []byte) (n int, err error) {
	for i := 0; i < len(p) && s.state != free; {
		if s.state == inBody || s.state == inChunk {
			skipped := min(s.left, uint64(len(p)-i))
			s.left -= skipped
			i += int(skipped)
			s.afterBytes()
			continue
		}
		part, complete := p[i:], false
		if at := bytes.IndexByte(part, '\n'); at >= 0 {
			part, complete = part[:at], true
		}
		s.keep(part)
		if i += len(part); !complete {
			break
		}
		if err := s.endLine(); err != nil {
			return i, err // without the end of the line
		}
		i++
	}
	return len(p), nil
}

// afterBytes changes the state when a body or a chunk is complete.
func (s *scanner) afterBytes() {
	switch {
	case s.left > 0:
	case s.state == inChunk:
		s.state = afterChunk
	default:
		s.begin()
	}
}

// begin expects the head of the next request.
func (s *scanner) begin() { *s = scanner{line: s.line[:0], end: s.end[:0]} }

// keep adds a part of the line.
func (s *scanner) keep(part []byte) {
	s.line = append(s.line, part[:min(len(part), keptOfLine-len(s.line))]...)
	s.end = append(s.end, part[max(0, len(part)-keptOfEnd):]...)
	if extra := len(s.end) - keptOfEnd; extra > 0 {
		s.end = append(s.end[:0], s.end[extra:]...)
	}
}

// endLine reads a complete line.
func (s *scanner) endLine() (err error) {
	line := bytes.TrimSuffix(s.line, []byte("\r"))
	switch s.state {
	case inHead:
		err = s.endHeadLine(line)
	case inChunkSize:
		s.endChunkSize(line)
	case afterChunk:
		s.state = inChunkSize
	case inTrailer:
		if len(line) == 0 {
			s.begin()
		}
	}
	s.line, s.end = s.line[:0], s.end[:0]
	return err
}

// endHeadLine reads a line of a head: the request line, a header, or the empty one
// that ends it.
func (s *scanner) endHeadLine(line []byte) error {
	switch {
	case len(line) == 0 && s.begun:
		return s.endHead()
	case len(line) == 0: // allowed before a request
	case !s.begun:
		s.begun = true
		s.old = bytes.Contains(s.end, []byte("HTTP/1.0"))
		if !s.old && !bytes.Contains(s.end, []byte("HTTP/1.")) {
			s.state = free
		}
	default:
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Transfer-Encoding")) {
			s.hasCodings = true
		}
		if bytes.EqualFold(name, []byte("Content-Length")) {
			return s.setLength(value)
		}
	}
	return nil
}

// setLength reads the value of a Content-Length.
func (s *scanner) setLength(value []byte) (err error) {
	s.hasLength = true
	if len(s.line) == keptOfLine {
		return errLength
	}
	if s.length, err = strconv.ParseUint(string(bytes.Trim(value, " \t")), 10, 63); err != nil {
		return errLength
	}
	return nil
}

// endHead decides about a complete head.
func (s *scanner) endHead() error {
	switch {
	case s.hasCodings && (s.hasLength || s.old):
		return errAmbiguous
	case s.hasCodings: // only "chunked" is served
		s.state = inChunkSize
	case s.length > 0:
		s.state, s.left = inBody, s.length
	default:
		s.begin()
	}
	return nil
}

// endChunkSize reads the size of a chunk, in hexadecimal digits before anything else.
func (s *scanner) endChunkSize(line []byte) {
	digits := bytes.IndexFunc(line, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'f') && (r < 'A' || r > 'F')
	})
	if digits < 0 {
		digits = len(line)
	}
	size, err := strconv.ParseUint(string(line[:digits]), 16, 64)
	switch {
	case err != nil:
		s.state = free
	case size == 0:
		s.state = inTrailer
	default:
		s.state, s.left = inChunk, size
	}
}
