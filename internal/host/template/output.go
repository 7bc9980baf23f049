package template

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"

	"wrenn/internal/plain"
)

// maxLine bounds a line; longer ones are cut into several. What a guest prints may be anything.
const maxLine = 1 << 10

// output is what a build tells, line by line.
type output struct {
	mu  sync.Mutex // guards say: one call at a time
	say func(string)
}

// line tells one line of the builder's own.
func (o *output) line(format string, args ...any) { o.tell(fmt.Appendf(nil, format, args...)) }

func (o *output) tell(line []byte) {
	text := plain.Text(strings.TrimRight(string(line), "\r\n"))
	o.mu.Lock()
	defer o.mu.Unlock()
	o.say(text)
}

// writer takes a text of its own, whose lines do not mix with those of others.
// It is for one goroutine.
func (o *output) writer() *lines { return &lines{out: o} }

// lines cuts what is written into lines.
type lines struct {
	out  *output
	rest []byte
}

var _ io.Writer = (*lines)(nil)

func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		part := p
		if end >= 0 {
			part = p[:end]
		}
		part = part[:min(len(part), maxLine-len(l.rest))]
		l.rest, p = append(l.rest, part...), p[len(part):]
		switch {
		case len(p) > 0 && p[0] == '\n':
			p = p[1:]
			l.flush()
		case len(l.rest) == maxLine:
			l.flush()
		}
	}
	return n, nil
}

// flush tells what has no end yet.
func (l *lines) flush() {
	l.out.tell(l.rest)
	l.rest = l.rest[:0]
}

// end tells what is left, if anything is.
func (l *lines) end() {
	if len(l.rest) > 0 {
		l.flush()
	}
}
