package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"wrenn.dev/internal/controlplane"
	"wrenn.dev/internal/doctest"
)

// TestDocs: the command lines in the documentation are ones that the program takes.
func TestDocs(t *testing.T) {
	doctest.CheckCommands(t, func() any { return new(commandLine) }, "host-agent", "wrenn-host-agent")
}

// TestDocumentedSettings: settings in the documentation are ones of the host agent, of
// the control plane, or of the commands' own file.
func TestDocumentedSettings(t *testing.T) {
	settings := regexp.MustCompile(`^(\[+[a-z.]+\]|[a-z_]+ = )`)
	found := 0
	for _, p := range doctest.Pages(t) {
		for _, b := range p.Blocks {
			if !settings.MatchString(b.Text.Text) {
				continue
			}
			found++
			var refusals []string
			for _, known := range []any{new(config), new(controlplane.Config), new(struct{ URL, Key string })} {
				if err := toml.NewDecoder(strings.NewReader(b.Text.Text)).DisallowUnknownFields().Decode(known); err != nil {
					refusals = append(refusals, fmt.Sprintf("%T: %v", known, err))
				}
			}
			if len(refusals) == 3 {
				t.Errorf("%s:%d: no program has these settings:\n\t%s", p.File, b.Line, strings.Join(refusals, "\n\t"))
			}
		}
	}
	if found == 0 {
		t.Error("the documentation has no settings")
	}
}
