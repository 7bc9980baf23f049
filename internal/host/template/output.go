package template

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/plain"
)

// maxLine bounds a line, in bytes; longer ones are cut into several. A guest may
// print anything.
const maxLine = 1 << 10

// output is the log of a build, line by line.
type output struct {
	mu     *sync.Mutex // guards events: one call at a time
	events func(wrenn.BuildEvent)
	prefix func() string // of each line
}

func newOutput(events func(wrenn.BuildEvent)) *output {
	return &output{mu: new(sync.Mutex), events: events, prefix: func() string { return "" }}
}

// step reports that a step begins.
func (o *output) step(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events(wrenn.BuildEvent{Step: name})
}

// numbered returns the output whose lines are those of a step, as BuildKit shows
// them: with its number, and the seconds since it began.
func (o *output) numbered(step int, began time.Time) *output {
	return &output{mu: o.mu, events: o.events, prefix: func() string {
		return fmt.Sprintf("#%d %.3f ", step, time.Since(began).Seconds())
	}}
}

// line logs a line of the builder.
func (o *output) line(format string, args ...any) { o.write(fmt.Appendf(nil, format, args...)) }

// write logs a line of any text.
func (o *output) write(line []byte) {
	text := o.prefix() + plain.Text(strings.TrimRight(string(line), "\r\n"))
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events(wrenn.BuildEvent{Line: text})
}

// writer returns a writer whose lines do not mix with those of others. It is for
// one goroutine.
func (o *output) writer() *lines { return &lines{out: o} }

// lines cuts a text into lines.
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

// flush logs the line that has no end yet.
func (l *lines) flush() {
	l.out.write(l.rest)
	l.rest = l.rest[:0]
}

// end logs the last line if it has no end.
func (l *lines) end() {
	if len(l.rest) > 0 {
		l.flush()
	}
}
