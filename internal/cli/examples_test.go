package cli

import (
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"wrenn.dev/internal/testkit"
)

// TestExamples: the help of each command has an example of it, and the command line
// takes those that are added.
func TestExamples(t *testing.T) {
	parser := func() *kong.Kong {
		p, err := kong.New(new(commandLine), kong.Name("wrenn"), kong.Exit(func(int) { t.Error("the parser exits") }))
		testkit.Must(t, err)
		return p
	}
	p := parser()
	addExamples(p.Model)
	for _, leaf := range p.Model.Leaves(true) {
		if name := commandName(leaf); !strings.Contains(leaf.Detail, "wrenn "+name) {
			t.Errorf("the help of %q has no example", name)
		}
	}
	for _, example := range examples {
		parsed, err := parser().Parse(strings.Fields(example))
		if err != nil {
			t.Errorf("wrenn %s: %v", example, err)
			continue
		}
		if name := commandName(parsed.Selected()); !strings.HasPrefix(example+" ", name+" ") {
			t.Errorf("wrenn %s is %q", example, name)
		}
	}
}
