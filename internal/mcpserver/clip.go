package mcpserver

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// clip is a writer that keeps the beginning and the end of what is written. Memory is
// at most twice its limit.
type clip struct {
	half  int
	head  []byte
	tail  []byte // the last bytes after head, at least half if there are so many
	total int64
}

func newClip(limit int) *clip { return &clip{half: limit / 2} }

// Write never fails.
func (c *clip) Write(p []byte) (int, error) {
	c.total += int64(len(p))
	n := len(p)
	room := min(n, c.half-len(c.head))
	c.head = append(c.head, p[:room]...)
	p = p[room:]
	if len(p) > c.half {
		c.tail, p = c.tail[:0], p[len(p)-c.half:]
	}
	c.tail = append(c.tail, p...)
	if len(c.tail) > 2*c.half {
		c.tail = c.tail[:copy(c.tail, c.tail[len(c.tail)-c.half:])]
	}
	return n, nil
}

// text returns what was kept as UTF-8, with a line in the place of what was cut, and
// how many bytes that was.
func (c *clip) text() (kept string, cut int64) {
	head, tail := c.head, c.tail[max(0, len(c.tail)-c.half):]
	cut = c.total - int64(len(head)) - int64(len(tail))
	if cut == 0 {
		return valid(append(slices.Clip(head), tail...)), 0
	}
	for range utf8.UTFMax - 1 { // characters that the cut divides
		if r, size := utf8.DecodeLastRune(head); r == utf8.RuneError && size == 1 {
			head = head[:len(head)-1]
			cut++
		}
		if len(tail) > 0 && !utf8.RuneStart(tail[0]) {
			tail = tail[1:]
			cut++
		}
	}
	return fmt.Sprintf("%s\n[... %d bytes cut ...]\n%s", valid(head), cut, valid(tail)), cut
}

// valid replaces what is not UTF-8.
func valid(text []byte) string { return strings.ToValidUTF8(string(text), "\uFFFD") }
