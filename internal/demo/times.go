package demo

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"wrenn"
)

// Times collects how long each step took, a column for each kind of run. The
// zero Times is ready; it is safe for concurrent use.
type Times struct {
	mu      sync.Mutex // guards all below
	steps   []string   // in the order in which they were first seen
	columns []column
}

type column struct {
	title string
	took  map[string]time.Duration
}

// Column begins a new column; what is added from now on goes there.
func (t *Times) Column(title string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.columns = append(t.columns, column{title, map[string]time.Duration{}})
}

// Add notes a step; a step that comes again adds up.
func (t *Times) Add(step string, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.columns) == 0 {
		return
	}
	if !slices.Contains(t.steps, step) {
		t.steps = append(t.steps, step)
	}
	t.columns[len(t.columns)-1].took[step] += took
}

// Trace is a sandbox.Config.Trace.
func (t *Times) Trace(_ wrenn.SandboxID, step string, took time.Duration) { t.Add(step, took) }

// Measure returns a function that adds the time since the call.
func (t *Times) Measure(step string) func() {
	began := time.Now()
	return func() { t.Add(step, time.Since(began)) }
}

// Print writes the table, milliseconds everywhere.
func (t *Times) Print(w io.Writer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(name string, cell func(column) string) {
		fmt.Fprintf(table, "%s\t", name)
		for _, c := range t.columns {
			fmt.Fprintf(table, "%s\t", cell(c))
		}
		fmt.Fprintln(table)
	}
	row("", func(c column) string { return c.title })
	for _, step := range t.steps {
		row(step, func(c column) string {
			took, ok := c.took[step]
			if !ok {
				return "-"
			}
			return fmt.Sprintf("%.1f ms", took.Seconds()*1000)
		})
	}
	return table.Flush()
}
