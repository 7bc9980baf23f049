package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"wrenn/client"
	"wrenn/internal/plain"
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
	color := yellow
	switch state {
	case client.Running:
		color = green
	case client.Stopped:
		color = faint
	case client.Failed:
		color = red
	case client.Pending, client.Starting, client.Pausing, client.Paused, client.Resuming, client.Stopping:
	}
	return s.paint(s.Out, color, string(state))
}

// age formats how long ago t was, in one unit.
func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := max(0, time.Since(t))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
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
