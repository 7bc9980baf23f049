package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
)

const (
	// slow is the delay after which progress is shown.
	slow = time.Second
	// beat is how often a terminal's progress line is updated.
	beat = 200 * time.Millisecond
)

// terminal returns the file that stream is when that is a terminal, else nil.
func terminal(stream any) *os.File {
	if f, ok := stream.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

func (s *session) json() bool { return s.line.Output == "json" }

// print writes value as JSON when --output json was given, and otherwise calls text.
func (s *session) print(value any, text func(io.Writer)) error {
	if !s.json() {
		text(s.Out)
		return nil
	}
	encoder := json.NewEncoder(s.Out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// width returns the number of columns of the terminal that w is, 0 if it is none.
func width(w io.Writer) int {
	f := terminal(w)
	if f == nil {
		return 0
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return columns
}

// fitted writes rows in columns, as table does, and cuts the last column so that a
// row fits in a line of the terminal. It writes a cell as paint returns it.
func (s *session) fitted(w io.Writer, rows [][]string, paint func(row, column int, text string) string) {
	for i, line := range align(rows, width(w)) {
		for j, cell := range line {
			_, _ = io.WriteString(w, paint(i, j, cell)) // fails only when the reader is gone
		}
		fmt.Fprintln(w)
	}
}

// minLast is the least width to which a table's last column is cut.
const minLast = 10

// align returns the cells padded to the width of their columns, with two spaces
// between columns. The last one is cut so that a line has at most total characters;
// 0 is no limit.
func align(rows [][]string, total int) [][]string {
	const gap = 2
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(plain.Line(cell))+gap)
		}
	}
	last := len(widths) - 1
	room := total
	for _, w := range widths[:last] {
		room -= w
	}
	out := make([][]string, len(rows))
	for i, row := range rows {
		for j, cell := range row {
			cell = plain.Line(cell)
			if j < last {
				cell += strings.Repeat(" ", widths[j]-utf8.RuneCountInString(cell))
			} else if total > 0 {
				cell = cut(cell, max(room, minLast))
			}
			out[i] = append(out[i], cell)
		}
	}
	return out
}

// cut shortens a text to a number of characters.
func cut(text string, most int) string {
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return text
}

// table writes rows in columns; the first row is the heading.
func table(w io.Writer, rows [][]string) {
	columns := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(columns, "\t")
			}
			fmt.Fprint(columns, plain.Line(cell))
		}
		fmt.Fprintln(columns)
	}
	_ = columns.Flush() // fails only when the reader is gone
}

// Colors of a terminal, see ECMA-48, 8.3.117.
const (
	green  = "32"
	yellow = "33"
	red    = "31"
	faint  = "2"
)

// paint colors text when w is a terminal, unless the environment turns colors off, see https://no-color.org.
func (s *session) paint(w io.Writer, color, text string) string {
	if terminal(w) == nil || s.Environ("NO_COLOR") != "" || s.Environ("TERM") == "dumb" {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

func (s *session) paintState(state client.State) string {
	return s.paint(s.Out, stateColor(state), string(state))
}

func stateColor(state client.State) string {
	switch state {
	case client.Running:
		return green
	case client.Stopped:
		return faint
	case client.Failed:
		return red
	case client.Pending, client.Starting, client.Pausing, client.Paused, client.Resuming, client.Stopping:
	}
	return yellow
}

// age formats how long ago t was, in one unit.
func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return span{time.Since(t)}.String()
}

// during runs work and shows progress while it does; see progress.
func (s *session) during(ctx context.Context, what string, work func(context.Context) error) error {
	end := s.progress(func() string { return what })
	defer end()
	return work(ctx)
}

// progress shows what is being done when that takes longer than slow, until the
// function that it returns is called; twice is allowed. On a terminal it updates
// a line with the elapsed time and erases it at the end; elsewhere it prints one
// line.
func (s *session) progress(what func() string) (end func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		s.showProgress(what, done)
	}()
	return sync.OnceFunc(func() {
		close(done)
		<-ended
	})
}

func (s *session) showProgress(what func() string, done <-chan struct{}) {
	began := time.Now()
	select {
	case <-done:
		return
	case <-time.After(slow):
	}
	if terminal(s.Err) == nil {
		fmt.Fprintf(s.Err, "%s ...\n", what())
		<-done
		return
	}
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		fmt.Fprintf(s.Err, "\r\x1b[K%s ... %ds", what(), int(time.Since(began).Seconds()))
		select {
		case <-done:
			fmt.Fprint(s.Err, "\r\x1b[K")
			return
		case <-tick.C:
		}
	}
}
